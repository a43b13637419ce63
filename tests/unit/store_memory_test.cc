// The stores that serve from memory of their own: ram and null.

#include <sys/stat.h>

#include "store_rig.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

bool all_zero(std::span<const std::byte> bytes) {
  for (const std::byte b : bytes)
    if (b != std::byte{0}) return false;
  return true;
}

}  // namespace

TEST_CASE("A lease of ram is the blocks themselves") {
  StoreRig rig;
  rig.open("ram:size=1MiB,block=4096,huge=never");
  Lease write = rig.lease(rig.range(3, 2), Intent::write);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  REQUIRE(write.segments.size() == 1);
  CHECK(write.segments[0].length == 8192);
  CHECK(write.segments[0].lkey == rig.domain.last_key);
  rig.queue->release(write);
  const std::byte* const place = write.few[0].data;
  Lease read = rig.lease(rig.range(3, 2), Intent::read);
  REQUIRE(rig.acquire(read) == StoreStatus::ok);
  CHECK(read.segments[0].data == place);
  Lease neighbour = rig.lease(rig.range(4, 1), Intent::read);
  REQUIRE(rig.acquire(neighbour) == StoreStatus::ok);
  CHECK(neighbour.segments[0].data == place + 4096);
  CHECK(rig.buffers().free_bytes() == rig.buffers().size());  // no buffer in between
  for (Lease* lease : {&read, &neighbour})
    rig.queue->release(*lease);
}

TEST_CASE("What was written to ram is read back, through any queue") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never");
  const auto data = pattern(64 * kKiB, 7);
  REQUIRE(rig.write(100, data) == StoreStatus::ok);
  CHECK(rig.must_read(100, 128) == data);
  rig.queue = rig.open_queue();
  CHECK(rig.must_read(100, 128) == data);
  CHECK(all_zero(rig.must_read(0, 100)));
}

TEST_CASE("ram is registered once per domain, for local access only, and says what failed") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never");
  const int before = rig.domain.registrations;
  REQUIRE(rig.store->prepare(rig.domain, 0));
  CHECK(rig.domain.registrations == before);
  CHECK(rig.domain.last_access == transport::RemoteAccess::none);
  KeyDomain full;
  full.refuse = true;
  const auto refused = rig.store->prepare(full, 0);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message() ==
        "store 'ram:size=1MiB,huge=never': registering its 1048576 bytes: RLIMIT_MEMLOCK is 64 KiB");
}

TEST_CASE("Zeroing ram keeps the pages where they are") {
  // A page that was punched out would leave a registration with memory that is no longer the store's.
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never");
  const auto data = pattern(16 * kKiB, 3);
  REQUIRE(rig.write(0, data) == StoreStatus::ok);
  const std::size_t pages = 4;
  Lease lease = rig.lease(rig.range(0, 32), Intent::read);
  REQUIRE(rig.acquire(lease) == StoreStatus::ok);
  const std::span place(lease.segments[0].data, lease.segments[0].length);
  rig.queue->release(lease);
  SECTION("discard") {
    REQUIRE(rig.discard({rig.range(0, 8), rig.range(8, 0), rig.range(8, 24)}) == StoreStatus::ok);
  }
  SECTION("write zeroes that deallocate") {
    REQUIRE(rig.write_zeroes(rig.range(0, 32), StoreQueue::Deallocate::yes) == StoreStatus::ok);
  }
  CHECK(all_zero(place));
  const int fd = rig.domain.last_span.fd;
  struct stat about {};
  REQUIRE(::fstat(fd, &about) == 0);
  CHECK(static_cast<std::size_t>(about.st_blocks) * 512 == pages * 4096);
}

