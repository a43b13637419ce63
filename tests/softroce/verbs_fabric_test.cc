#include <catch2/catch.hpp>

#include "tests/sim/fabric_rig.h"
#include "tests/softroce/verbs_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;

TEST_CASE("Two ends connect over a real device and messages go both ways") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const Rig::Pair pair = rig.connect();
  rig.expect_working(pair);
  CHECK(pair.client.connection->limits().read_depth > 0);
  CHECK(pair.client.connection->limits().segments_max >= 4);
}
