// The core of the presenters whose requests come on threads of others: many threads, one volume, over shared memory.
#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <cerrno>
#include <functional>
#include <future>
#include <thread>
#include <vector>

#include "initiator/present/shared_disk.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/shm/scratch.h"
#include "tests/sim/changing_store.h"
#include "tests/sim/gated_store.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using initiator::Ending;
using initiator::Operation;
using initiator::Outcome;
using initiator::SharedDisk;
using initiator::SharedDiskOptions;
using initiator::VolumeState;
using nvme::ForceUnitAccess;

namespace {

constexpr Duration kPatience = 60s;  // for what must come, however busy the machine

/// A target on a thread of its own, whose store stands behind a gate that is open unless a test closes it. The store keeps its
/// identity when it is opened anew, and nothing else.
class Served {
 public:
  explicit Served(std::string spec = "ram:size=16MiB") : spec_(std::move(spec)) {
    server_ = std::move(transport::shm::Fabric::open({}, random_).value());
    client_ = std::move(transport::shm::Fabric::open({}, random_).value());
    uri = Uri::parse("nvme+shm:///nqn.2024-01.io.example:shared/1?socket=" + scratch_.path("socket")).value();
    reactor_ = std::move(transport::Reactor::create(clock_, null_logger()).value());
    gate_.open = true;
    hand.write_cache = true;
    open_target();
    thread_ = std::thread([this] { reactor_->run(); });
  }
  ~Served() {
    end();
    reactor_->stop();
    thread_.join();
  }
  [[nodiscard]] Result<std::unique_ptr<SharedDisk>> try_connect(SharedDiskOptions options = {}) {
    return SharedDisk::connect({*client_, clock_, null_logger(), random_}, uri, std::move(options));
  }
  [[nodiscard]] std::unique_ptr<SharedDisk> connect(SharedDiskOptions options = {}) {
    auto disk = try_connect(std::move(options));
    if (!disk) FAIL(disk.error().message());
    return std::move(*disk);
  }
  /// Runs it on the target's thread.
  void there(const std::function<void()>& what) {
    std::promise<void> done;
    reactor_->post([&] {
      what();
      done.set_value();
    });
    done.get_future().wait();
  }
  void close_gate() {
    there([this] { gate_.open = false; });
  }
  void open_gate() {
    there([this] {
      gate_.open = true;
      gate_.let_all_through();
    });
  }
  [[nodiscard]] bool waiting_become(std::size_t wanted) {
    const Instant end = clock_.now() + kPatience;
    std::size_t now = 0;
    while (now != wanted && clock_.now() < end)
      there([&] { now = gate_.waiting(); });
    return now == wanted;
  }
  /// The target closes every connection, at once, with the store still at it; nobody is let in any more.
  void cut() {
    there([this] { target_->stop(); });
  }
  /// The target is gone, and what it had not been asked to make durable as well.
  void end() {
    if (!target_) return;
    open_gate();
    cut();
    const Instant patience = clock_.now() + kPatience;
    bool drained = false;
    while (!drained && clock_.now() < patience)
      there([&] { drained = target_->drained(); });
    CHECK(drained);
    there([this] { target_.reset(); });
  }
  void begin_again() {
    there([this] { open_target(); });
  }
  Uri uri;
  StoreHand hand;  ///< on the target's thread

 private:
  void open_target() {
    target_ =
        std::move(target::Target::open(
                      {.clock = clock_, .logger = null_logger(), .random = random_, .given_reactors = {reactor_.get()}})
                      .value());
    REQUIRE(target_->add_subsystem(*uri.nqn, {.allow_any_host = true}));
    auto store = target::make_store(spec_, {.clock = clock_, .random = random_, .logger = null_logger()});
    if (!store) FAIL(store.error().message());
    if (!hand.identity) hand.identity = (*store)->identity();
    REQUIRE(target_->add_namespace(*uri.nqn, make_changing_store(make_gated_store(std::move(*store), gate_), hand)));
    Uri listen = uri;
    listen.nqn.reset();
    listen.nsid.reset();
    REQUIRE(target_->listen(*server_, listen));
    REQUIRE(target_->start());
  }

