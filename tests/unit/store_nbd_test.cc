// The nbd store against real servers: what it asks of them, what it makes of their answers.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>

#include "nbd_servers.h"
#include "store_files.h"
#include "store_rig.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

/// A rig with a server beside it.
class NbdRig : public StoreRig {
 public:
  NbdRig() : socket(directory.file("nbd.sock")) {}
  ~NbdRig() { close(); }
  /// The server has `words` for its command line.
  NbdServerProcess& nbdkit(std::vector<std::string> words) {
    return server.emplace(socket, NbdServerProcess::nbdkit(socket, std::move(words)));
  }
  [[nodiscard]] std::string spec(const std::string& options = "") const {
    return "nbd:nbd+unix:///?socket=" + socket + options;
  }
  [[nodiscard]] std::string log() const { return text_of(directory.file("log")); }
  [[nodiscard]] std::string logfile() const { return "logfile=" + directory.file("log"); }

  TemporaryDirectory directory;
  std::string socket;
  std::optional<NbdServerProcess> server;
};

/// Is said to when a write of a durable or a cached kind is asked for.
bool has_line(const std::string& log, const std::string& operation, const std::string& flag) {
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);)
    if (line.find(" " + operation) != std::string::npos && line.find(flag) != std::string::npos) return true;
  return false;
}

}  // namespace

TEST_CASE("What is written over nbd is read back, in pieces as large as the pool gives") {
  NbdRig rig;
  rig.nbdkit({"memory", "16M"});
  const std::string connections = GENERATE("", ",connections=1");
  rig.open(rig.spec(connections));
  CHECK(rig.store->geometry().blocks == Blocks(32768));
  CHECK_FALSE(rig.store->geometry().write_cache);
  const auto large = pattern(2 * kMiB, 1);
  const auto small = pattern(512, 2);
  REQUIRE(rig.write(0, large) == StoreStatus::ok);
  REQUIRE(rig.write(32767, small) == StoreStatus::ok);
  CHECK(rig.must_read(0, 4096) == large);
  CHECK(rig.must_read(32767, 1) == small);
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(rig.discard({StoreRig::range(8, 8), StoreRig::range(0, 0), StoreRig::range(64, 8)}) == StoreStatus::ok);
  CHECK(rig.write_zeroes(StoreRig::range(32, 32)) == StoreStatus::ok);
  auto expected = large;
  for (const std::ptrdiff_t block : {8, 64})
    std::fill_n(expected.begin() + block * 512, 8 * 512, std::byte{0});
  std::fill_n(expected.begin() + 32 * 512, 32 * 512, std::byte{0});
  CHECK(rig.must_read(0, 4096) == expected);
}

TEST_CASE("Every write is durable, unless writes=cached: then a flush makes it so") {
  NbdRig rig;
  rig.nbdkit({"--filter=log", "memory", "1M", rig.logfile()});
  SECTION("durable") {
    rig.open(rig.spec());
    CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
    CHECK(rig.write_zeroes(StoreRig::range(8, 8)) == StoreStatus::ok);
    CHECK_FALSE(rig.store->geometry().write_cache);
    CHECK(has_line(rig.log(), "Write ", "fua=1"));
    CHECK(has_line(rig.log(), "Zero ", "fua=1"));
    CHECK_FALSE(has_line(rig.log(), "Flush ", ""));
  }
  SECTION("cached") {
    rig.open(rig.spec(",writes=cached"));
    CHECK(rig.store->geometry().write_cache);
    CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
    CHECK_FALSE(has_line(rig.log(), "Write ", "fua=1"));
    CHECK(rig.write(8, pattern(512, 1), Durability::durable) == StoreStatus::ok);
    CHECK(has_line(rig.log(), "Write ", "fua=1"));
    CHECK(rig.flush() == StoreStatus::ok);
    CHECK(has_line(rig.log(), "Flush ", ""));
  }
}

TEST_CASE("Write zeroes keeps the space unless it may be given back") {
  NbdRig rig;
  rig.nbdkit({"--filter=log", "memory", "1M", rig.logfile()});
  rig.open(rig.spec());
  CHECK(rig.write_zeroes(StoreRig::range(8, 8)) == StoreStatus::ok);
  CHECK(has_line(rig.log(), "Zero ", "trim=0"));
  CHECK_FALSE(has_line(rig.log(), "Zero ", "trim=1"));
  CHECK(rig.write_zeroes(StoreRig::range(8, 8), StoreQueue::Deallocate::yes) == StoreStatus::ok);
  CHECK(has_line(rig.log(), "Zero ", "trim=1"));
  CHECK(rig.discard({StoreRig::range(16, 8)}) == StoreStatus::ok);
  CHECK(has_line(rig.log(), "Trim ", "offset=0x2000"));
}

