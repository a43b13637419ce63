// The file store on real files: data, durability, faults of the medium.

#include <atomic>
#include <thread>

#include "store_faults.h"
#include "store_files.h"
#include "store_rig.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;
using Kind = IoOperation::Kind;

namespace {

bool all_zero(std::span<const std::byte> bytes) {
  for (const std::byte b : bytes)
    if (b != std::byte{0}) return false;
  return true;
}

/// A rig whose stores read and write through faults, over io_uring or over threads.
struct FileRig : StoreRig {
  explicit FileRig(bool over_threads = false, Bytes pool = Bytes(8 * kMiB))
      : StoreRig(pool), faults(over_threads ? static_cast<IoEngineFactory&>(threads) : uring) {
    io = &faults;
  }
  ~FileRig() { close(); }
  UringFactory uring = UringFactory::probe().value();
  ThreadFactory threads;
  FaultyFactory faults;
  TemporaryDirectory directory;
};

}  // namespace

TEST_CASE("What was written to a file is there after it was opened again") {
  FileRig rig(GENERATE(false, true));
  const std::string direct = GENERATE("auto", "off");
  const std::string block = GENERATE("512", "4096");
  const std::string spec = "file:" + rig.directory.make("image", 8 * kMiB) + ",direct=" + direct + ",block=" + block;
  rig.open(spec);
  const auto shift = rig.store->geometry().block_shift.value();
  const auto small = pattern(4096, 1);
  const auto large = pattern(kMiB + 4096, 2);
  REQUIRE(rig.write(0, small) == StoreStatus::ok);
  REQUIRE(rig.write(kMiB >> shift, large) == StoreStatus::ok);
  CHECK(rig.must_read(0, 4096 >> shift) == small);
  rig.close();
  rig.open(spec);
  CHECK(rig.must_read(0, 4096 >> shift) == small);
  CHECK(rig.must_read(kMiB >> shift, large.size() >> shift) == large);
  CHECK(all_zero(rig.must_read(6 * kMiB >> shift, kMiB >> shift)));
}

TEST_CASE("A read lease holds the data in a registered buffer, and gives it back") {
  FileRig rig;
  rig.open("file:" + rig.directory.make("image", kMiB));
  const std::uint64_t free_before = rig.buffers().free_bytes().value();
  Lease lease = rig.lease(rig.range(3, 5), Intent::read);
  REQUIRE(rig.acquire(lease) == StoreStatus::ok);
  REQUIRE(lease.segments.size() == 1);
  CHECK(lease.segments[0].length == 5 * 512);
  CHECK(lease.segments[0].lkey == rig.buffers().memory().in(rig.domain)->lkey());
  CHECK(rig.buffers().free_bytes().value() < free_before);
  rig.queue->release(lease);
  CHECK(rig.buffers().free_bytes().value() == free_before);
}

TEST_CASE("A write lease that is released without commit leaves the old data") {
  FileRig rig;
  rig.open("file:" + rig.directory.make("image", kMiB));
  const auto old = pattern(4096, 1);
  REQUIRE(rig.write(0, old) == StoreStatus::ok);
  Lease lease = rig.lease(rig.range(0, 8), Intent::write);
  REQUIRE(rig.acquire(lease) == StoreStatus::ok);
  rig.fill(lease, pattern(4096, 2));
  rig.queue->release(lease);
  CHECK(rig.must_read(0, 8) == old);
}

TEST_CASE("A durable write is one system call that makes it durable, a cached one is not") {
  FileRig rig(GENERATE(false, true));
  rig.open("file:" + rig.directory.make("image", kMiB));
  REQUIRE(rig.write(0, pattern(4096, 1), Durability::cached) == StoreStatus::ok);
  CHECK(rig.faults.count(Kind::write_durable) == 0);
  REQUIRE(rig.write(0, pattern(4096, 1), Durability::durable) == StoreStatus::ok);
  CHECK(rig.faults.count(Kind::write_durable) == 1);
  CHECK(rig.faults.count(Kind::sync_data) == 0);
}

