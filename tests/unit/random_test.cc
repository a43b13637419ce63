#include "common/random.h"

#include <catch2/catch.hpp>
#include <vector>

using rbt::Random;

TEST_CASE("The same seed gives the same numbers, another seed others") {
  Random a(7), b(7), c(8);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const auto value = a();
    REQUIRE(value == b());
    differs |= value != c();
  }
  CHECK(differs);
}

TEST_CASE("below() reaches every value under its bound and none beyond") {
  Random random(1);
  std::vector<int> seen(7);
  for (int i = 0; i < 700; ++i)
    ++seen.at(random.below(7));
  for (const int count : seen)
    CHECK(count > 50);
}
