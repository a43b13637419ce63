// What the shm fabric promises beyond the contract of all fabrics, both ends in one thread.

#include <catch2/catch.hpp>

#include "tests/shm/shm_under_test.h"
#include "tests/sim/fabric_rig.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;

TEST_CASE("Messages go both ways and writes land before the message behind them") {
  ShmUnderTest fabric;
  Rig rig(fabric);
  const auto pair = rig.connect();
  rig.expect_working(pair);

  Buffer from(fabric.server().domain(), 65536, RemoteAccess::none);
  Buffer to(fabric.client().domain(), 65536, RemoteAccess::read_write);
  from.fill(pattern(65536, 7));
  bool landed = false;
  pair.client.on_any = [&](const Completion& completion) {
    if (completion.type == Completion::Type::receive) landed = to.bytes(0, 65536) == pattern(65536, 7);
  };
  pair.server.post_write(from, to, 65536, 1);
  pair.server.post_send(from, 0, 16, 2);
  rig.expect([&] { return pair.client.messages.size() == 2 && pair.server.completed() == 3; }, "the message arrives");
  CHECK(landed);

  Buffer back(fabric.server().domain(), 65536, RemoteAccess::none);
  pair.server.post_read(back, to, 65536, 3);
  rig.expect([&] { return pair.server.completed() == 4; }, "the read completes");
  CHECK(back.bytes(0, 65536) == pattern(65536, 7));
}

TEST_CASE("A transfer larger than a turn's budget is carried out over several turns") {
  ShmUnderTest fabric;
  Rig rig(fabric);
  const auto pair = rig.connect();
  const std::size_t size = 5'000'003;
  Buffer from(fabric.server().domain(), size, RemoteAccess::none);
  Buffer to(fabric.client().domain(), size, RemoteAccess::write);
  from.fill(pattern(size, 3));
  pair.server.post_write(from, to, size, 1);
  rig.expect([&] { return pair.server.completed() == 1; }, "the write completes");
  CHECK(to.bytes(0, size) == pattern(size, 3));
  CHECK(rig.server.group->counters().bytes_copied >= size);
}
