#include <catch2/catch.hpp>

#include "tests/sim/sim_under_test.h"

using namespace rbt::test;

TEST_CASE("The simulated fabric keeps the contract of all fabrics") {
  for (const auto claims : {connection_claims(), transfer_claims()})
    for (const Claim& claim : claims)
      DYNAMIC_SECTION(claim.name) {
        SimUnderTest fabric({.seed = 3});
        claim.check(fabric);
      }
}

TEST_CASE("The contract holds for other seeds, with loss, stalls and missing buffers") {
  const auto seed = GENERATE(range<std::uint64_t>(100, 110));
  for (const auto claims : {connection_claims(), transfer_claims()})
    for (const Claim& claim : claims) {
      INFO("seed " << seed << ": " << claim.name);
      SimUnderTest fabric({.seed = seed, .check_posted_memory = true});
      fabric.network.faults().plan({.packet_lost = 500, .not_ready = 20, .stalled = 200});
      claim.check(fabric);
      CHECK(fabric.network.violations() == 0);
    }
}
