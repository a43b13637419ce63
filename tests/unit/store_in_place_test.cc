// Blocks that are written where they lie: who waits for whom, and which writes go by way of a buffer.

#include <deque>

#include "store_rig.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

/// A lease, and the request that waits for it.
struct Access {
  Access(StoreRig& rig, StoreQueue& on, std::uint64_t lba, std::uint64_t count, Intent intent, std::uint32_t mtu = 0)
      : queue(on), lease(rig.lease(StoreRig::range(lba, count), intent)) {
    lease.path_mtu = mtu;
    request.began(queue.acquire(lease, request));
  }
  [[nodiscard]] bool has_it() const { return request.done() && request.status == StoreStatus::ok; }
  StoreQueue& queue;
  Lease lease;
  Waited request;
};

}  // namespace

TEST_CASE("A reader of ram waits for the writer of its blocks, and a writer for its readers") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never,block=4096");
  const auto other = rig.open_queue();  // of another reactor's, as far as the lock can tell
  Access writer(rig, *rig.queue, 8, 4, Intent::write);
  REQUIRE(writer.has_it());
  Access reader(rig, *other, 11, 1, Intent::read);
  Access beside(rig, *other, 12, 1, Intent::read);
  CHECK_FALSE(reader.request.done());
  CHECK(beside.has_it());
  rig.queue->release(writer.lease);
  CHECK_FALSE(reader.request.done());
  rig.reactor().turn();
  REQUIRE(reader.has_it());
  Access again(rig, *rig.queue, 0, 16, Intent::write);
  CHECK_FALSE(again.request.done());
  other->release(reader.lease);
  rig.reactor().turn();
  CHECK_FALSE(again.request.done());
  other->release(beside.lease);
  rig.reactor().turn();
  REQUIRE(again.has_it());
  rig.queue->release(again.lease);
}

TEST_CASE("A write of packets smaller than a block is not in its place before all of it is there") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never,block=4096");
  const auto before = pattern(8192, 1);
  const auto after = pattern(8192, 2);
  REQUIRE(rig.write(5, before) == StoreStatus::ok);
  const auto copied = rig.queue->bytes_copied();
  Access write(rig, *rig.queue, 5, 2, Intent::write, 1024);
  REQUIRE(write.has_it());
  rig.fill(write.lease, after);
  CHECK(rig.must_read(5, 2) == before);
  SECTION("and is there with the commit") {
    CHECK(rig.finish([&](StoreRequest& request) {
      return rig.queue->commit(write.lease, Durability::cached, request);
    }) == StoreStatus::ok);
    CHECK(rig.must_read(5, 2) == after);
    CHECK(rig.queue->bytes_copied() == copied + 8192);
  }
  SECTION("and never without") {
    rig.queue->release(write.lease);
    CHECK(rig.must_read(5, 2) == before);
    return;
  }
  SECTION("and waits for its readers with the commit") {
    Access reader(rig, *rig.queue, 6, 1, Intent::read);
    REQUIRE(reader.has_it());
    Waited commit;
    commit.began(rig.queue->commit(write.lease, Durability::cached, commit));
    rig.reactor().turn();
    CHECK_FALSE(commit.done());
    CHECK(rig.contents(reader.lease) == std::vector(before.begin() + 4096, before.end()));
    rig.queue->release(reader.lease);
    rig.reactor().turn();
    REQUIRE(commit.done());
    CHECK(rig.must_read(5, 2) == after);
  }
  rig.queue->release(write.lease);
}

TEST_CASE("Packets that hold a block go straight into its place") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never");
  for (const std::uint32_t mtu : {0u, 512u, 1024u, 4096u}) {
    Access write(rig, *rig.queue, 7, 3, Intent::write, mtu);
    REQUIRE(write.has_it());
    Access neighbour(rig, *rig.queue, 6, 1, Intent::read, mtu);
    REQUIRE(neighbour.has_it());
    CHECK(write.lease.segments[0].data == neighbour.lease.segments[0].data + 512);
    rig.queue->release(write.lease);
    rig.queue->release(neighbour.lease);
  }
  CHECK(rig.queue->bytes_copied() == 0);
  CHECK(rig.buffers().free_bytes() == rig.buffers().size());
}

TEST_CASE("atomic=in-place is done, also where it tears blocks, and said once") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never,block=4096,atomic=in-place");
  CHECK(rig.journal.count("half new") == 0);
  for (int i = 0; i < 2; ++i)
    REQUIRE(rig.store->prepare(rig.domain, 1024));
  CHECK(rig.journal.count("half new") == 1);
  const auto before = pattern(4096, 1);
  REQUIRE(rig.write(5, before) == StoreStatus::ok);
  Access write(rig, *rig.queue, 5, 1, Intent::write, 1024);
  rig.fill(write.lease, pattern(4096, 2));
  rig.queue->release(write.lease);
  CHECK(rig.must_read(5, 1) != before);
}

TEST_CASE("A staged write waits for a buffer, first come, first served") {
  StoreRig rig(Bytes(2 * kMiB));
  rig.open("ram:size=8MiB,huge=never,block=4096");
  std::deque<Access> writes;
  for (std::uint64_t i = 0; i < 4; ++i)
    writes.emplace_back(rig, *rig.queue, i * 256, 256, Intent::write, 1024);
  CHECK(writes[1].has_it());
  CHECK_FALSE(writes[2].request.done());
  rig.queue->release(writes[0].lease);
  rig.reactor().turn();
  CHECK(writes[2].has_it());
  CHECK_FALSE(writes[3].request.done());
  rig.queue->release(writes[1].lease);
  rig.reactor().turn();
  REQUIRE(writes[3].has_it());
  rig.queue->release(writes[2].lease);
  rig.queue->release(writes[3].lease);
}

TEST_CASE("Zeroing ram waits for whoever uses the blocks, and goes on by itself") {
  StoreRig rig;
  rig.open("ram:size=4MiB,huge=never");
  const auto data = pattern(4 * kMiB, 3);
  REQUIRE(rig.write(0, data) == StoreStatus::ok);
  Access reader(rig, *rig.queue, 5000, 1, Intent::read);
  Waited zeroes;
  zeroes.began(rig.queue->write_zeroes(rig.range(0, 8192), StoreQueue::Deallocate::no, Durability::cached, zeroes));
  Waited second;
  second.began(rig.queue->write_zeroes(rig.range(8000, 1), StoreQueue::Deallocate::no, Durability::cached, second));
  for (int turn = 0; turn < 20; ++turn)
    rig.reactor().turn();
  CHECK_FALSE(zeroes.done());
  CHECK_FALSE(second.done());
  CHECK_FALSE(rig.reactor().turn());  // waits, and does not spin
  CHECK(rig.contents(reader.lease) == std::vector(data.begin() + 5000 * 512, data.begin() + 5001 * 512));
  rig.queue->release(reader.lease);
  rig.run_until([&] { return zeroes.done() && second.done(); });
  CHECK(rig.must_read(0, 8192) == std::vector<std::byte>(4 * kMiB));
}

TEST_CASE("What ram says of atomic writes is what it does") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never");
  const Geometry geometry = rig.store->geometry();
  CHECK(geometry.atomic_write == Blocks(1024));  // 512 KiB
  CHECK(geometry.atomic_write_failing == Blocks(1));
}