TEST_CASE("A server without FUA gets a write and a flush") {
  NbdRig rig;
  rig.nbdkit({"--filter=fua", "--filter=log", "memory", "1M", rig.logfile()});
  rig.open(rig.spec());
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
  CHECK(has_line(rig.log(), "Write ", "fua=0"));
  CHECK(times(rig.log(), " Flush ") == 1);
  CHECK(rig.must_read(0, 1) == pattern(512, 1));
}

TEST_CASE("A server without zeroing is sent zeroes") {
  NbdRig rig;
  rig.nbdkit({"--filter=nozero", "memory", "4M"});
  rig.open(rig.spec());
  CHECK(rig.store->geometry().write_zeroes == Ability::emulated);
  const auto data = pattern(2 * kMiB, 1);
  REQUIRE(rig.write(0, data) == StoreStatus::ok);
  REQUIRE(rig.write_zeroes(StoreRig::range(1, 4094)) == StoreStatus::ok);
  const auto now = rig.must_read(0, 4096);
  CHECK(std::equal(now.begin(), now.begin() + 512, data.begin()));
  CHECK(std::all_of(now.begin() + 512, now.end() - 512, [](std::byte byte) { return byte == std::byte{0}; }));
  CHECK(std::equal(now.end() - 512, now.end(), data.end() - 512));
}

TEST_CASE("Requests are as large and as aligned as the server says, which else refuses them") {
  NbdRig rig;
  rig.nbdkit({"--filter=blocksize-policy", "--filter=log", "memory", "8M", "blocksize-minimum=4096",
              "blocksize-preferred=4096", "blocksize-maximum=64k", "blocksize-error-policy=error", rig.logfile()});
  const auto refused = rig.open_error(rig.spec(",block=512"));
  CHECK(refused.find("multiples of 4096 bytes only: block=4096 or larger") != std::string::npos);
  rig.open(rig.spec());
  CHECK(rig.store->geometry().block_shift.block_size() == 4096);
  const auto data = pattern(kMiB + 4096, 1);
  REQUIRE(rig.write(1, data) == StoreStatus::ok);
  CHECK(rig.must_read(1, 257) == data);
  CHECK(times(rig.log(), " Write ") == 17);
}

TEST_CASE("What the server answers has its status") {
  NbdRig rig;
  struct Answer {
    const char* error;
    StoreStatus on_read;
    StoreStatus on_write;
  };
  const auto answer = GENERATE(Answer{"EIO", StoreStatus::read_error, StoreStatus::write_error},
                               Answer{"ENOSPC", StoreStatus::no_space, StoreStatus::no_space},
                               Answer{"EPERM", StoreStatus::read_error, StoreStatus::read_only},
                               Answer{"ENOMEM", StoreStatus::unavailable, StoreStatus::unavailable});
  const std::string trigger = rig.directory.file("trigger");
  rig.nbdkit({"--filter=error", "memory", "1M", std::string("error=") + answer.error, "error-rate=100%",
              "error-file=" + trigger});
  rig.open(rig.spec());
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
  { const std::ofstream create(trigger); }
  CHECK(rig.write(0, pattern(512, 2)) == answer.on_write);
  std::vector<std::byte> bytes;
  CHECK(rig.read(0, 1, bytes) == answer.on_read);
  CHECK(rig.journal.count("the server's answer") == 1);  // once a second
  std::filesystem::remove(trigger);
  CHECK(rig.must_read(0, 1) == pattern(512, 1));
}

TEST_CASE("Whichever answers are failures, every request is answered and no wrong data is called good") {
  NbdRig rig;
  rig.nbdkit({"--filter=error", "memory", "1M", "error=EIO", "error-rate=20%"});
  rig.open(rig.spec());
  std::vector<std::byte> bytes;
  int failures = 0;
  std::array<std::optional<std::uint64_t>, 16> known;  // by piece of 64 blocks: its pattern; none: unknown
  for (std::uint64_t i = 0; i < 400; ++i) {
    const std::uint64_t piece = i % known.size();
    if (i % 3 != 0) {
      const auto status = rig.write(piece * 64, pattern(64 * 512, i));
      failures += status == StoreStatus::ok ? 0 : 1;
      known.at(piece) = status == StoreStatus::ok ? std::optional(i) : std::nullopt;
    }
    const auto status = rig.read(piece * 64, 64, bytes);
    failures += status == StoreStatus::ok ? 0 : 1;
    if (status == StoreStatus::ok && known.at(piece)) CHECK(bytes == pattern(64 * 512, *known.at(piece)));
  }
  CHECK(failures > 20);
}

