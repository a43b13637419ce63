#include "common/units.h"

#include <catch2/catch.hpp>

using namespace rbt;

TEST_CASE("A block range that would wrap around 64 bits is refused") {
  CHECK_FALSE(BlockRange::checked(Lba(~0ULL), Blocks(2), Blocks(100)));
  CHECK_FALSE(BlockRange::checked(Lba(10), Blocks(~0ULL), Blocks(100)));
  CHECK_FALSE(BlockRange::checked(Lba(101), Blocks(0), Blocks(100)));
}

TEST_CASE("A block range may end exactly where the namespace ends") {
  const auto range = BlockRange::checked(Lba(90), Blocks(10), Blocks(100));
  REQUIRE(range);
  CHECK(range->end() == Lba(100));
  CHECK_FALSE(BlockRange::checked(Lba(90), Blocks(11), Blocks(100)));
}

TEST_CASE("Ranges overlap only when they share a block") {
  const BlockRange a{Lba(0), Blocks(8)};
  CHECK(a.overlaps({Lba(7), Blocks(1)}));
  CHECK_FALSE(a.overlaps({Lba(8), Blocks(1)}));
}

TEST_CASE("Only powers of two from 512 to 4096 are block sizes") {
  CHECK(BlockShift::of(512));
  CHECK(BlockShift::of(4096));
  for (std::uint64_t size : {0ULL, 256ULL, 511ULL, 513ULL, 3000ULL, 8192ULL})
    CHECK_FALSE(BlockShift::of(size));
}

TEST_CASE("Blocks that do not fit 64 bits of bytes have no size in bytes") {
  const auto shift = *BlockShift::of(4096);
  CHECK(shift.bytes(Blocks(3)) == Bytes(12288));
  CHECK_FALSE(shift.bytes(Blocks(~0ULL >> 11)));
}