TEST_CASE("A file system without RWF_DSYNC gets a write and an fdatasync for a durable write") {
  FileRig rig;
  rig.faults.decide = [](const IoOperation& operation, std::size_t) {
    return operation.kind == Kind::write_durable ? Fault{EOPNOTSUPP} : Fault{};
  };
  rig.open("file:" + rig.directory.make("image", kMiB));
  for (std::size_t i = 1; i <= 2; ++i) {
    REQUIRE(rig.write(0, pattern(4096, i), Durability::durable) == StoreStatus::ok);
    CHECK(rig.faults.count(Kind::write) == i);
    CHECK(rig.faults.count(Kind::sync_data) == i);
  }
  CHECK(rig.faults.count(Kind::write_durable) == 1);  // not asked again
  CHECK(rig.must_read(0, 8) == pattern(4096, 2));
}

TEST_CASE("Flushes that arrive together share one fdatasync, one that comes later waits for the next") {
  FileRig rig(GENERATE(false, true));
  rig.open("file:" + rig.directory.make("image", kMiB));
  std::vector<Waited> first(10);
  for (Waited& request : first)
    request.began(rig.queue->flush(request));
  rig.faults.hold = true;
  rig.run_until([&] { return rig.faults.count(Kind::sync_data) == 1; });
  std::vector<Waited> second(5);  // the first fdatasync may have passed what these are about
  for (Waited& request : second)
    request.began(rig.queue->flush(request));
  for (int i = 0; i < 3; ++i)
    rig.reactor().turn();
  CHECK(rig.faults.count(Kind::sync_data) == 1);
  rig.faults.hold = false;
  rig.run_until([&] { return first.back().done(); });
  for (const Waited& request : first)
    CHECK(request.status == StoreStatus::ok);
  for (const Waited& request : second)
    CHECK_FALSE(request.done());
  rig.run_until([&] { return second.back().done(); });
  CHECK(rig.faults.count(Kind::sync_data) == 2);
}

TEST_CASE("After an fdatasync has failed no flush succeeds any more, on any queue") {
  FileRig rig;
  rig.open("file:" + rig.directory.make("image", kMiB));
  const auto other = rig.open_queue();
  rig.faults.decide = [](const IoOperation& operation, std::size_t) {
    return operation.kind == Kind::sync_data ? Fault{EIO} : Fault{};
  };
  CHECK(rig.flush() == StoreStatus::write_error);
  rig.faults.decide = [](const IoOperation&, std::size_t) { return Fault{}; };
  CHECK(rig.flush() == StoreStatus::write_error);
  CHECK(rig.finish([&](StoreRequest& request) { return other->flush(request); }) == StoreStatus::write_error);
  CHECK(rig.journal.count("fdatasync: Input/output error (EIO); writes that hosts believe") == 1);
}

TEST_CASE("A transfer that is cut short goes on until it is complete") {
  FileRig rig(GENERATE(false, true));
  const std::string direct = GENERATE("auto", "off");
  const std::uint64_t cut = GENERATE(as<std::uint64_t>{}, 512, 700, 4096, 40960);
  rig.open("file:" + rig.directory.make("image", kMiB) + ",direct=" + direct);
  std::size_t uncut = 0;
  // Whole once in a while: a cut to less than a block makes no progress, and is tried again a few times only.
  rig.faults.decide = [&](const IoOperation& operation, std::size_t) {
    const bool transfer = operation.kind != Kind::sync_data;
    return transfer && ++uncut % 20 != 0 ? Fault{{}, cut} : Fault{};
  };
  const auto data = pattern(64 * kKiB, cut);
  REQUIRE(rig.write(16, data) == StoreStatus::ok);
  REQUIRE(rig.write(16, data, Durability::durable) == StoreStatus::ok);
  CHECK(rig.must_read(16, 128) == data);
  CHECK(rig.faults.total() >= 6);
}

TEST_CASE("A transfer that makes no progress ends as a failure, not in a loop") {
  FileRig rig;
  rig.open("file:" + rig.directory.make("image", kMiB));
  rig.faults.decide = [](const IoOperation&, std::size_t) { return Fault{{}, 0}; };
  std::vector<std::byte> bytes;
  CHECK(rig.read(0, 8, bytes) == StoreStatus::read_error);
  CHECK(rig.write(0, pattern(4096, 1)) == StoreStatus::write_error);
  CHECK(rig.faults.total() < 20);
}