TEST_CASE("A read-only export is a read-only store") {
  NbdRig rig;
  rig.nbdkit({"-r", "memory", "1M"});
  rig.open(rig.spec());
  CHECK(rig.store->geometry().read_only);
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::read_only);
  CHECK(rig.discard({StoreRig::range(0, 1)}) == StoreStatus::read_only);
  CHECK(rig.write_zeroes(StoreRig::range(0, 1)) == StoreStatus::read_only);
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(rig.must_read(0, 1) == std::vector<std::byte>(512));
}

TEST_CASE("A server that cannot be had says why, and what to do") {
  NbdRig rig;
  CHECK(rig.open_error(rig.spec()).find("is the server running") != std::string::npos);
  CHECK(rig.open_error("nbd:").find("the URI of an NBD export") != std::string::npos);
  CHECK(rig.open_error("nbd:http://x/").find("nbd_connect_uri") != std::string::npos);
  CHECK(rig.open_error(rig.spec(",connections=0")).find("'0' is not a number from 1 to 64") != std::string::npos);
  CHECK(rig.open_error(rig.spec(",writes=maybe")).find("durable, cached") != std::string::npos);
  rig.nbdkit({"memory", "1M"});
  CHECK(rig.open_error("nbd:nbds+unix:///?socket=" + rig.socket).find("TLS") != std::string::npos);
  rig.nbdkit({"memory", "1000"});
  CHECK(rig.open_error(rig.spec()).find("its 1000 bytes are not whole blocks of 512") != std::string::npos);
  rig.nbdkit({"--filter=exportname", "memory", "1M", "exportname=right", "exportname-strict=true"});
  CHECK_FALSE(rig.try_open("nbd:nbd+unix:///wrong?socket=" + rig.socket));
  CHECK(rig.try_open("nbd:nbd+unix:///right?socket=" + rig.socket));
}

TEST_CASE("An export has the same identity whenever it is opened, another export another one, and uuid= is believed") {
  NbdRig rig;
  rig.nbdkit({"memory", "1M"});
  rig.open(rig.spec());
  const Identity first = rig.store->identity();
  rig.open("nbd:nbd+unix:///other?socket=" + rig.socket);
  CHECK(rig.store->identity() != first);
  rig.open(rig.spec(",block=4096"));
  CHECK(rig.store->identity() == first);
  rig.open(rig.spec(",uuid=6c0a1e2b-0f0c-4b0e-9a51-3d5d8a3a9c11"));
  CHECK(rig.store->identity()[0] == std::byte{0x6c});
}

TEST_CASE("More requests than a connection takes at once all end, in a server that answers late") {
  NbdRig rig;
  rig.nbdkit({"--filter=delay", "memory", "1M", "rdelay=10ms"});
  rig.open(rig.spec());
  std::array<Waited, 300> requests;
  std::vector<Lease> leases;
  for (std::uint64_t i = 0; i < requests.size(); ++i)
    leases.push_back(rig.lease(StoreRig::range(i, 1), Intent::read));
  for (std::size_t i = 0; i < requests.size(); ++i)
    requests[i].began(rig.queue->acquire(leases[i], requests[i]));
  rig.run_until([&] { return std::all_of(requests.begin(), requests.end(), [](auto& r) { return r.done(); }); });
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(requests[i].status == StoreStatus::ok);
    rig.queue->release(leases[i]);
  }
}

TEST_CASE("An idle nbd store lets its reactor sleep, also one that others share") {
  NbdRig rig;
  rig.nbdkit({"memory", "1M"});
  const std::string connections = GENERATE("", ",connections=1");
  rig.open(rig.spec(connections));
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
  const auto turns = rig.reactor().counters().turns.load();
  const auto asleep = rig.clock.now() + std::chrono::milliseconds(200);
  CHECK_FALSE(rig.reactor().run_until([] { return false; }, asleep));
  // Spinning would be hundreds of thousands.
  CHECK(rig.reactor().counters().turns.load() - turns < 2000);
}