  std::string spec_;
  ScratchDirectory scratch_;
  SystemClock clock_;
  Random random_{1};
  Gate gate_;
  std::unique_ptr<transport::shm::Fabric> server_;
  std::unique_ptr<transport::shm::Fabric> client_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<target::Target> target_;
  std::thread thread_;
};

/// Runs `body(i)` on `count` threads; true if all of them did.
bool all_of_them(int count, const std::function<bool(int)>& body) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      if (body(i)) ++good;
    });
  for (auto& thread : threads)
    thread.join();
  return good == count;
}

bool is(const Ending& ending, Outcome outcome) {
  return ending.outcome == outcome;
}

bool eventually(const std::function<bool()>& what) {
  const Instant end = SystemClock().now() + kPatience;
  while (!what()) {
    if (SystemClock().now() >= end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

/// Fails as soon as its path is lost.
SharedDiskOptions failing() {
  SharedDiskOptions options;
  options.volume.on_loss = Duration::zero();
  return options;
}

/// Counts how often the path was lost.
struct Losses {
  std::atomic<int> count{0};
  [[nodiscard]] SharedDiskOptions options() {
    SharedDiskOptions options;
    options.volume.on_state = [this](VolumeState state, const Error*) {
      if (state == VolumeState::lost) ++count;
    };
    return options;
  }
};

}  // namespace

TEST_CASE("Every thread reads what it wrote, at any size and with more threads than there are jobs") {
  Served served;
  const auto disk = served.connect({.requests = GENERATE(3u, 64u)});
  CHECK(all_of_them(8, [&](int i) {
    Random random(static_cast<std::uint64_t>(i) + 1);
    constexpr std::uint64_t kShare = 2 * kMiB;
    std::vector<std::byte> out(kShare);
    std::vector<std::byte> in(kShare);
    for (int round = 0; round < 12; ++round) {
      const std::uint64_t size = 512 * (1 + random.below(round % 4 == 0 ? kShare / 512 : 16));
      const Bytes offset(static_cast<std::uint64_t>(i) * kShare + 512 * random.below((kShare - size) / 512 + 1));
      random.fill(std::span(out).first(size));
      const auto fua = round % 2 == 0 ? ForceUnitAccess::yes : ForceUnitAccess::no;
      if (!disk->write(std::span(out).first(size), offset, fua).ok()) return false;
      if (!disk->read(std::span(in).first(size), offset).ok()) return false;
      if (!std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size), in.begin())) return false;
      if (round % 5 == 0 && !disk->flush().ok()) return false;
    }
    return true;
  }));
  CHECK_FALSE(disk->failure());
}

TEST_CASE("Requests of many threads are under way side by side, as are the pieces of a large one") {
  Served served;
  const auto disk = served.connect({.requests = 32});
  served.close_gate();
  auto readers = std::async(std::launch::async, [&] {
    return all_of_them(24, [&](int i) {
      std::vector<std::byte> block(512);
      return disk->read(block, Bytes(static_cast<std::uint64_t>(i) * 512)).ok();
    });
  });
  CHECK(served.waiting_become(24));
  auto large = std::async(std::launch::async, [&] {
    std::vector<std::byte> data(2 * kMiB);  // 8 pieces: the 8 jobs that are left
    return disk->read(data, Bytes(4 * kMiB)).ok();
  });
  CHECK(served.waiting_become(32));
  served.open_gate();
  CHECK(readers.get());
  CHECK(large.get());
}

TEST_CASE("What is not whole blocks, or not within the disk, is refused with nothing done") {
  Served served;
  const auto disk = served.connect();
  const std::uint64_t size = disk->space().size().value();
  std::vector<std::byte> ones(1024, std::byte{1});
  CHECK(is(disk->write(std::span(ones).first(100), Bytes(0), ForceUnitAccess::no), Outcome::misaligned));
  CHECK(is(disk->write(std::span(ones).first(512), Bytes(1), ForceUnitAccess::no), Outcome::misaligned));
  CHECK(is(disk->read(std::span(ones).first(513), Bytes(0)), Outcome::misaligned));
  CHECK(is(disk->write_zeroes(Bytes(0), Bytes(511), nvme::Deallocate::no, ForceUnitAccess::no), Outcome::misaligned));
  CHECK(is(disk->write(ones, Bytes(size - 512), ForceUnitAccess::no), Outcome::out_of_range));
  CHECK(is(disk->discard(Bytes(size), Bytes(512), ForceUnitAccess::no), Outcome::out_of_range));
  CHECK(is(disk->write_zeroes(Bytes(size), Bytes(512), nvme::Deallocate::no, ForceUnitAccess::no),
           Outcome::out_of_range));
  std::vector<std::byte> now(1024, std::byte{2});
  REQUIRE(disk->read(now, Bytes(size - 1024)).ok());
  CHECK(std::count(now.begin(), now.end(), std::byte{0}) == 1024);
  CHECK(disk->read({}, Bytes(0)).ok());
}

