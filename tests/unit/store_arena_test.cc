// Memory that many stores share.

#include <algorithm>
#include <set>

#include "store_rig.h"
#include "target/store/shared_arena.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

struct ArenaRig : private SharedArena, StoreRig {
  std::unique_ptr<Store> another(const std::string& spec) {
    auto surroundings = environment();
    surroundings.arena = this;
    auto opened = make_store(spec, surroundings);
    INFO((opened ? std::string() : opened.error().message()));
    REQUIRE(opened);
    return std::move(*opened);
  }
  /// As StoreRig::open(), in the arena.
  void open(const std::string& spec) {
    store = another(spec);
    REQUIRE(store->prepare(domain, 0));
    queue = open_queue();
  }
  /// Where a store's memory lies.
  transport::MemorySpan place(Store& of) {
    REQUIRE(of.prepare(domain, 0));
    return domain.last_span;
  }
};

}  // namespace

TEST_CASE("Small stores lie side by side in one memfd, and are registered each for itself") {
  ArenaRig rig;
  const int before = rig.domain.registrations;
  const auto one = rig.another("ram:size=64KiB"), two = rig.another("ram:size=5KiB"),
             three = rig.another("ram:size=1MiB");
  const auto first = rig.place(*one), second = rig.place(*two), third = rig.place(*three);
  CHECK(first.fd == second.fd);
  CHECK(first.fd == third.fd);
  CHECK(first.size == 64 * kKiB);
  CHECK(second.size == 8 * kKiB);  // whole pages
  CHECK(second.data == first.data + first.size);
  CHECK(second.fd_offset == first.fd_offset + first.size);
  CHECK(third.data == second.data + second.size);
  CHECK(rig.domain.registrations == before + 3);
}

TEST_CASE("A large store has a memfd of its own") {
  ArenaRig rig;
  const auto small = rig.another("ram:size=16MiB,huge=never"), large = rig.another("ram:size=16385KiB,huge=never");
  CHECK(rig.place(*small).fd != rig.place(*large).fd);
  CHECK(rig.place(*large).fd_offset == 0);
}

TEST_CASE("A part that is given back is zeroes for the next one") {
  ArenaRig rig;
  const auto neighbour = rig.another("ram:size=64KiB");  // keeps the memfd
  rig.open("ram:size=64KiB");
  const auto before = rig.place(*rig.store);
  REQUIRE(rig.write(0, pattern(64 * kKiB, 5)) == StoreStatus::ok);
  rig.close();
  rig.open("ram:size=64KiB");
  CHECK(rig.place(*rig.store).data == before.data);
  CHECK(rig.must_read(0, 128) == std::vector<std::byte>(64 * kKiB));
}

TEST_CASE("Parts that are given back are one hole again, in any order") {
  ArenaRig rig;
  const auto neighbour = rig.another("ram:size=4KiB");
  std::vector<std::size_t> order{0, 1, 2};
  do {
    std::vector<std::unique_ptr<Store>> three;
    for (int i = 0; i < 3; ++i)
      three.push_back(rig.another("ram:size=64KiB"));
    const auto first = rig.place(*three[0]);
    for (const std::size_t each : order)
      three[each].reset();
    const auto whole = rig.another("ram:size=192KiB");
    CHECK(rig.place(*whole).data == first.data);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("A discard of all of a store finds what it has written, and ends where the store does") {
  ArenaRig rig;
  rig.open("ram:size=1MiB");
  auto first = std::move(rig.store);
  auto first_queue = std::move(rig.queue);
  const auto swap = [&] {
    rig.store.swap(first);
    rig.queue.swap(first_queue);
  };
  rig.open("ram:size=1MiB");  // behind it
  const auto data = pattern(4096, 3);
  const std::vector<std::byte> zeroes(4096);
  REQUIRE(rig.write(2040, data) == StoreStatus::ok);
  REQUIRE(rig.discard({StoreRig::range(0, 2048)}) == StoreStatus::ok);
  CHECK(rig.must_read(2040, 8) == zeroes);
  REQUIRE(rig.write(0, data) == StoreStatus::ok);
  swap();
  REQUIRE(rig.write(2040, data) == StoreStatus::ok);
  REQUIRE(rig.discard({StoreRig::range(0, 2048)}) == StoreStatus::ok);
  CHECK(rig.must_read(2040, 8) == zeroes);
  swap();
  CHECK(rig.must_read(0, 8) == data);
  first_queue.reset();
}

TEST_CASE("A small shadow store has no more landing blocks than blocks, and they suffice for its longest write") {
  ArenaRig rig;
  rig.open("ram:size=64KiB,atomic=shadow");
  CHECK(rig.domain.last_span.size == 64 * kKiB);  // registered last
  const auto data = pattern(64 * kKiB, 9);
  for (int i = 0; i < 3; ++i) {
    REQUIRE(rig.write(0, data) == StoreStatus::ok);
    CHECK(rig.must_read(0, 128) == data);
  }
  REQUIRE(rig.write_zeroes(StoreRig::range(0, 128)) == StoreStatus::ok);
  CHECK(rig.must_read(0, 128) == std::vector<std::byte>(64 * kKiB));
}

TEST_CASE("All null stores lend the same memory, registered once") {
  ArenaRig rig;
  const int before = rig.domain.registrations;
  std::set<const std::byte*> places;
  std::vector<std::unique_ptr<Store>> stores;
  for (std::uint64_t i = 0; i < 100; ++i) {
    rig.open("null:size=1TiB");
    for (const Intent intent : {Intent::read, Intent::write}) {
      Lease lease = rig.lease(StoreRig::range(i, 1), intent);
      REQUIRE(rig.acquire(lease) == StoreStatus::ok);
      places.insert(lease.segments[0].data);
      rig.queue->release(lease);
    }
    rig.queue.reset();
    stores.push_back(std::move(rig.store));
  }
  CHECK(places.size() == 2);
  CHECK(rig.domain.registrations == before + 2);
}
