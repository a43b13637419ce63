// The table that says where blocks lie: what is free, who reads what, and that no place is two things at a time.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "target/store/block_table.h"
#include "target/store/image_table.h"

using namespace rbt;
using namespace rbt::target;

namespace {

using Place = BlockTable::Place;

struct Nobody final : HandOver::Receiver {
  void on_handed_over(HandOver::Record&) override { ++calls; }
  int calls = 0;
};

struct Fixture {
  SystemClock clock;
  std::unique_ptr<transport::Reactor> reactor = transport::Reactor::create(clock, null_logger()).value();
  Nobody receiver;
  HandOver hand_over{*reactor, receiver};
  BlockTable table{Blocks(16), Blocks(4)};
  Place take_one() {
    Place place = 0;
    REQUIRE(table.take({&place, 1}));
    return place;
  }
  void commit(std::uint64_t lba, Place place) {
    BlockTable::Freed freed(table);
    table.commit(Lba(lba), place, freed);
  }
  void unpin(Place place) {
    BlockTable::Freed freed(table);
    table.unpin(place, freed);
  }
  Place where(std::uint64_t lba) {
    const Place place = table.pin(Lba(lba));
    unpin(place);
    return place;
  }
};

}  // namespace

TEST_CASE("A block lies at home until it is written, and then where it was written") {
  Fixture fixture;
  CHECK(fixture.where(7) == 7);
  CHECK(fixture.table.first_moved(Lba(0), Lba(16)) == Lba(16));
  const Place place = fixture.take_one();
  CHECK(place == 16);
  CHECK(fixture.where(7) == 7);
  fixture.commit(7, place);
  CHECK(fixture.where(7) == 16);
  CHECK(fixture.table.free() == 4);
  CHECK(fixture.table.first_moved(Lba(0), Lba(16)) == Lba(7));
  CHECK(fixture.table.first_moved(Lba(8), Lba(16)) == Lba(16));
  for (const Place expected : {17u, 18u, 19u, 7u})  // first free, first taken
    CHECK(fixture.take_one() == expected);
}

TEST_CASE("A place that is read is not free before its last reader has left") {
  Fixture fixture;
  const Place first = fixture.table.pin(Lba(3));
  const Place second = fixture.table.pin(Lba(3));
  CHECK(first == second);
  fixture.commit(3, fixture.take_one());
  CHECK(fixture.table.free() == 3);
  const Place late = fixture.table.pin(Lba(3));
  CHECK(late == 16);
  fixture.unpin(first);
  CHECK(fixture.table.free() == 3);
  fixture.unpin(second);
  CHECK(fixture.table.free() == 4);
  fixture.unpin(late);
  CHECK(fixture.table.free() == 4);
}

TEST_CASE("A block of zeroes keeps its place until it is written, and whoever reads there keeps what he reads") {
  Fixture fixture;
  const Place reader = fixture.table.pin(Lba(3));
  fixture.table.zero(Lba(3));
  CHECK(fixture.where(3) == BlockTable::kZeroes);
  CHECK(fixture.table.look(Lba(3)).place == 3);
  CHECK(fixture.table.first_moved(Lba(0), Lba(16)) == Lba(3));
  CHECK(fixture.table.free() == 4);
  fixture.commit(3, fixture.take_one());
  CHECK(fixture.where(3) == 16);
  CHECK(fixture.table.free() == 3);
  fixture.unpin(reader);
  CHECK(fixture.table.free() == 4);
}

TEST_CASE("A table that was kept is the same again, and two blocks at one place are noticed") {
  Fixture fixture;
  fixture.table.restore(Lba(2), 17, false);
  fixture.table.restore(Lba(5), 2, true);
  SECTION("each has its own") {
    REQUIRE_FALSE(fixture.table.restored());
    CHECK(fixture.where(2) == 17);
    CHECK(fixture.where(5) == BlockTable::kZeroes);
    CHECK(fixture.where(6) == 6);
    for (const Place expected : {5u, 16u, 18u, 19u})
      CHECK(fixture.take_one() == expected);
  }
  SECTION("two at one") {
    fixture.table.restore(Lba(9), 17, false);
    CHECK(fixture.table.restored() == Lba(9));
  }
}

