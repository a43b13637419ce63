// Blocks of four packets each, whose writers are cut off in the middle of their transfers: hosts and targets that are killed
// with SIGKILL, a wire that nothing comes through any more. No block is ever read half old and half new, by those who read
// beside the writers nor by those who come later. Between two devices whose packets hold 1024 bytes: ci/softroce run --topology veth.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "initiator/initiator.h"
#include "tests/softroce/process.h"
#include "tests/softroce/torn_blocks.h"
#include "tests/softroce/verbs_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::test::torn;
using namespace std::chrono_literals;
using initiator::Outcome;
using initiator::Request;

namespace {

constexpr std::size_t kConnections = 10;  // of one writer: so many are cut off at a time
constexpr std::uint64_t kReaders = 2;     // connections of the reader: its admin and its I/O queue
constexpr std::uint64_t kBlocks = first_block(kConnections);
constexpr const char* kNqn = "nqn.2026-01.io.example:torn";
constexpr const char* kFar = "10.1.2.1";  // from v1 over the wire to v2; readers use rxe1
constexpr Duration kPatience = 60s;

std::uint64_t seed() {
  const char* const given = std::getenv("RBT_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 0) : static_cast<std::uint64_t>(::getpid());
}

/// RBT_TORN_TIMES=N: as many rounds.
int times() {
  const char* const given = std::getenv("RBT_TORN_TIMES");
  return given != nullptr ? std::atoi(given) : 1;
}

/// All links of the rig with packets of 1024 bytes.
struct SmallPackets {
  SmallPackets() { set(1500); }
  ~SmallPackets() { set(4200); }
  SmallPackets(const SmallPackets&) = delete;
  SmallPackets& operator=(const SmallPackets&) = delete;
  static void set(int mtu) {
    (void)shell(fmt::format("for link in v1 v2 dummy0; do ip link set $link mtu {}; done", mtu));
  }
};

/// Nothing comes through between v1 and v2: every frame goes to an address that nobody has. Nobody is told, as by a real wire: what
/// netem drops the sender hears of, and rxe's general services queue pair then never answers again.
struct CutWire {
  CutWire() {
    (void)shell(
        "ip neigh replace 10.1.2.1 lladdr 02:00:00:00:00:01 dev v1 nud permanent;"
        "ip neigh replace 10.1.1.1 lladdr 02:00:00:00:00:01 dev v2 nud permanent");
  }
  ~CutWire() { (void)shell("ip neigh del 10.1.2.1 dev v1; ip neigh del 10.1.1.1 dev v2"); }
  CutWire(const CutWire&) = delete;
  CutWire& operator=(const CutWire&) = delete;
};

/// What the hosts send comes so slowly that a target does not get all of what it has asked for while it dies: a process that is killed
/// still takes what its queue pairs have asked for, until its end has come to them.
struct SlowWire {
  SlowWire() { (void)shell("tc qdisc replace dev v1 root netem rate 16mbit limit 100000"); }
  ~SlowWire() { (void)shell("tc qdisc del dev v1 root"); }
  SlowWire(const SlowWire&) = delete;
  SlowWire& operator=(const SlowWire&) = delete;
};

struct Tally {
  std::uint64_t connections = 0;    ///< that were cut off
  std::uint64_t in_the_middle = 0;  ///< writes of theirs that were cut off while their data came, as the target counted
  std::uint64_t unanswered = 0;     ///< writes that a dead target, which counts nothing, left its hosts waiting for
  std::uint64_t blocks = 0;         ///< read, by those who read meanwhile and after
  std::uint64_t mixed = 0;          ///< of them: half this and half that
  std::uint64_t misplaced = 0;      ///< of them: what belongs elsewhere
  int changed = 0;                  ///< rounds whose writes got through, too
};

/// A host that reads all the time, as long as its reactor turns.
class Reader {
 public:
  Reader(transport::Reactor& reactor, transport::Fabric& fabric, Random& random, Tally& tally)
      : reactor_(reactor), random_(random), tally_(tally) {
    const auto uri = Uri::parse(fmt::format("nvme+rdma://{}/{}/1", rig_address(), kNqn)).value();
    auto session = initiator::Session::connect(
        {fabric, reactor.clock(), null_logger(), random}, uri,
        {.keep_alive = 0s, .connect_timeout = kPatience, .command_timeout = 2 * kPatience, .management = &reactor});
    if (!session) FAIL(session.error().message());
    session_ = std::move(*session);
    auto queue = session_->open_queue_pair(reactor, {.depth = 8, .buffers = Bytes(4 * kMiB)});
    if (!queue) FAIL(queue.error().message());
    queue_ = std::move(*queue);
    for (Read& read : reads_) {
      read.memory = queue_->buffers()->allocate(kTransfer);
      REQUIRE_FALSE(read.memory.empty());
      read.reader = this;
      read.request.context = &read;
      read.request.done = [](Request& request) {
        Read& done = *static_cast<Read*>(request.context);
        done.reader->on_done(done);
      };
    }
  }

  /// What nobody has written yet: blocks of round 0.
  void fill() {
    for (std::uint64_t first = 0; first < kBlocks; first += kTransferBlocks) {
      for (std::uint64_t i = 0; i < kTransferBlocks; ++i)
        put_tag(sweep().memory.subspan(i * kBlock, kBlock), Tag{.lba = first + i}.word());
      sweep().piece = {sweep().memory.data(), kTransfer};
      Request request;
      REQUIRE(queue_->write(request, space(), Lba(first), {&sweep().piece, 1}) == initiator::Submitted::accepted);
      REQUIRE(queue_->wait(request, reactor_.clock().now() + kPatience));
      REQUIRE(request.outcome == Outcome::success);
    }
  }
  /// From now on, at random places.
  void start() {
    reading_ = true;
    for (Read& read : reads_)
      if (&read != &sweep()) submit(read, random_.below(kBlocks / kTransferBlocks) * kTransferBlocks);
  }
  /// Reads every block. The latest round that is there.
  std::uint64_t read_all() {
    latest_ = 0;
    for (std::uint64_t first = 0; first < kBlocks; first += kTransferBlocks) {
      submit(sweep(), first);
      REQUIRE(queue_->wait(sweep().request, reactor_.clock().now() + kPatience));
      REQUIRE(sweep().request.outcome == Outcome::success);
    }
    return latest_;
  }
  /// The target is about to die: no answer is no failure.
  void expect_the_end() { reading_ = false; }
  [[nodiscard]] bool failed() const { return failed_; }

  /// `bytes` are blocks from `lba` on.
  static std::uint64_t judge(std::span<const std::byte> bytes, std::uint64_t lba, Tally& tally) {
    std::uint64_t latest = 0;
    for (std::size_t at = 0; at < bytes.size(); at += kBlock, ++lba) {
      const auto word = tag_of(bytes.subspan(at, kBlock));
      ++tally.blocks;
      if (!word) {
        ++tally.mixed;
        continue;
      }
      if (Tag::of(*word).lba != lba) ++tally.misplaced;
      latest = std::max(latest, Tag::of(*word).round);
    }
    return latest;
  }

 private:
  struct Read {
    Reader* reader = nullptr;
    Request request;
    std::span<std::byte> memory;
    iovec piece{};
    std::uint64_t first = 0;
  };
  [[nodiscard]] const initiator::Namespace& space() const { return session_->namespaces().front(); }
  [[nodiscard]] Read& sweep() { return reads_.back(); }
  void submit(Read& read, std::uint64_t first) {
    read.first = first;
    read.piece = {read.memory.data(), kTransfer};
    if (queue_->read(read.request, space(), Lba(first), {&read.piece, 1}) != initiator::Submitted::accepted)
      failed_ = reading_;
  }
  void on_done(Read& read) {
    if (read.request.outcome != Outcome::success) {
      failed_ = failed_ || reading_;
      return;
    }
    const std::uint64_t latest = judge(read.memory, read.first, tally_);
    if (&read == &sweep())
      latest_ = std::max(latest_, latest);
    else if (reading_)
      submit(read, random_.below(kBlocks / kTransferBlocks) * kTransferBlocks);
  }

  transport::Reactor& reactor_;
  Random& random_;
  Tally& tally_;
  std::array<Read, 3> reads_;  // outlive the queue pair
  std::unique_ptr<initiator::Session> session_;
  std::unique_ptr<initiator::QueuePair> queue_;
  std::uint64_t latest_ = 0;
  bool reading_ = false;
  bool failed_ = false;
};

/// A target, a reader, and one writer after the other.
class Cutter {
 public:
  explicit Cutter(std::string store) : store_(std::move(store)) {
    auto fabric = transport::verbs::Fabric::open(*logger_);
    if (!fabric) FAIL(fabric.error().message());
    fabric_ = std::move(*fabric);
    reactor_ = std::move(transport::Reactor::create(clock_, *logger_).value());
    serve();
    reader_->fill();
    reader_->start();
  }

  void kill_a_host() {
    const auto writer = write();
    writer->signal(SIGKILL);
    look_after();
  }

  void cut_the_wire() {
    const auto writer = write();
    {
      const CutWire cut;
      look_after();  // by the retries of its READs, and by the keep-alive of the admin queue, which has nothing to retry
      expect([&] { return writer->ended(); }, "the host notices");
    }
  }

  /// `file`: what it serves.
  void kill_the_target(const std::string& file) {
    std::optional<SlowWire> slow(std::in_place);
    const auto writer = write();
    reader_->expect_the_end();
    target_->signal(SIGKILL);
    CHECK(target_->wait() == 128 + SIGKILL);
    slow.reset();
    expect([&] { return writer->ended(); }, "the host notices");
    const std::string& said = writer->output();
    const auto under_way = said.find("writing\n") != std::string::npos ? std::strtoull(&said[8], nullptr, 10) : 0;
    // Both of each connection: none is ever without, but for the moment between an answer and the next write.
    CHECK(under_way >= kConnections);
    tally.unanswered += under_way;
    tally.connections += kConnections;
    reader_.reset();
    std::ifstream stream(file, std::ios::binary);
    std::vector<std::byte> bytes(kBlocks * kBlock);
    stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(stream);
    tally.changed += Reader::judge(bytes, 0, tally) == round_ ? 1 : 0;
    stream.close();
    serve();
    reader_->start();
    (void)reader_->read_all();
  }

  Tally tally;

 private:
  void serve() {
    target_ = std::make_unique<Process>(
        RBT_TARGET,
        std::vector<std::string>{"--reactors", "2", "--listen", "nvme+rdma://" + rig_address(), "--listen",
                                 fmt::format("nvme+rdma://{}", kFar), "--subsystem", kNqn, "--store", store_},
        Process::Hear::output_and_errors);
    expect_turning([&] { return target_->said("ready") || target_->ended(); });
    INFO(target_->output());
    REQUIRE_FALSE(target_->ended());
    counted_ = 0;
    reader_ = std::make_unique<Reader>(*reactor_, *fabric_, random_, tally);
  }

  /// A writer in the middle of its work.
  std::unique_ptr<Process> write() {
    ++round_;
    auto writer = std::make_unique<Process>(
        "torn_blocks_writer", std::vector<std::string>{fmt::format("nvme+rdma://{}/{}/1?keep-alive=5", kFar, kNqn),
                                                       std::to_string(kConnections), std::to_string(round_)});
    expect([&] { return writer->said("writing\n"); }, "every connection has written something");
    read_for(Duration(random_.below(kMomentMax.count())));
    return writer;
  }

  /// The target is rid of the writer: what has it left?
  void look_after() {
    std::uint64_t cut_off = 0;
    expect(
        [&] {
          const auto now = ask();
          cut_off = now.cut_off;
          return now.connections == kReaders;
        },
        "the target has noticed");
    tally.connections += kConnections;
    tally.in_the_middle += cut_off - std::exchange(counted_, cut_off);
    tally.changed += reader_->read_all() == round_ ? 1 : 0;
  }

  struct Answer {
    std::uint64_t connections = 0;
    std::uint64_t cut_off = 0;
  };
  /// What the target has counted: SIGUSR1 makes it say so.
  Answer ask() {
    static constexpr std::string_view kEnd = " writes cut off while their data came\n";
    const std::size_t heard = target_->output().size();
    target_->signal(SIGUSR1);
    std::size_t end = std::string::npos;
    expect_turning([&] { return (end = target_->output().find(kEnd, heard)) != std::string::npos; });
    const std::string line = target_->output().substr(0, end);
    Answer answer;
    const auto at = line.rfind("; ", line.rfind("; ") - 1);
    REQUIRE(std::sscanf(line.c_str() + at, "; %lu connections; %lu", &answer.connections, &answer.cut_off) == 2);
    return answer;
  }

  void expect_turning(const std::function<bool()>& done) {
    const Instant deadline = clock_.now() + kPatience;
    while (!done() && clock_.now() < deadline)
      read_for(kLook);
    REQUIRE(clock_.now() < deadline);
  }
  /// The reader reads.
  void read_for(Duration time) {
    (void)reactor_->run_until([] { return false; }, clock_.now() + time);
  }
  void expect(const std::function<bool()>& done, const char* what) {
    INFO(what);
    expect_turning(done);
    INFO(target_->output());
    REQUIRE_FALSE(reader_->failed());
  }

  static constexpr Duration kMomentMax = 30ms;
  static constexpr Duration kLook = 2ms;
  std::string store_;
  SystemClock clock_;
  Random random_{seed()};
  std::unique_ptr<Logger> logger_ = make_stderr_logger(LogLevel::warning);
  std::unique_ptr<transport::verbs::Fabric> fabric_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<Process> target_;
  std::unique_ptr<Reader> reader_;
  std::uint64_t round_ = 0;
  std::uint64_t counted_ = 0;  // what the target has said that it counted
};

void report(const std::string& store, const Tally& tally) {
  fmt::print(
      "{}: {} connections cut off, {} writes in the middle of their data, {} unanswered by the dead; {} blocks read, "
      "{} "
      "mixed, {} misplaced; {} rounds left something new\n",
      store, tally.connections, tally.in_the_middle, tally.unanswered, tally.blocks, tally.mixed, tally.misplaced,
      tally.changed);
}

/// `cuts`: so many connections, and as many writes that were in the middle of their data, not counting what killed targets cut off.
void expect_whole(const std::string& store, const Tally& tally, std::uint64_t cuts) {
  report(store, tally);
  CHECK(tally.mixed == 0);
  CHECK(tally.misplaced == 0);
  CHECK(tally.connections >= cuts);
  CHECK(tally.in_the_middle >= cuts);
  CHECK(tally.changed > 0);
}

/// A file that outlives the targets that serve it.
struct DiskInMemory {
  DiskInMemory() { (void)shell(fmt::format("truncate -s 16M {}", path)); }
  ~DiskInMemory() { ::unlink(path.c_str()); }
  DiskInMemory(const DiskInMemory&) = delete;
  DiskInMemory& operator=(const DiskInMemory&) = delete;
  const std::string path = fmt::format("/dev/shm/rbt-torn-{}.img", ::getpid());
};

}  // namespace

TEST_CASE("No block of ram is ever read half new when its writers are killed or their wire is cut") {
  const SmallPackets packets;
  INFO("RBT_SEED=" << seed());
  Cutter cutter("ram:size=64MiB,block=4096");  // shadow
  for (int i = 0; i < 8 * times(); ++i)
    cutter.kill_a_host();
  for (int i = 0; i < 2 * times(); ++i)
    cutter.cut_the_wire();
  expect_whole("ram", cutter.tally, 100);
}

TEST_CASE("No block of a mapped file is ever read half new, not even when its target is killed") {
  const SmallPackets packets;
  INFO("RBT_SEED=" << seed());
  const DiskInMemory disk;
  Cutter cutter(fmt::format("map:{},block=4096", disk.path));
  for (int i = 0; i < 6 * times(); ++i)
    cutter.kill_a_host();
  for (int i = 0; i < 4 * times(); ++i)
    cutter.kill_the_target(disk.path);
  expect_whole("map", cutter.tally, 100);
}

TEST_CASE("Forced in place, with packets smaller than a block, blocks are torn: the tests above can fail") {
  const SmallPackets packets;
  INFO("RBT_SEED=" << seed());
  Cutter cutter("ram:size=64MiB,block=4096,atomic=in-place");
  for (int i = 0; i < 10 && cutter.tally.mixed == 0; ++i)
    cutter.kill_a_host();
  report("ram, in place", cutter.tally);
  CHECK(cutter.tally.mixed > 0);
}

TEST_CASE("Forced in place, a target that is killed leaves torn blocks in its file: kills come in the middle of data") {
  const SmallPackets packets;
  INFO("RBT_SEED=" << seed());
  const DiskInMemory disk;
  Cutter cutter(fmt::format("map:{},block=4096,atomic=in-place", disk.path));
  int kills = 0;
  while (kills < 10 && cutter.tally.mixed == 0) {
    cutter.kill_the_target(disk.path);
    ++kills;
  }
  report(fmt::format("map, in place, {} kills of the target", kills), cutter.tally);
  CHECK(cutter.tally.mixed > 0);
}