TEST_CASE("What the kernel wants tried again is tried again, a few times") {
  FileRig rig;
  rig.open("file:" + rig.directory.make("image", kMiB));
  const auto data = pattern(4096, 1);
  rig.faults.decide = [](const IoOperation&, std::size_t n) { return n % 3 != 2 ? Fault{EAGAIN} : Fault{}; };
  CHECK(rig.write(0, data) == StoreStatus::ok);
  CHECK(rig.must_read(0, 8) == data);
  rig.faults.decide = [](const IoOperation&, std::size_t) { return Fault{EINTR}; };
  CHECK(rig.write(0, data) == StoreStatus::unavailable);
}

TEST_CASE("Each failure of the medium has its status") {
  FileRig rig;
  rig.open("file:" + rig.directory.make("image", kMiB));
  const auto [error, on_write, on_read] = GENERATE(table<int, StoreStatus, StoreStatus>({
      {EIO, StoreStatus::write_error, StoreStatus::read_error},
      {ENOSPC, StoreStatus::no_space, StoreStatus::no_space},
      {EDQUOT, StoreStatus::no_space, StoreStatus::no_space},
      {EROFS, StoreStatus::read_only, StoreStatus::read_error},
      {EBADF, StoreStatus::read_only, StoreStatus::read_error},
      {ENODEV, StoreStatus::write_error, StoreStatus::read_error},
      {ENOMEM, StoreStatus::unavailable, StoreStatus::unavailable},
  }));
  rig.faults.decide = [error = error](const IoOperation&, std::size_t) { return Fault{error}; };
  CHECK(rig.write(0, pattern(4096, 1)) == on_write);
  CHECK(rig.write(0, pattern(4096, 1), Durability::durable) == on_write);
  CHECK(rig.write_zeroes(rig.range(0, 8)) == on_write);
  std::vector<std::byte> bytes;
  CHECK(rig.read(0, 8, bytes) == on_read);
  CHECK(rig.journal.count("writing 4096 bytes at byte 0: ") == 1);  // and not once per command
}

TEST_CASE("A write that finds the file system full says no_space") {
  FileRig rig;
  TemporaryDirectory small;
  if (!small.mount("tmpfs", "size=256k")) {
    WARN("not allowed to mount a tmpfs: not tested on a real full one");
    return;
  }
  rig.open("file:" + small.make("image", kMiB));
  CHECK(rig.write(0, pattern(kMiB, 1)) == StoreStatus::no_space);
  CHECK(rig.write(0, pattern(4096, 2)) == StoreStatus::ok);
  CHECK(rig.must_read(0, 8) == pattern(4096, 2));
}

TEST_CASE("A file that shrinks under us fails what lies behind its end, and is not made longer") {
  FileRig rig(GENERATE(false, true));
  const std::string direct = GENERATE("auto", "off");
  const std::string path = rig.directory.make("image", kMiB);
  rig.open("file:" + path + ",direct=" + direct);
  REQUIRE(rig.write(0, pattern(kMiB, 1)) == StoreStatus::ok);
  const std::uint64_t size = GENERATE(as<std::uint64_t>{}, 512 * kKiB, 512 * kKiB + 100);
  std::filesystem::resize_file(path, size);
  std::vector<std::byte> bytes;
  CHECK(rig.read(1023, 8, bytes) == StoreStatus::out_of_range);  // across the end
  CHECK(rig.read(2000, 8, bytes) == StoreStatus::out_of_range);
  CHECK(rig.write(1023, pattern(4096, 2)) == StoreStatus::out_of_range);
  CHECK(rig.write_zeroes(rig.range(1023, 8)) == StoreStatus::out_of_range);
  CHECK(file_size(path) == size);
  CHECK(rig.store->geometry().blocks == Blocks(1024));
  CHECK(rig.must_read(1000, 24) == [] {
    auto all = pattern(kMiB, 1);
    return std::vector<std::byte>(all.begin() + 1000 * 512, all.begin() + 1024 * 512);
  }());
  CHECK(rig.journal.count("had 1048576 bytes and has") == 1);
  std::filesystem::resize_file(path, 2 * kMiB);
  CHECK(rig.store->geometry().blocks == Blocks(4096));
  CHECK(all_zero(rig.must_read(4000, 8)));
}