TEST_CASE("Who waits for places gets them in order, however few the next one wants") {
  Fixture fixture;
  std::array<Place, 4> all{};
  REQUIRE(fixture.table.take(all));
  std::array<Place, 3> three{};
  std::array<Place, 1> one{};
  BlockTable::Wait first;
  BlockTable::Wait second;
  REQUIRE_FALSE(fixture.table.take_or_wait(three, first, fixture.hand_over));
  fixture.hand_over.expect();
  REQUIRE_FALSE(fixture.table.take_or_wait(one, second, fixture.hand_over));
  fixture.hand_over.expect();
  for (int i = 0; i < 3; ++i) {
    fixture.reactor->turn();
    CHECK(fixture.receiver.calls == 0);
    fixture.commit(static_cast<std::uint64_t>(i), all.at(static_cast<std::size_t>(i)));
  }
  Place stolen = 0;
  CHECK_FALSE(fixture.table.take({&stolen, 1}));  // what is free is the first one's
  fixture.reactor->turn();
  CHECK(fixture.receiver.calls == 1);
  fixture.table.take_reserved(three);
  CHECK(three == std::array<Place, 3>{0, 1, 2});
  fixture.commit(9, all[3]);
  fixture.reactor->turn();
  CHECK(fixture.receiver.calls == 2);
  fixture.table.take_reserved(one);
  CHECK(fixture.table.waits() == 2);
}

TEST_CASE("Readers and writers on many threads never see a block that is half new, and no place is lost") {
  constexpr std::size_t kBlocks = 8;
  constexpr std::size_t kSpare = 6;
  constexpr std::size_t kWords = 16;
  BlockTable table{Blocks(kBlocks), Blocks(kSpare)};
  std::vector<std::array<std::uint64_t, kWords>> places(kBlocks + kSpare);  // guarded by the table; tsan looks
  std::vector<std::thread> threads;
  std::atomic<int> mixed{0};
  for (std::uint64_t seed = 1; seed <= 2; ++seed)
    threads.emplace_back([&, seed] {
      Random random(seed);
      for (std::uint64_t round = 0; round < 20000; ++round) {
        std::array<Place, 2> taken{};
        const std::span<Place> wanted(taken.data(), 1 + random.below(2));
        if (!table.take(wanted)) continue;
        for (const Place place : wanted)
          places[place].fill(seed << 32 | round);
        BlockTable::Freed freed(table);
        for (const Place place : wanted) {
          if (random.below(8) == 0)
            freed.add(place);  // a connection that was lost
          else
            table.commit(Lba(random.below(kBlocks)), place, freed);
        }
      }
    });
  for (std::uint64_t seed = 3; seed <= 4; ++seed)
    threads.emplace_back([&, seed] {
      Random random(seed);
      for (int round = 0; round < 20000; ++round) {
        const Place place = table.pin(Lba(random.below(kBlocks)));
        const auto& words = places[place];
        for (const std::uint64_t word : words)
          if (word != words[0]) mixed.fetch_add(1);
        BlockTable::Freed freed(table);
        table.unpin(place, freed);
      }
    });
  for (auto& thread : threads)
    thread.join();
  CHECK(mixed.load() == 0);
  CHECK(table.free() == kSpare);
}

namespace {

/// A table in a file, of which a page is written at a time.
struct Pages final : TableMedium {
  explicit Pages(std::vector<std::uint64_t>& kept) : entries(kept) {}
  StoreStatus write_entries(Lba first, std::span<const std::uint64_t> wanted) override {
    std::copy(wanted.begin(), wanted.end(), entries.begin() + static_cast<std::ptrdiff_t>(first.value()));
    return StoreStatus::ok;
  }
  std::vector<std::uint64_t>& entries;  // guarded by the table's locks; tsan looks
};

}  // namespace

TEST_CASE("Many threads that move and zero the same blocks leave one table in memory and in the file") {
  const ShadowLayout layout{BlockShift::of(512).value(), Blocks(520), Blocks(16)};
  ImageTable table(layout);
  std::vector<std::uint64_t> kept(layout.blocks.value());
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 1; seed <= 3; ++seed)
    threads.emplace_back([&, seed] {
      Pages medium(kept);
      Random random(seed);
      for (int round = 0; round < 5000; ++round) {
        const Lba first(500 + random.below(17));  // across the end of a page
        std::array<Place, 4> places{};
        if (random.below(4) == 0)
          static_cast<void>(table.zero({first, Blocks(3)}, medium));
        else if (table.blocks().take(places))
          static_cast<void>(table.move(first, places, medium));
      }
    });
  for (auto& thread : threads)
    thread.join();
  const ImageTable::Read read = [&](std::uint64_t offset, std::span<std::byte> bytes) -> Result<void> {
    std::memcpy(bytes.data(), kept.data() + (offset - layout.entry_offset(Lba(0))) / 8, bytes.size());
    return {};
  };
  CHECK(table.blocks().free() == layout.landing.value());
  CHECK(table.compare(read));
  ImageTable next(layout);
  CHECK(next.load(read));
  kept[510] ^= 1;
  CHECK_FALSE(table.compare(read));
  CHECK(table.broken());
}