TEST_CASE("Several reactors serve one nbd store at the same time, over a connection each or all over one") {
  NbdRig rig;
  const bool shared = GENERATE(false, true);
  // nbdkit 1.32 with several threads aborts now and then when a client hangs up (raw_send_socket: sock >= 0).
  std::vector<std::string> words{"--threads=1", "--filter=log", "memory", "8M", rig.logfile()};
  if (shared) words.insert(words.begin() + 2, "--filter=multi-conn");
  if (shared) words.push_back("multi-conn-mode=disable");
  rig.nbdkit(words);
  rig.open(rig.spec());
  rig.queue.reset();
  constexpr std::uint64_t kReactors = 3;
  constexpr std::uint64_t kBlocksEach = 4096;
  std::vector<std::thread> workers;
  std::atomic<int> wrong{0};
  std::atomic<std::uint64_t> open{0};
  for (std::uint64_t n = 0; n < kReactors; ++n)
    workers.emplace_back([&, n] {
      // No rig in here: Catch's macros belong to one thread.
      SystemClock clock;
      auto reactor = transport::Reactor::create(clock, null_logger()).value();
      auto buffers = transport::BufferPool::create(Bytes(4 * kMiB), transport::RemoteAccess::none, {}).value();
      auto queue = rig.store->open_queue({*reactor, *buffers}).value();
      ++open;
      struct Quiet final : StoreRequest {
        void on_store_done(StoreStatus ended) override { status = ended; }
        std::optional<StoreStatus> status;
      };
      // A reactor serves others also while it has nothing to do itself.
      const auto turn_until = [&](const std::function<bool()>& done) {
        return reactor->run_until(done, clock.now() + std::chrono::seconds(60));
      };
      const auto run = [&](auto operation) {
        Quiet request;
        const Progress progress = operation(request);
        if (!progress.pending) return progress.status;
        return turn_until([&] { return request.status.has_value(); }) ? *request.status : StoreStatus::unavailable;
      };
      for (std::uint64_t i = 0; i < 50; ++i) {
        Lease lease;
        lease.range = StoreRig::range(n * kBlocksEach + (i % 64) * 64, 64);
        lease.intent = Intent::write;
        const auto data = pattern(64 * 512, n * 1000 + i);
        const auto acquire = [&](StoreRequest& request) { return queue->acquire(lease, request); };
        if (run(acquire) != StoreStatus::ok) {
          ++wrong;
          continue;
        }
        std::memcpy(lease.segments[0].data, data.data(), data.size());
        bool good =
            run([&](StoreRequest& r) { return queue->commit(lease, Durability::cached, r); }) == StoreStatus::ok;
        queue->release(lease);
        if (i % 16 == 8) good &= run([&](StoreRequest& request) { return queue->flush(request); }) == StoreStatus::ok;
        lease.intent = Intent::read;
        if (run(acquire) == StoreStatus::ok) {
          good &= std::memcmp(lease.segments[0].data, data.data(), data.size()) == 0;
          queue->release(lease);
        } else {
          good = false;
        }
        if (!good) ++wrong;
      }
      // The first to be done takes the shared connection with it: the others make the next one.
    });
  for (std::thread& worker : workers)
    worker.join();
  CHECK(wrong == 0);
  const std::size_t connects = times(rig.log(), " Connect ");
  if (!shared) CHECK(connects >= kReactors);
  rig.queue = rig.open_queue();
  CHECK(rig.must_read(0, 1).size() == 512);
}

TEST_CASE("A server is not asked to read what it is writing, nor to write what it is reading") {
  NbdRig rig;
  rig.nbdkit({"--filter=log", "--filter=delay", "memory", "1M", rig.logfile(), "rdelay=200ms", "wdelay=200ms"});
  rig.open(rig.spec(GENERATE("", ",connections=1")));
  const auto other = rig.open_queue();  // of another reactor's, as far as the lock can tell
  const bool write_first = GENERATE(true, false);
  const auto data = pattern(4096, 1);
  Lease write = rig.lease(StoreRig::range(8, 8), Intent::write);
  Lease read = rig.lease(StoreRig::range(15, 2), Intent::read);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  rig.fill(write, data);
  Waited written;
  Waited got;
  if (!write_first) got.began(other->acquire(read, got));
  written.began(rig.queue->commit(write, Durability::cached, written));
  if (write_first) got.began(other->acquire(read, got));
  rig.run_until([&] { return written.done() && got.done(); });
  CHECK(written.status == StoreStatus::ok);
  CHECK(got.status == StoreStatus::ok);
  const auto seen = rig.contents(read);
  const auto expected = write_first ? std::vector(data.end() - 512, data.end()) : std::vector<std::byte>(512);
  CHECK(std::equal(expected.begin(), expected.end(), seen.begin()));
  rig.queue->release(write);
  other->release(read);
  // The log has a line when a command comes ("Read id=…") and one when it is answered ("...Read id=…").
  const std::string log = rig.log();
  const auto first_answered = log.find(write_first ? "...Write " : "...Read ");
  const auto second_came = log.find(write_first ? " Read " : " Write ");
  INFO(log);
  REQUIRE(first_answered != std::string::npos);
  REQUIRE(second_came != std::string::npos);
  CHECK(first_answered < second_came);
}
