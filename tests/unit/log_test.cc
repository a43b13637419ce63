#include "common/log.h"

#include <catch2/catch.hpp>

using namespace rbt;

TEST_CASE("Text from a peer cannot carry control characters into a log") {
  CHECK(printable("nqn.x\n\x1b[31m") == "nqn.x\\x0a\\x1b[31m");
  CHECK(printable("back\\slash") == "back\\x5cslash");
  CHECK(printable("abcdef", 3) == "abc...");
}

TEST_CASE("A rate limit lets one message through per interval and counts the rest") {
  RateLimit limit(std::chrono::seconds(1));
  ManualClock clock;
  CHECK(limit.allow(clock.now()));
  CHECK_FALSE(limit.allow(clock.now()));
  clock.advance(std::chrono::milliseconds(1500));
  CHECK(limit.allow(clock.now()));
  CHECK(limit.take_suppressed() == 1);
  CHECK(limit.take_suppressed() == 0);
}