TEST_CASE("A discard forgets whole blocks within its range only; zeroing zeroes just its range") {
  Served served;
  const auto disk = served.connect();
  std::vector<std::byte> ones(4096, std::byte{1});
  std::vector<std::byte> now(4096);
  const auto zeroes = [&] {
    REQUIRE(disk->read(now, Bytes(0)).ok());
    return std::count(now.begin(), now.end(), std::byte{0});
  };
  REQUIRE(disk->write(ones, Bytes(0), ForceUnitAccess::yes).ok());
  CHECK(disk->discard(Bytes(100), Bytes(600), ForceUnitAccess::yes).ok());  // holds no whole block
  CHECK(zeroes() == 0);
  CHECK(disk->discard(Bytes(100), Bytes(1500), ForceUnitAccess::yes).ok());  // holds two
  CHECK(zeroes() == 1024);
  CHECK(now[512] == std::byte{0});
  CHECK(disk->write_zeroes(Bytes(2048), Bytes(512), nvme::Deallocate::yes, ForceUnitAccess::yes).ok());
  CHECK(zeroes() == 1536);
}

TEST_CASE("Requests wait for a target that has ended, and it finds what the one before had not been asked to flush") {
  Served served;
  Losses losses;
  const auto disk = served.connect(losses.options());
  constexpr std::uint64_t kShare = 512 * kKiB;
  std::atomic<int> writing{0};
  auto writers = std::async(std::launch::async, [&] {
    return all_of_them(8, [&](int i) {
      Random random(static_cast<std::uint64_t>(i) + 1);
      std::vector<std::byte> data(kShare);
      random.fill(data);
      const std::uint64_t share = static_cast<std::uint64_t>(i) * kShare;
      for (std::uint64_t at = 0; at < kShare; at += 8 * kKiB, ++writing)
        if (!disk->write(std::span(data).subspan(at, 8 * kKiB), Bytes(share + at), ForceUnitAccess::no).ok())
          return false;
      std::vector<std::byte> now(kShare);
      return disk->read(now, Bytes(share)).ok() && now == data;
    });
  });
  for (int round = 1; round <= 2; ++round) {
    CHECK(eventually([&] { return writing >= round * 150; }));
    served.end();
    CHECK(eventually([&] { return losses.count == round; }));
    served.begin_again();
  }
  CHECK(writers.get());
  CHECK(losses.count == 2);
  CHECK_FALSE(disk->failure());
}

TEST_CASE(
    "A disk that is to fail at once does so when the target ends, with every request, and says why from then on") {
  Served served;
  const auto disk = served.connect(failing());
  served.close_gate();
  std::atomic<int> refused{0};
  auto threads = std::async(std::launch::async, [&] {
    return all_of_them(16, [&](int i) {
      std::vector<std::byte> data(i % 2 == 0 ? 4096 : 600 * kKiB);
      const Ending ending = disk->read(data, Bytes(0));
      if (errno_of(Operation::read, ending, false) == EIO) ++refused;
      return !ending.ok();
    });
  });
  CHECK(served.waiting_become(16 / 2 + 16 / 2 * 3));
  served.cut();
  CHECK(threads.get());
  CHECK(refused == 16);
  std::vector<std::byte> block(512);
  CHECK(is(disk->read(block, Bytes(0)), Outcome::disconnected));
  CHECK(is(disk->flush(), Outcome::disconnected));
  REQUIRE(disk->failure());
  CHECK_THAT(disk->failure()->message(), Contains("nvme+shm"));
}