TEST_CASE(
    "Who observes a file hears that it has grown and shrunk, without asking, and an idle reactor hardly wakes for it") {
  FileRig rig(false);
  const std::string path = rig.directory.make("image", kMiB);
  rig.open("file:" + path);
  rig.queue.reset();
  CountingObserver observer;
  rig.store->observe(&observer);
  rig.queue = rig.open_queue();
  const auto other = rig.open_queue();
  for (const std::uint64_t size : {2 * kMiB, 512 * kKiB}) {
    std::filesystem::resize_file(path, size);
    const int before = observer.calls;
    const auto sleeps = rig.reactor().counters().sleeps.load();
    rig.run_until([&] { return observer.calls > before; });
    CHECK(observer.calls == before + 1);
    CHECK(rig.reactor().counters().sleeps.load() - sleeps < 10);
    CHECK(rig.store->geometry().blocks == Blocks(size / 512));
  }
  std::filesystem::resize_file(path, 256 * kKiB);
  std::vector<std::byte> bytes;
  CHECK(rig.read(1000, 1, bytes) == StoreStatus::out_of_range);
  CHECK(observer.calls == 3);  // at once: no need to wait
}

TEST_CASE("Those who wait for a buffer get it in the order of asking, small behind large") {
  FileRig rig(false, Bytes(2 * kMiB));
  rig.open("file:" + rig.directory.make("image", 4 * kMiB));
  Lease all = rig.lease(rig.range(0, 4096), Intent::write);
  REQUIRE(rig.acquire(all) == StoreStatus::ok);
  std::vector<int> order;
  std::array<Waited, 4> requests;
  const std::array<std::uint64_t, 4> counts{4096, 8, 2048, 8};
  std::vector<Lease> leases;
  for (std::size_t i = 0; i < requests.size(); ++i)
    leases.push_back(rig.lease(rig.range(0, counts.at(i)), i == 2 ? Intent::read : Intent::write));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests.at(i).then = [&, i] { order.push_back(static_cast<int>(i)); };
    requests.at(i).began(rig.queue->acquire(leases[i], requests.at(i)));
  }
  CHECK(order.empty());
  rig.queue->release(all);
  CHECK(order.empty());  // not from inside of release()
  rig.run_until([&] { return order.size() == 1; });
  for (int i = 0; i < 5; ++i)
    rig.reactor().turn();
  CHECK(order == std::vector<int>{0});  // the next 4 KiB would fit nowhere
  rig.queue->release(leases[0]);
  rig.run_until([&] { return order.size() == 4; });
  CHECK(order[0] == 0);
  CHECK(std::find(order.begin(), order.end(), 1) < std::find(order.begin(), order.end(), 3));
  for (std::size_t i = 1; i < leases.size(); ++i) {
    CHECK(requests.at(i).status == StoreStatus::ok);
    rig.queue->release(leases[i]);
  }
}

TEST_CASE("Discard gives the space back and leaves the rest") {
  FileRig rig(GENERATE(false, true));
  const std::string path = rig.directory.make("image", 4 * kMiB);
  rig.open("file:" + path);
  if (rig.store->geometry().discard == Ability::none) {
    WARN("this file system cannot punch holes");
    return;
  }
  for (std::uint64_t i = 0; i < 4; ++i)
    REQUIRE(rig.write(i * 2048, pattern(kMiB, i)) == StoreStatus::ok);
  REQUIRE(rig.flush() == StoreStatus::ok);
  const auto before = allocated_bytes(path);
  REQUIRE(rig.discard({rig.range(0, 2048), rig.range(0, 0), rig.range(4096, 2048)}) == StoreStatus::ok);
  CHECK(allocated_bytes(path) <= before - 2 * kMiB);
  CHECK(rig.must_read(2048, 2048) == pattern(kMiB, 1));
  CHECK(rig.must_read(6144, 2048) == pattern(kMiB, 3));
  CHECK(rig.store->geometry().discard_reads_zero);
  CHECK(all_zero(rig.must_read(4096, 2048)));
}

TEST_CASE("A discard that the file system refuses is advice not taken, and not given again") {
  FileRig rig;
  rig.open("file:" + rig.directory.make("image", kMiB));
  const auto data = pattern(4096, 1);
  REQUIRE(rig.write(0, data) == StoreStatus::ok);
  rig.faults.decide = [](const IoOperation& operation, std::size_t) {
    return operation.kind == Kind::punch_hole ? Fault{EOPNOTSUPP} : Fault{};
  };
  CHECK(rig.discard({rig.range(0, 8), rig.range(8, 8)}) == StoreStatus::ok);
  CHECK(rig.discard({rig.range(0, 8)}) == StoreStatus::ok);
  CHECK(rig.faults.count(Kind::punch_hole) == 1);
  CHECK(rig.must_read(0, 8) == data);
}

