// Stores that read and write through buffers: overlapping ranges take turns, others do not wait, and nobody waits for ever.

#include <algorithm>
#include <array>
#include <deque>
#include <filesystem>

#include "store_faults.h"
#include "store_files.h"
#include "store_rig.h"
#include "target/store/range_lock.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;
using Kind = IoOperation::Kind;

namespace {

constexpr std::uint64_t kDisk = 4 * kMiB;

/// Another reactor and its way to the store. Its turns come from this thread, too.
struct Elsewhere {
  explicit Elsewhere(StoreRig& rig)
      : reactor(transport::Reactor::create(rig.clock, rig.journal).value()),
        buffers(transport::BufferPool::create(Bytes(2 * kMiB), transport::RemoteAccess::none, {}).value()) {
    REQUIRE(buffers->memory().ensure(rig.domain));
    queue = rig.store->open_queue({*reactor, *buffers}).value();
  }
  std::unique_ptr<transport::Reactor> reactor;
  std::unique_ptr<transport::BufferPool> buffers;
  std::unique_ptr<StoreQueue> queue;
};

/// A file whose operations can be kept back on their way to the kernel, and two reactors.
struct StagedRig : StoreRig {
  explicit StagedRig(Bytes pool = Bytes(8 * kMiB), const std::string& options = "", std::uint64_t size = kDisk)
      : StoreRig(pool) {
    io = &faults;
    open("file:" + directory.make("image", size) + options);
    elsewhere = std::make_unique<Elsewhere>(*this);
  }
  ~StagedRig() {
    elsewhere.reset();
    close();
  }
  void turn() {
    for (int i = 0; i < 5; ++i) {
      reactor().turn();
      elsewhere->reactor->turn();
    }
  }
  void turn_until(const std::function<bool()>& done) {
    const Instant end = clock.now() + std::chrono::seconds(30);
    while (!done()) {
      REQUIRE(clock.now() < end);
      turn();
    }
  }
  ThreadFactory threads;
  FaultyFactory faults{threads};
  TemporaryDirectory directory;
  std::unique_ptr<Elsewhere> elsewhere;
};

/// One request, with its lease if it is one.
struct Access {
  Access(StagedRig& rig, StoreQueue& on, std::uint64_t lba, std::uint64_t count, Intent intent)
      : queue(on), lease(rig.lease(StoreRig::range(lba, count), intent)), ranges{lease.range, {}} {}
  Access& acquire() {
    request.began(queue.acquire(lease, request));
    return *this;
  }
  void commit(Durability durability = Durability::cached) {
    REQUIRE(has_it());
    request.calls = 0;
    request.began(queue.commit(lease, durability, request));
  }
  void release() { queue.release(lease); }
  [[nodiscard]] bool has_it() const { return request.done() && request.status == StoreStatus::ok; }
  StoreQueue& queue;
  Lease lease;
  std::array<BlockRange, 2> ranges;
  Waited request;
};

enum class Change { write, durable, zeroes, discard };

/// Begins to change the blocks of `access`; its buffer, if it takes one, holds `data`.
void begin(Access& access, Change change, std::span<const std::byte> data) {
  switch (change) {
    case Change::write:
    case Change::durable:
      access.acquire();
      StoreRig::fill(access.lease, data);
      return access.commit(change == Change::write ? Durability::cached : Durability::durable);
    case Change::zeroes:
      return access.request.began(access.queue.write_zeroes(access.lease.range, StoreQueue::Deallocate::no,
                                                            Durability::cached, access.request));
    case Change::discard: return access.request.began(access.queue.discard(access.ranges, access.request));
  }
}

void end(Access& access, Change change) {
  if (change == Change::write || change == Change::durable) access.release();
}

}  // namespace

TEST_CASE("While blocks change on their way to the medium nobody begins to read them, on whichever reactor") {
  StagedRig rig;
  const auto change = GENERATE(Change::write, Change::durable, Change::zeroes, Change::discard);
  const auto before = pattern(64 * 512, 1);
  const auto after =
      change == Change::write || change == Change::durable ? pattern(8 * 512, 2) : std::vector<std::byte>(8 * 512);
  REQUIRE(rig.write(0, before) == StoreStatus::ok);
  rig.faults.hold = true;
  Access changer(rig, *rig.queue, 8, 8, Intent::write);
  begin(changer, change, after);
  const std::size_t submitted = rig.faults.total();
  Access here(rig, *rig.queue, 15, 1, Intent::read);
  Access there(rig, *rig.elsewhere->queue, 0, 9, Intent::read);
  here.acquire();
  there.acquire();
  rig.turn();
  CHECK(rig.faults.total() == submitted);
  Access beside(rig, *rig.elsewhere->queue, 16, 8, Intent::read);
  beside.acquire();
  CHECK(rig.faults.count(Kind::read) == 1);  // others do not wait
  rig.faults.hold = false;
  rig.turn_until([&] { return changer.request.done() && here.request.done() && there.request.done(); });
  CHECK(changer.has_it());
  CHECK(rig.contents(here.lease) == std::vector(after.end() - 512, after.end()));
  auto mixed = std::vector(before.begin(), before.begin() + 8 * 512);
  mixed.insert(mixed.end(), after.begin(), after.begin() + 512);
  CHECK(rig.contents(there.lease) == mixed);
  rig.turn_until([&] { return beside.request.done(); });
  end(changer, change);
  for (Access* const access : {&here, &there, &beside})
    access->release();
}