TEST_CASE("Who waits for a lost target is let go when the disk gives up, is closed, or has given up before the loss") {
  Served served;
  Losses losses;
  const auto disk = served.connect(losses.options());
  const int when = GENERATE(0, 1, 2);
  CAPTURE(when);
  if (when == 2) disk->give_up_when_lost();
  std::vector<std::byte> block(512);
  REQUIRE(disk->read(block, Bytes(0)).ok());  // giving up is for later
  served.close_gate();
  auto threads = std::async(std::launch::async, [&] {
    return all_of_them(16, [&](int i) {
      std::vector<std::byte> data(i % 2 == 0 ? 4096 : 600 * kKiB);
      return errno_of(Operation::read, disk->read(data, Bytes(0)), false) == EIO;
    });
  });
  CHECK(served.waiting_become(16 / 2 + 16 / 2 * 3));
  served.cut();
  CHECK(eventually([&] { return losses.count == 1; }));
  if (when == 0) disk->give_up_when_lost();
  if (when == 1) disk->close();
  CHECK(threads.get());
  CHECK(is(disk->read(block, Bytes(0)), Outcome::disconnected));
  CHECK(is(disk->flush(), Outcome::disconnected));
  CHECK_FALSE(disk->failure());  // it was we who ended it
}

TEST_CASE("A disk can be closed under its callers while its target lives, and again") {
  Served served;
  const auto disk = served.connect();
  served.close_gate();
  auto threads = std::async(std::launch::async, [&] {
    return all_of_them(8, [&](int) {
      std::vector<std::byte> data(4096);
      return !disk->read(data, Bytes(0)).ok();
    });
  });
  CHECK(served.waiting_become(8));
  disk->close();
  disk->close();
  CHECK(threads.get());
}

TEST_CASE("A target that does not answer costs a disk that is to fail, not the callers") {
  Served served;
  SharedDiskOptions options = failing();
  options.volume.session.command_timeout = 300ms;
  const auto disk = served.connect(std::move(options));
  served.close_gate();
  CHECK(all_of_them(4, [&](int) {
    std::vector<std::byte> data(4096);
    return is(disk->read(data, Bytes(0)), Outcome::disconnected);
  }));
  REQUIRE(disk->failure());
  CHECK_THAT(disk->failure()->message(), Contains("not answered within 300"));
}

TEST_CASE("The successor of a failed disk goes on if nothing can be lost, and is refused if something may be") {
  Served served;
  auto disk = served.connect(failing());
  const bool flushed = GENERATE(false, true);
  CAPTURE(flushed);
  const std::vector<std::byte> data(4096);
  REQUIRE(disk->write(data, Bytes(0), ForceUnitAccess::no).ok());
  if (flushed) REQUIRE(disk->flush().ok());
  served.end();
  CHECK(eventually([&] { return disk->failure().has_value(); }));
  disk->close();
  const initiator::Remains remains = disk->remains();
  CHECK(remains.unflushed == !flushed);
  served.begin_again();
  SharedDiskOptions options;
  options.volume.predecessor = remains.succession;
  if (!remains.unflushed) options.volume.predecessor->memory = initiator::MemoryKind::off;
  auto next = served.try_connect(options);
  REQUIRE(next.has_value() == flushed);
  if (next) CHECK((*next)->write(data, Bytes(0), ForceUnitAccess::no).ok());
}

TEST_CASE("FUA arrives at the store, and only where it was asked for") {
  Served served;
  const auto disk = served.connect();
  const std::vector<std::byte> data(4096);
  const auto durability = [&] {
    target::Durability last{};
    served.there([&] { last = served.hand.last_durability; });
    return last;
  };
  REQUIRE(disk->write(data, Bytes(0), ForceUnitAccess::yes).ok());
  CHECK(durability() == target::Durability::durable);
  REQUIRE(disk->write(data, Bytes(0), ForceUnitAccess::no).ok());
  CHECK(durability() == target::Durability::cached);
}

