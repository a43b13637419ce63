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

TEST_CASE(
    "A landing that cannot read the data, or whose region goes meanwhile, costs the connection, and is asked no more") {
  struct Writer final : Landing {
    std::size_t land(std::byte*, std::span<const std::byte> data) noexcept override {
      ++calls;
      region.reset();
      return unreadable ? 0 : 2 * data.size();
    }
    std::unique_ptr<MemoryRegion> region;
    bool unreadable = false;
    int calls = 0;
  } writer;
  writer.unreadable = GENERATE(false, true);
  ShmUnderTest fabric;
  Rig rig(fabric);
  const auto pair = rig.connect();
  const auto other = rig.connect();
  constexpr std::size_t kSize = 1 << 20;  // several turns'
  const Buffer far(fabric.client().domain(), kSize, RemoteAccess::read);
  const auto memory = SharedMemory::create(Bytes(kSize), {}).value();
  MemorySpan span = memory.span();
  span.landing = &writer;
  writer.region = fabric.server().domain().register_memory(span, RemoteAccess::none).value();
  const Segment segment{span.data, kSize, writer.region->lkey()};
  const WorkRequest read{
      .opcode = Opcode::rdma_read, .rkey = far.rkey(), .remote_address = far.address(), .segments = {&segment, 1}};
  const std::uint64_t before = rig.server.group->counters().bytes_copied;
  REQUIRE(pair.server.connection->post({&read, 1}) == PostResult::posted);
  rig.expect([&] { return pair.server.disconnected.has_value(); }, "the connection dies");
  REQUIRE(pair.server.completed() == 1);
  CHECK(pair.server.done[0].status ==
        (writer.unreadable ? CompletionStatus::remote_access_error : CompletionStatus::local_error));
  CHECK(writer.calls == 1);
  const std::uint64_t copied = rig.server.group->counters().bytes_copied - before;
  CHECK((writer.unreadable ? copied == 0 : copied >= 8192 && copied % 8192 == 0));  // twice, as the landing says
  rig.expect_working(other);
}