TEST_CASE("While blocks are read nobody begins to change them, and everybody may read them") {
  StagedRig rig;
  const auto change = GENERATE(Change::write, Change::durable, Change::zeroes, Change::discard);
  const auto before = pattern(64 * 512, 1);
  REQUIRE(rig.write(0, before) == StoreStatus::ok);
  rig.faults.hold = true;
  Access reader(rig, *rig.elsewhere->queue, 4, 8, Intent::read);
  reader.acquire();
  const std::size_t submitted = rig.faults.total();
  Access changer(rig, *rig.queue, 11, 2, Intent::write);
  begin(changer, change, pattern(1024, 2));
  rig.turn();
  CHECK(rig.faults.total() == submitted);
  CHECK_FALSE(changer.request.done());
  Access another(rig, *rig.queue, 2, 4, Intent::read);
  another.acquire();
  CHECK(rig.faults.total() == submitted + 1);
  Access late(rig, *rig.queue, 12, 1, Intent::read);  // comes after the change, and sees it
  late.acquire();
  rig.turn();
  CHECK(rig.faults.total() == submitted + 1);
  rig.faults.hold = false;
  rig.turn_until([&] { return changer.request.done() && reader.request.done() && late.request.done(); });
  CHECK(rig.contents(reader.lease) == std::vector(before.begin() + 4 * 512, before.begin() + 12 * 512));
  CHECK(rig.contents(late.lease) != std::vector(before.begin() + 12 * 512, before.begin() + 13 * 512));
  rig.turn_until([&] { return another.request.done(); });
  end(changer, change);
  for (Access* const access : {&reader, &another, &late})
    access->release();
}

TEST_CASE("A read holds its blocks while it fills its buffer, and not while its data is sent") {
  StagedRig rig;
  Access reader(rig, *rig.queue, 0, 8, Intent::read);
  reader.acquire();
  rig.turn_until([&] { return reader.has_it(); });
  CHECK(rig.write(0, pattern(4096, 1)) == StoreStatus::ok);  // no deadlock: the lease is a copy
  CHECK(rig.contents(reader.lease) == std::vector<std::byte>(4096));
  reader.release();
}

TEST_CASE("Writes of the same blocks go to the medium one after the other, in the order of their coming") {
  StagedRig rig;
  rig.faults.hold = true;
  std::deque<Access> writes;
  for (std::uint64_t i = 0; i < 6; ++i) {
    writes.emplace_back(rig, i % 2 == 0 ? *rig.queue : *rig.elsewhere->queue, 0, 8, Intent::write);
    begin(writes.back(), Change::write, pattern(4096, i));
    rig.turn();
    CHECK(rig.faults.count(Kind::write) == 1);
  }
  rig.faults.hold = false;
  rig.turn_until([&] { return writes.back().request.done(); });
  for (Access& write : writes) {
    CHECK(write.has_it());
    write.release();
  }
  CHECK(rig.faults.count(Kind::write) == 6);
  CHECK(rig.must_read(0, 8) == pattern(4096, 5));
}

TEST_CASE("Without buffers nobody waits for ever: who has blocks waits for no buffer") {
  StagedRig rig(Bytes(2 * kMiB));
  constexpr std::uint64_t kHalf = 2048;  // blocks: half of all buffers
  // All buffers are with writes; a read of their blocks has come before they want them.
  Access first(rig, *rig.queue, 0, kHalf, Intent::write);
  Access second(rig, *rig.queue, 0, kHalf, Intent::write);
  first.acquire();
  second.acquire();
  Access reader(rig, *rig.queue, 0, kHalf, Intent::read);
  reader.acquire();
  Access behind(rig, *rig.queue, kHalf, kHalf, Intent::read);
  behind.acquire();
  StoreRig::fill(first.lease, pattern(kMiB, 1));
  StoreRig::fill(second.lease, pattern(kMiB, 2));
  first.commit();
  second.commit();
  rig.turn_until([&] { return first.request.done() && second.request.done(); });
  CHECK_FALSE(reader.request.done());
  first.release();
  second.release();
  rig.turn_until([&] { return reader.request.done() && behind.request.done(); });
  CHECK(rig.contents(reader.lease) == pattern(kMiB, 2));
  // The other way round: reads have the buffers, and writes of their blocks wait for those.
  Access third(rig, *rig.queue, 0, kHalf, Intent::write);
  third.acquire();
  CHECK_FALSE(third.request.done());
  reader.release();
  rig.turn_until([&] { return third.request.done(); });
  StoreRig::fill(third.lease, pattern(kMiB, 3));
  third.commit();
  behind.release();
  rig.turn_until([&] { return third.request.done(); });
  third.release();
  CHECK(rig.must_read(0, kHalf) == pattern(kMiB, 3));
}

