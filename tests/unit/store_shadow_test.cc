// ram with atomic=shadow: data lands elsewhere, and becomes the block with the commit.

#include <deque>
#include <map>

#include "store_rig.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

struct Access {
  Access(StoreRig& rig, std::uint64_t lba, std::uint64_t count, Intent intent)
      : queue(*rig.queue), lease(rig.lease(StoreRig::range(lba, count), intent)) {
    lease.path_mtu = 1024;
    request.began(queue.acquire(lease, request));
  }
  [[nodiscard]] bool has_it() const { return request.done() && request.status == StoreStatus::ok; }
  void commit() {
    Waited done;
    done.began(queue.commit(lease, Durability::cached, done));
    REQUIRE(done.status == StoreStatus::ok);
  }
  StoreQueue& queue;
  Lease lease;
  Waited request;
};

}  // namespace

TEST_CASE("A write in the shadow is not there before its commit, and readers keep the block that they have") {
  StoreRig rig;
  rig.open("ram:size=1MiB,huge=never,block=4096,atomic=shadow");
  const auto before = pattern(8192, 1);
  const auto after = pattern(8192, 2);
  REQUIRE(rig.write(5, before) == StoreStatus::ok);
  Access reader(rig, 5, 2, Intent::read);
  Access write(rig, 5, 2, Intent::write);
  Access other(rig, 5, 2, Intent::write);  // nobody waits
  REQUIRE((reader.has_it() && write.has_it() && other.has_it()));
  rig.fill(write.lease, after);
  rig.fill(other.lease, pattern(8192, 3));
  CHECK(rig.must_read(5, 2) == before);
  write.commit();
  CHECK(rig.must_read(5, 2) == after);
  CHECK(rig.contents(reader.lease) == before);
  rig.queue->release(other.lease);  // a connection that was lost
  CHECK(rig.must_read(5, 2) == after);
  rig.queue->release(write.lease);
  rig.queue->release(reader.lease);
  CHECK(rig.must_read(5, 2) == after);
  CHECK(rig.queue->bytes_copied() == 0);
}

TEST_CASE("Neighbours are one segment, and the segments of a scattered lease hold all of it") {
  StoreRig rig;
  rig.open("ram:size=4MiB,huge=never,atomic=shadow");
  Access whole(rig, 0, 4096, Intent::read);
  CHECK(whole.lease.segments.size() == 1);
  rig.queue->release(whole.lease);
  auto model = pattern(4 * kMiB, 7);
  REQUIRE(rig.write(0, model) == StoreStatus::ok);
  Random random(11);
  for (int i = 0; i < 3000; ++i) {
    const auto lba = random.below(8000);
    const auto data = pattern(512 * (1 + random.below(5)), random.below(1u << 30));
    std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(lba * 512));
    REQUIRE(rig.write(lba, data) == StoreStatus::ok);
  }
  Access scattered(rig, 0, 4096, Intent::read);
  CHECK(scattered.lease.segments.size() > 1000);
  rig.queue->release(scattered.lease);
  CHECK(rig.must_read(0, 8192) == model);
  rig.queue = rig.open_queue();
  CHECK(rig.must_read(0, 8192) == model);
}

TEST_CASE("Landing blocks are bounded: who finds none waits until some are free") {
  StoreRig rig;
  rig.open("ram:size=32MiB,huge=never,block=4096,atomic=shadow");  // 4 MiB to land in
  std::deque<Access> writes;
  for (std::uint64_t i = 0; i < 4; ++i)
    writes.emplace_back(rig, i * 512, 512, Intent::write);
  CHECK(writes[1].has_it());
  CHECK_FALSE(writes[2].request.done());
  Waited zeroes;
  zeroes.began(rig.queue->write_zeroes(rig.range(4000, 8), StoreQueue::Deallocate::no, Durability::cached, zeroes));
  for (int turn = 0; turn < 5; ++turn)
    rig.reactor().turn();
  CHECK_FALSE(zeroes.done());
  writes[0].commit();  // what it replaces is free
  rig.reactor().turn();
  CHECK(writes[2].has_it());
  rig.queue->release(writes[0].lease);
  rig.queue->release(writes[1].lease);  // not committed
  rig.reactor().turn();
  CHECK(writes[3].has_it());
  rig.queue->release(writes[2].lease);
  rig.run_until([&] { return zeroes.done(); });
  rig.queue->release(writes[3].lease);
  CHECK(rig.must_read(0, 512) != std::vector<std::byte>(512 * 4096, std::byte{1}));
}

TEST_CASE("Zeroes in the shadow leave readers what they read, and reach blocks that have moved") {
  StoreRig rig;
  rig.open("ram:size=8GiB,huge=never,block=4096,atomic=shadow");
  const std::uint64_t far = 2 * kGiB / 4096;
  REQUIRE(rig.write(far, pattern(16384, 1)) == StoreStatus::ok);
  REQUIRE(rig.write(far, pattern(16384, 2)) == StoreStatus::ok);
  Access reader(rig, far + 1, 1, Intent::read);
  const auto seen = rig.contents(reader.lease);
  SECTION("a discard of everything") {
    REQUIRE(rig.discard({rig.range(0, 8 * kGiB / 4096)}) == StoreStatus::ok);
  }
  SECTION("a write of zeroes") {
    REQUIRE(rig.write_zeroes(rig.range(far - 1, 6)) == StoreStatus::ok);
  }
  CHECK(rig.must_read(far - 1, 6) == std::vector<std::byte>(6 * 4096));
  CHECK(rig.contents(reader.lease) == seen);
  rig.queue->release(reader.lease);
}

TEST_CASE("A store that may choose takes the shadow if the first connection's packets are smaller than its blocks") {
  StoreRig rig;
  const auto moves = [&](const std::string& spec, std::uint32_t first_mtu) {
    rig.close();
    rig.store = rig.try_open(spec).value();
    REQUIRE(rig.store->prepare(rig.domain, first_mtu));
    REQUIRE(rig.store->prepare(rig.domain, 1024));  // who comes later changes nothing
    rig.queue = rig.open_queue();
    Access write(rig, 3, 1, Intent::write);
    const auto* const landed = write.lease.segments[0].data;
    write.commit();
    rig.queue->release(write.lease);
    Access read(rig, 3, 1, Intent::read);
    const auto* const home = read.lease.segments[0].data;
    rig.queue->release(read.lease);
    const Access again(rig, 3, 1, Intent::write);
    const bool shadow = home == landed && again.lease.segments[0].data != home && rig.queue->bytes_copied() == 0 &&
                        rig.buffers().free_bytes() == rig.buffers().size();
    Lease last = again.lease;
    rig.queue->release(last);
    return shadow;
  };
  const std::string big = "ram:size=1MiB,huge=never,block=4096";
  CHECK(moves(big, 1024));
  CHECK(moves(big + ",atomic=auto", 2048));
  CHECK_FALSE(moves(big, 4096));
  CHECK_FALSE(moves(big, 0));
  CHECK_FALSE(moves("ram:size=1MiB,huge=never", 1024));
  CHECK(moves(big + ",atomic=shadow", 0));
  rig.close();
}

TEST_CASE("What ram may become is what it says of atomic writes") {
  StoreRig rig;
  for (const std::string spec : {"ram:size=1MiB,block=4096", "ram:size=1MiB,atomic=shadow"})
    CHECK(rig.try_open(spec).value()->geometry().atomic_write == Blocks(1));
  for (const std::string spec : {"ram:size=1MiB,block=4096,atomic=in-place", "ram:size=1MiB"})
    CHECK(rig.try_open(spec).value()->geometry().atomic_write > Blocks(1));
}
