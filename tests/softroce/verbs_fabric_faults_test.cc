// The verbs fabric when peers die, stop or go, and when the network changes under it.

#include <algorithm>

#include "tests/sim/fabric_rig.h"
#include "tests/softroce/process.h"
#include "tests/softroce/verbs_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using Catch::Matchers::Contains;

namespace {

constexpr const char* kPeer = "verbs_fabric_peer";

// A peer process connected to the rig's server.
End& accept_from(Rig& rig, Process& peer) {
  rig.expect([&] { return !rig.server.requests.empty(); }, "the peer's connect arrives");
  End& end = rig.server.accept();
  rig.expect([&] { return end.established && peer.said("established"); }, "both ends are established");
  return end;
}

}  // namespace

TEST_CASE("A peer that is killed is heard of within two seconds, and the rest goes on") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const auto bystander = rig.connect();
  Process peer(kPeer, {"connect", rig_address(), "4420"});
  End& server = accept_from(rig, peer);
  const Instant killed = fabric.clock().now();
  peer.signal(SIGKILL);
  rig.expect([&] { return server.disconnected.has_value(); }, "the server hears of it");
  CHECK(fabric.clock().now() - killed < std::chrono::seconds(2));
  CHECK(*server.disconnected == Disconnect::Reason::peer_closed);
  server.connection->close();
  rig.expect([&] { return server.closed; }, "it closes");
  rig.expect_working(bystander);
}

TEST_CASE("Peers killed in the middle of messages cost no receive buffers") {
  VerbsUnderTest fabric;
  Rig rig(fabric, {.receive_depth = 8, .receive_size = 256 * 1024});  // messages of 64 packets
  rig.server.listen(fabric.address());
  for (int round = 0; round < 10; ++round) {
    Process peer(kPeer, {"stream", rig_address(), "4420", std::to_string(256 * 1024)});
    End& server = accept_from(rig, peer);
    rig.expect([&] { return server.messages.size() >= 3; }, "messages stream in");
    peer.signal(SIGKILL);
    rig.expect([&] { return server.disconnected.has_value(); }, "the server hears of it");
    server.connection->close();
    rig.expect([&] { return server.closed; }, "it closes");
    rig.server.ends.clear();
  }
  // All eight can be lent at once.
  const auto pair = rig.connect();
  rig.server.hold_receives = true;
  Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::none);
  for (std::uint64_t i = 0; i < 8; ++i)
    pair.client.post_send(buffer, 0, 64, i);
  rig.expect([&] { return pair.server.messages.size() == 8; }, "eight messages find a buffer");
}

TEST_CASE("Peers killed in the middle of messages cost no receive buffers while others go on") {
  VerbsUnderTest fabric;
  Rig rig(fabric, {.receive_depth = 8, .receive_size = 256 * 1024});
  const auto bystander = rig.connect();
  for (int round = 0; round < 10; ++round) {
    Process peer(kPeer, {"stream", rig_address(), "4420", std::to_string(256 * 1024)});
    End& server = accept_from(rig, peer);
    rig.expect([&] { return server.messages.size() >= 3; }, "messages stream in");
    peer.signal(SIGKILL);
    rig.expect([&] { return server.disconnected.has_value(); }, "the server hears of it");
    server.connection->close();
    rig.expect([&] { return server.closed; }, "it closes");
    rig.server.ends.pop_back();
    rig.expect_working(bystander);
  }
  for (int i = 0; i < 20; ++i)
    rig.expect_working(bystander);  // two turns of the queue: now it is certain
  rig.server.hold_receives = true;
  const std::size_t heard = bystander.server.messages.size();
  Buffer buffer(bystander.client.connection->domain(), 64, RemoteAccess::none);
  for (std::uint64_t i = 0; i < 8; ++i)
    bystander.client.post_send(buffer, 0, 64, i);
  rig.expect([&] { return bystander.server.messages.size() == heard + 8; }, "eight messages find a buffer");
}