TEST_CASE("A discard longer than a claim goes on piece by piece, and never meets itself") {
  constexpr std::uint64_t kBlocks = 4 * RangeLock::kBlocksMax;
  StagedRig rig(Bytes(8 * kMiB), "", kBlocks * 512);
  REQUIRE(rig.write(kBlocks - 8, pattern(4096, 1)) == StoreStatus::ok);
  const std::size_t before = rig.faults.count(Kind::punch_hole);
  CHECK(rig.discard({StoreRig::range(0, kBlocks), StoreRig::range(0, 0), StoreRig::range(kBlocks - 16, 16),
                     StoreRig::range(kBlocks - 16, 16)}) == StoreStatus::ok);
  CHECK(rig.faults.count(Kind::punch_hole) == before + 6);
  CHECK(rig.must_read(kBlocks - 8, 8) == std::vector<std::byte>(4096));
  REQUIRE(rig.write(kBlocks - 8, pattern(4096, 1)) == StoreStatus::ok);
  CHECK(rig.write_zeroes(StoreRig::range(0, kBlocks), StoreQueue::Deallocate::no, Durability::durable) ==
        StoreStatus::ok);
  CHECK(rig.faults.count(Kind::sync_data) == 1);
  CHECK(rig.must_read(kBlocks - 8, 8) == std::vector<std::byte>(4096));
}

TEST_CASE("Whichever operation fails, its blocks come free, and everybody hears of his end") {
  const int error = GENERATE(EIO, ENOSPC, EINTR, EOPNOTSUPP);
  bool clean = false;
  for (std::size_t nth = 0; !clean; ++nth) {
    REQUIRE(nth < 100);
    INFO("operation " << nth << ", errno " << error);
    StagedRig rig;
    std::size_t seen = 0;
    rig.faults.decide = [&](const IoOperation&, std::size_t) { return seen++ == nth ? Fault{error} : Fault{}; };
    std::deque<Access> all;
    constexpr std::array kChanges{Change::write, Change::zeroes, Change::durable, Change::discard};
    for (std::uint64_t i = 0; i < 8; ++i) {
      StoreQueue& queue = i % 2 == 0 ? *rig.queue : *rig.elsewhere->queue;
      begin(all.emplace_back(rig, queue, i, 8, Intent::write), kChanges.at(i / 2), pattern(4096, i));
      all.emplace_back(rig, queue, i + 4, 8, Intent::read).acquire();
    }
    rig.turn_until([&] { return std::all_of(all.begin(), all.end(), [](Access& one) { return one.request.done(); }); });
    clean = seen <= nth;
    rig.faults.decide = [](const IoOperation&, std::size_t) { return Fault{}; };
    std::size_t failed = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      Access& one = all.at(i);
      CHECK(one.request.calls == 1);
      if (!one.has_it()) ++failed;
      if (one.lease.intent == Intent::write) end(one, kChanges.at(i / 4));
      if (one.lease.intent == Intent::read && one.has_it()) one.release();
    }
    CHECK(failed <= 1);
    // Nobody has anything any more.
    CHECK(rig.write(0, pattern(16 * 512, 99)) == StoreStatus::ok);
    CHECK(rig.must_read(0, 16) == pattern(16 * 512, 99));
  }
}

TEST_CASE("What lies behind the end of a file that was cut fails, and keeps no blocks") {
  StagedRig rig;
  std::filesystem::resize_file(rig.directory.file("image"), kDisk / 2);
  const std::uint64_t lba = kDisk / 2 / 512;
  CHECK(rig.write(lba, pattern(4096, 1)) == StoreStatus::out_of_range);
  CHECK(rig.write_zeroes(StoreRig::range(lba - 4, 8)) == StoreStatus::out_of_range);
  std::vector<std::byte> data;
  CHECK(rig.read(lba - 4, 8, data) == StoreStatus::out_of_range);
  std::filesystem::resize_file(rig.directory.file("image"), kDisk);
  CHECK(rig.write(lba - 4, pattern(4096, 1)) == StoreStatus::ok);
  CHECK(rig.must_read(lba - 4, 8) == pattern(4096, 1));
}