TEST_CASE("Zeroing ram that was never touched allocates nothing") {
  StoreRig rig;
  rig.open("ram:size=8GiB,huge=never");
  REQUIRE(rig.write(kGiB / 512, pattern(4096, 1)) == StoreStatus::ok);
  REQUIRE(rig.discard({rig.range(0, 8 * kGiB / 512)}) == StoreStatus::ok);
  CHECK(all_zero(rig.must_read(kGiB / 512, 8)));
  struct stat about {};
  REQUIRE(::fstat(rig.domain.last_span.fd, &about) == 0);
  CHECK(about.st_blocks * 512 <= static_cast<blkcnt_t>(kMiB));
}

TEST_CASE("A long discard of ram takes turns with everybody else") {
  StoreRig rig;
  rig.open("ram:size=16MiB,huge=never");
  REQUIRE(rig.write(0, pattern(16 * kMiB, 9)) == StoreStatus::ok);
  const std::vector<BlockRange> ranges{rig.range(0, 100), rig.range(100, 30000), rig.range(30100, 2668)};
  Waited long_one;
  long_one.began(rig.queue->discard(ranges, long_one));
  REQUIRE_FALSE(long_one.done());
  Waited second;
  second.began(rig.queue->write_zeroes(rig.range(0, 32768), StoreQueue::Deallocate::no, Durability::cached, second));
  int turns = 0;
  while (!long_one.done() || !second.done()) {
    rig.reactor().turn();
    REQUIRE(++turns < 100);
  }
  CHECK(turns >= 20);  // 2 * 16 MiB in slices
  CHECK(long_one.status == StoreStatus::ok);
  CHECK(long_one.calls == 1);
  CHECK(second.calls == 1);
  CHECK(all_zero(rig.must_read(0, 32768)));
  CHECK_FALSE(rig.reactor().turn());  // and is gone from the reactor when it is done
}

TEST_CASE("ram and null are somebody else at every start") {
  StoreRig rig;
  for (const std::string spec : {"ram:size=1MiB,huge=never", "null:size=1MiB"}) {
    const auto first = rig.try_open(spec).value();
    const auto second = rig.try_open(spec).value();
    CHECK(first->identity() != second->identity());
    CHECK(first->identity() != Identity{});
    CHECK(first->spec() == spec);
  }
}

TEST_CASE("ram and null have no write cache, and discarded blocks read as zeroes") {
  StoreRig rig;
  for (const std::string spec : {"ram:size=1MiB,huge=never,block=4096", "null:size=1MiB,block=4k"}) {
    const Geometry geometry = rig.try_open(spec).value()->geometry();
    CHECK(geometry.block_shift.block_size() == 4096);
    CHECK(geometry.blocks == Blocks(256));
    CHECK_FALSE(geometry.write_cache);
    CHECK_FALSE(geometry.read_only);
    CHECK(geometry.discard != Ability::none);
    CHECK(geometry.discard_reads_zero);
  }
}

TEST_CASE("null reads as zeroes whatever was written") {
  StoreRig rig;
  rig.open("null:size=1TiB");
  const std::uint64_t last = kTiB / 512 - 16384;
  REQUIRE(rig.write(last, pattern(5 * kMiB, 5)) == StoreStatus::ok);
  CHECK(all_zero(rig.must_read(last, 16384)));  // 8 MiB: the longest transfer
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(rig.discard({rig.range(0, last)}) == StoreStatus::ok);
  CHECK(rig.write_zeroes(rig.range(0, last)) == StoreStatus::ok);
}

TEST_CASE("null keeps what is read apart from what is written") {
  StoreRig rig;
  rig.open("null:size=1GiB");
  Lease read = rig.lease(rig.range(0, 2), Intent::read);
  Lease write = rig.lease(rig.range(0, 2), Intent::write);
  REQUIRE(rig.acquire(read) == StoreStatus::ok);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  CHECK(read.segments[0].lkey != write.segments[0].lkey);
  rig.fill(write, pattern(1024, 2));
  CHECK(all_zero(rig.contents(read)));
  rig.queue->release(read);
  rig.queue->release(write);
}
