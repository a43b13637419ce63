#include "tests/softroce/verbs_under_test.h"

using namespace rbt::test;

TEST_CASE("The verbs fabric keeps the contract of all fabrics") {
  for (const auto claims : {connection_claims(), transfer_claims()})
    for (const Claim& claim : claims)
      DYNAMIC_SECTION(claim.name) {
        VerbsUnderTest fabric;
        claim.check(fabric);
      }
}
