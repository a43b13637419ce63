#include <catch2/catch.hpp>

#include "tests/shm/shm_under_test.h"
#include "tests/sim/fabric_contract.h"

using namespace rbt::test;

TEST_CASE("The shared memory fabric keeps the contract of all fabrics") {
  for (const auto claims : {connection_claims(), transfer_claims()})
    for (const Claim& claim : claims)
      DYNAMIC_SECTION(claim.name) {
        ShmUnderTest fabric;
        claim.check(fabric);
      }
}