TEST_CASE("Write zeroes reads as zeroes, with or without the file system's help") {
  FileRig rig(GENERATE(false, true));
  const bool helped = GENERATE(true, false);
  const auto deallocate = GENERATE(StoreQueue::Deallocate::no, StoreQueue::Deallocate::yes);
  const auto durability = GENERATE(Durability::cached, Durability::durable);
  if (!helped)
    rig.faults.decide = [](const IoOperation& operation, std::size_t) {
      const bool refused = operation.kind == Kind::punch_hole || operation.kind == Kind::zero_range;
      return refused ? Fault{EOPNOTSUPP} : Fault{};
    };
  rig.open("file:" + rig.directory.make("image", 4 * kMiB));
  for (std::uint64_t i = 0; i < 4; ++i)
    REQUIRE(rig.write(i * 2048, pattern(kMiB, i)) == StoreStatus::ok);
  const auto writes = rig.faults.count(Kind::write);
  REQUIRE(rig.write_zeroes(rig.range(8, 5000), deallocate, durability) == StoreStatus::ok);
  CHECK(all_zero(rig.must_read(8, 4088)));
  CHECK(all_zero(rig.must_read(4096, 912)));
  const auto first = pattern(kMiB, 0);
  CHECK(rig.must_read(0, 8) == std::vector<std::byte>(first.begin(), first.begin() + 4096));
  CHECK(rig.must_read(6144, 2048) == pattern(kMiB, 3));
  CHECK(rig.faults.count(Kind::sync_data) == (durability == Durability::durable ? 1 : 0));
  if (!helped) {
    CHECK(rig.faults.count(Kind::write) == writes + 3);  // 2.4 MiB in pieces of one
    CHECK(rig.faults.count(Kind::zero_range) == 1);
    CHECK(rig.store->geometry().write_zeroes == Ability::emulated);
    REQUIRE(rig.write_zeroes(rig.range(0, 8), deallocate) == StoreStatus::ok);
    CHECK(rig.faults.count(Kind::zero_range) == 1);  // not asked again
  }
}

TEST_CASE("A read-only file refuses everything that would change it") {
  FileRig rig;
  const std::string path = rig.directory.make("image", kMiB);
  rig.open("file:" + path + ",readonly");
  CHECK(rig.store->geometry().read_only);
  CHECK(rig.write(0, pattern(4096, 1)) == StoreStatus::read_only);
  CHECK(rig.discard({rig.range(0, 8)}) == StoreStatus::read_only);
  CHECK(rig.write_zeroes(rig.range(0, 8)) == StoreStatus::read_only);
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(all_zero(rig.must_read(0, 8)));
}

TEST_CASE("An idle file store lets its reactor sleep, and completions wake it") {
  FileRig rig(GENERATE(false, true));
  rig.io = rig.io == nullptr ? nullptr : &rig.faults;
  rig.open("file:" + rig.directory.make("image", kMiB));
  const auto sleeps = rig.reactor().counters().sleeps.load();
  for (std::uint64_t i = 0; i < 50; ++i)
    REQUIRE(rig.write(0, pattern(4096, i), Durability::durable) == StoreStatus::ok);
  CHECK(rig.reactor().counters().sleeps.load() > sleeps);
  CHECK_FALSE(rig.reactor().turn());
}

TEST_CASE("More operations than the ring has entries all end") {
  FileRig rig(GENERATE(false, true), Bytes(16 * kMiB));
  rig.open("file:" + rig.directory.make("image", 16 * kMiB));
  constexpr std::size_t kMany = 2000;
  std::vector<Waited> requests(kMany);
  std::vector<Lease> leases;
  for (std::size_t i = 0; i < kMany; ++i)
    leases.push_back(rig.lease(rig.range(i, 1), Intent::read));
  for (std::size_t i = 0; i < kMany; ++i)
    requests[i].began(rig.queue->acquire(leases[i], requests[i]));
  rig.run_until([&] { return std::all_of(requests.begin(), requests.end(), [](const auto& r) { return r.done(); }); });
  for (std::size_t i = 0; i < kMany; ++i) {
    CHECK(requests[i].calls == 1);
    rig.queue->release(leases[i]);
  }
}