TEST_CASE("A namespace that grows or shrinks is as large for the disk") {
  Served served;
  served.there([&] { served.hand.resize(1000); });
  const auto disk = served.connect();
  const initiator::Namespace& before = disk->space();
  CHECK(before.blocks == Blocks(1000));
  std::vector<std::byte> block(512);
  CHECK(is(disk->read(block, Bytes(512 * 1000)), Outcome::out_of_range));
  served.there([&] { served.hand.resize(2000); });
  CHECK(eventually([&] { return disk->space().blocks == Blocks(2000); }));
  CHECK(disk->read(block, Bytes(512 * 1000)).ok());
  served.there([&] { served.hand.resize(500); });
  CHECK(eventually([&] { return disk->space().blocks == Blocks(500); }));
  CHECK(is(disk->read(block, Bytes(512 * 500)), Outcome::out_of_range));
  CHECK(before.blocks == Blocks(1000));  // who looks at an old one still may
}

TEST_CASE("What the controller refuses is that request's failure and nobody else's") {
  Served served("error:commit,lba=8,status=no_space,ram:size=16MiB");
  const auto disk = served.connect();
  std::vector<std::byte> data(4096);
  const Ending full = disk->write(data, Bytes(4096), ForceUnitAccess::no);
  CHECK(is(full, Outcome::failed));
  CHECK(errno_of(Operation::write, full, false) == ENOSPC);
  CHECK_THAT(describe(full), Contains("Capacity Exceeded"));
  CHECK(disk->write(data, Bytes(0), ForceUnitAccess::no).ok());
  std::vector<std::byte> large(kMiB);  // the failure of one piece is that of the whole
  CHECK(errno_of(Operation::write, disk->write(large, Bytes(0), ForceUnitAccess::no), false) == ENOSPC);
  CHECK_FALSE(disk->failure());
}

TEST_CASE("A connection refused says what, where and what now") {
  Served served;
  served.uri.nsid = Nsid(7);
  const auto nowhere = served.try_connect();
  REQUIRE_FALSE(nowhere);
  CHECK_THAT(nowhere.error().message(), Contains("no namespace 7") && Contains("there are: 1"));
  CHECK_FALSE(served.try_connect({.requests = 65}));
  CHECK_FALSE(served.try_connect({.requests = 0}));
  served.uri.nsid.reset();  // the only one there is
  CHECK(served.connect()->space().nsid == Nsid(1));
}

TEST_CASE("An errno says what the status means to a block device's user") {
  using nvme::StatusCode;
  struct Row {
    Operation operation;
    StatusCode code;
    int number;
  };
  const std::vector<Row> rows = {{Operation::read, StatusCode::unrecovered_read_error, EIO},
                                 {Operation::write, StatusCode::write_fault, EIO},
                                 {Operation::write, StatusCode::capacity_exceeded, ENOSPC},
                                 {Operation::write, StatusCode::lba_out_of_range, ENOSPC},
                                 {Operation::read, StatusCode::lba_out_of_range, EINVAL},
                                 {Operation::write, StatusCode::namespace_write_protected, EROFS},
                                 {Operation::discard, StatusCode::connect_invalid_parameters, EROFS},
                                 {Operation::read, StatusCode::connect_invalid_parameters, EIO},
                                 {Operation::write_zeroes, StatusCode::invalid_opcode, ENOTSUP},
                                 {Operation::write, StatusCode::invalid_field, EINVAL},
                                 {Operation::write, StatusCode::reservation_conflict, EPERM},
                                 {Operation::read, StatusCode::access_denied, EPERM},
                                 {Operation::flush, StatusCode::namespace_not_ready, EIO},
                                 {Operation::read, StatusCode::invalid_namespace, EIO}};
  for (const Row& row : rows) {
    INFO(name(row.operation) << ": " << name(row.code));
    CHECK(errno_of(row.operation, {Outcome::failed, row.code}, false) == row.number);
  }
  CHECK(errno_of(Operation::write, {Outcome::success, {}}, true) == 0);
  CHECK(errno_of(Operation::write, {Outcome::unsupported, {}}, true) == EROFS);
  CHECK(errno_of(Operation::write_zeroes, {Outcome::unsupported, {}}, false) == ENOTSUP);
  CHECK(errno_of(Operation::compare, {Outcome::unsupported, {}}, true) == ENOTSUP);
  for (const Outcome outcome : {Outcome::timed_out, Outcome::disconnected, Outcome::aborted, Outcome::unmapped})
    CHECK(errno_of(Operation::read, {outcome, {}}, false) == EIO);
}
