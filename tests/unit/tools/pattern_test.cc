#include "tools/rbt-perf/pattern.h"

#include <catch2/catch.hpp>
#include <vector>

using namespace rbt;
using namespace rbt::tools;

TEST_CASE("A stamped block is recognised; any other LBA, generation, run or byte is named") {
  const std::size_t size = GENERATE(std::size_t{512}, std::size_t{4096});
  std::vector<std::byte> block(size);
  stamp(block, Lba(7), 3, 99);
  CHECK_FALSE(mismatch(block, Lba(7), 3, 99));
  CHECK_THAT(*mismatch(block, Lba(8), 3, 99), Catch::Contains("the block of LBA 7 is here"));
  CHECK_THAT(*mismatch(block, Lba(7), 4, 99), Catch::Contains("a lost write"));
  CHECK_THAT(*mismatch(block, Lba(7), 2, 99), Catch::Contains("from the future"));
  CHECK_THAT(*mismatch(block, Lba(7), 3, 98), Catch::Contains("another run"));
  for (const std::size_t at : {std::size_t{40}, size / 2, size - 1}) {
    auto damaged = block;
    damaged[at] ^= std::byte{1};
    CHECK_THAT(*mismatch(damaged, Lba(7), 3, 99), Catch::Contains("torn or damaged"));
  }
  std::fill(block.begin(), block.end(), std::byte{0});
  CHECK_THAT(*mismatch(block, Lba(7), 3, 99), Catch::Contains("not a block of ours"));
}