TEST_CASE("While no receive buffer is free, peers still come and go") {
  VerbsUnderTest fabric;
  Rig rig(fabric, {.receive_depth = 8, .receive_size = 4096});
  rig.server.listen(fabric.address());
  rig.server.hold_receives = true;
  Process first(kPeer, {"stream", rig_address(), "4420", "4096"});
  End& stuck = accept_from(rig, first);
  rig.expect([&] { return stuck.messages.size() == 8; }, "all buffers are lent");
  for (int round = 0; round < 5; ++round) {
    Process peer(kPeer, {"stream", rig_address(), "4420", "4096"});
    End& server = accept_from(rig, peer);
    rig.run_a_while();
    peer.signal(SIGKILL);
    rig.expect([&] { return server.disconnected.has_value(); }, "the server hears of its end");
    server.connection->close();
    rig.expect([&] { return server.closed; }, "it closes");
  }
  rig.server.hold_receives = false;
  rig.server.release_held();
  rig.expect([&] { return stuck.messages.size() > 20; }, "the first goes on when there are buffers again");
}

TEST_CASE("A stopped peer cannot keep a connection from closing") {
  VerbsUnderTest fabric;
  Rig rig(fabric, {.receive_depth = 8, .receive_size = 65536});
  rig.server.listen(fabric.address());
  Process peer(kPeer, {"stream", rig_address(), "4420", "65536"});
  End& server = accept_from(rig, peer);
  rig.expect([&] { return server.messages.size() >= 3; }, "messages stream in");
  peer.signal(SIGSTOP);
  const Instant before = fabric.clock().now();
  server.connection->close();
  rig.expect([&] { return server.closed; }, "it closes");
  CHECK(fabric.clock().now() - before < std::chrono::seconds(5));
  rig.expect_working(rig.connect());
}

TEST_CASE("A peer that comes back after being stopped for a while goes on where it was") {
  VerbsUnderTest fabric;
  Rig rig(fabric, {.receive_depth = 8, .receive_size = 65536});
  rig.server.listen(fabric.address());
  Process peer(kPeer, {"stream", rig_address(), "4420", "65536"});
  End& server = accept_from(rig, peer);
  rig.expect([&] { return server.messages.size() >= 3; }, "messages stream in");
  peer.signal(SIGSTOP);
  rig.run_a_while();
  const std::size_t heard = server.messages.size();
  peer.signal(SIGCONT);
  rig.expect([&] { return server.messages.size() > heard + 20; }, "more stream in");
  CHECK(server.healthy());
}

TEST_CASE("A port that goes down for a moment costs no connection") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const auto pair = rig.connect();
  rig.expect_working(pair);
  shell("ip link set dummy0 down");
  rig.run_a_while();
  CHECK(pair.client.healthy());
  shell("ip link set dummy0 up");
  rig.expect_working(pair);
}

TEST_CASE("An address that is removed ends its connections and its listener, and no others") {
  shell("ip address add 10.99.0.2/24 dev dummy0");
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const auto bystander = rig.connect();
  Side other(fabric.server(), fabric.server_reactor(), {.receive_depth = 8, .receive_size = 256});
  const Uri address = rdma_uri("10.99.0.2", 4420);
  const auto listen = [&] {
    auto listening = other.group->listen(address, {}, other);
    if (listening) other.listener = std::move(*listening);
    return listening.has_value();
  };
  rig.expect(listen, "the device has the address");
  End& client = rig.client.connect(address);
  rig.expect([&] { return !other.requests.empty(); }, "the connect arrives");
  End& server = other.accept();
  rig.expect([&] { return client.established && server.established; }, "both ends are established");

  shell("ip address del 10.99.0.2/24 dev dummy0");
  rig.expect([&] { return server.disconnected.has_value() && !other.listener_error.empty(); }, "both are told");
  CHECK(*server.disconnected == Disconnect::Reason::address_changed);
  CHECK_THAT(other.listener_error, Contains("10.99.0.2:4420") && Contains("address was removed"));
  server.connection->close();
  rig.expect([&] { return server.closed; }, "it closes");
  rig.expect_working(bystander);

  shell("ip address add 10.99.0.2/24 dev dummy0");
  other.listener.reset();
  rig.expect(listen, "it listens again when the address is back");
  End& again = rig.client.connect(address);
  rig.expect([&] { return !other.requests.empty(); }, "a connect arrives");
  End& accepted = other.accept();
  rig.expect([&] { return again.established && accepted.established; }, "both ends are established");
  rig.expect_working({again, accepted});
  accepted.connection->close();
  rig.expect([&] { return accepted.closed; }, "it closes");
  shell("ip address del 10.99.0.2/24 dev dummy0");
}