TEST_CASE("Whichever system call fails, every request is answered, nothing leaks, and no wrong data is called good") {
  const int error = GENERATE(EIO, ENOSPC, EOPNOTSUPP, EAGAIN, ENOMEM);
  bool clean = false;
  std::size_t n = 0;
  for (; !clean; ++n) {
    REQUIRE(n < 100);
    FileRig rig;
    rig.open("file:" + rig.directory.make("image", kMiB));
    rig.faults.decide = [&](const IoOperation&, std::size_t number) { return number == n ? Fault{error} : Fault{}; };
    const auto data = pattern(16 * kKiB, n);
    const auto written = rig.write(0, data);
    const auto durable = rig.write(32, data, Durability::durable);
    static_cast<void>(rig.flush());
    const auto zeroed = rig.write_zeroes(rig.range(64, 8), StoreQueue::Deallocate::no, Durability::durable);
    static_cast<void>(rig.discard({rig.range(128, 8), rig.range(144, 8)}));
    std::vector<std::byte> bytes;
    if (rig.read(0, 32, bytes) == StoreStatus::ok && written == StoreStatus::ok) CHECK(bytes == data);
    if (rig.read(32, 32, bytes) == StoreStatus::ok && durable == StoreStatus::ok) CHECK(bytes == data);
    if (rig.read(64, 8, bytes) == StoreStatus::ok && zeroed == StoreStatus::ok) CHECK(all_zero(bytes));
    clean = rig.faults.total() <= n;
  }  // the rig checks that every buffer came back
  CHECK(n > 9);
}

TEST_CASE("Several reactors serve one store at the same time") {
  const std::string io = GENERATE("io_uring", "threads");
  const std::string kind = GENERATE("file", "ram");
  TemporaryDirectory directory;
  StoreRig main_rig;
  ThreadFactory threads;
  if (io == "threads") main_rig.io = &threads;
  main_rig.open(kind == "ram" ? "ram:size=8MiB,huge=never" : "file:" + directory.make("image", 8 * kMiB));
  constexpr std::uint64_t kReactors = 3;
  constexpr std::uint64_t kBlocksEach = 4096;
  std::vector<std::thread> workers;
  std::atomic<int> wrong{0};
  for (std::uint64_t n = 0; n < kReactors; ++n)
    workers.emplace_back([&, n] {
      // No rig in here: Catch's macros belong to one thread.
      SystemClock clock;
      auto reactor = transport::Reactor::create(clock, null_logger()).value();
      auto buffers = transport::BufferPool::create(Bytes(4 * kMiB), transport::RemoteAccess::none, {}).value();
      auto queue = main_rig.store->open_queue({*reactor, *buffers}).value();
      struct Quiet final : StoreRequest {
        void on_store_done(StoreStatus ended) override { status = ended; }
        std::optional<StoreStatus> status;
      };
      const auto run = [&](auto operation) {
        Quiet request;
        const Progress progress = operation(request);
        if (!progress.pending) return progress.status;
        const bool done =
            reactor->run_until([&] { return request.status.has_value(); }, clock.now() + std::chrono::seconds(60));
        return done ? *request.status : StoreStatus::unavailable;
      };
      for (std::uint64_t i = 0; i < 50; ++i) {
        Lease lease;
        lease.range = StoreRig::range(n * kBlocksEach + (i % 64) * 64, 64);
        lease.intent = Intent::write;
        const auto data = pattern(64 * 512, n * 1000 + i);
        bool good = run([&](StoreRequest& request) { return queue->acquire(lease, request); }) == StoreStatus::ok;
        std::memcpy(lease.segments[0].data, data.data(), data.size());
        const auto durability = i % 16 == 0 ? Durability::durable : Durability::cached;
        good &=
            run([&](StoreRequest& request) { return queue->commit(lease, durability, request); }) == StoreStatus::ok;
        queue->release(lease);
        if (i % 16 == 8) good &= run([&](StoreRequest& request) { return queue->flush(request); }) == StoreStatus::ok;
        lease.intent = Intent::read;
        good &= run([&](StoreRequest& request) { return queue->acquire(lease, request); }) == StoreStatus::ok;
        good &= std::memcmp(lease.segments[0].data, data.data(), data.size()) == 0;
        queue->release(lease);
        if (!good) ++wrong;
      }
    });
  for (std::thread& worker : workers)
    worker.join();
  CHECK(wrong == 0);
}
