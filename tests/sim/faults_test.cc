// What the simulated world can do to its inhabitants, and how that looks to them.

#include "transport/sim/faults.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/sim/exchange.h"
#include "tests/sim/fabric_rig.h"
#include "tests/sim/sim_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using sim::Network;
using sim::NetworkOptions;
using sim::Operation;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

/// A rig over a simulated network, and the time in it.
struct World {
  explicit World(const NetworkOptions& options = {}) : fabric(options), rig(fabric) {}
  /// Nobody turns a dead machine's reactor; its owner still gets rid of everything by doing so.
  ~World() {
    for (Side* side : {&rig.client, &rig.server})
      for (const auto& end : side->ends)
        if (end->connection != nullptr) end->connection->close();
    const auto gone = [](Side& side) { return [&side] { return side.group->connections() == 0; }; };
    CHECK(fabric.client_reactor().run_until(gone(rig.client), now() + seconds(5)));
    CHECK(fabric.server_reactor().run_until(gone(rig.server), now() + seconds(5)));
  }
  [[nodiscard]] Instant now() { return fabric.network.clock().now(); }
  [[nodiscard]] sim::Faults& faults() { return fabric.network.faults(); }
  SimUnderTest fabric;
  Rig rig;
};

}  // namespace

TEST_CASE("A transfer is torn between packets when its sender dies in the middle") {
  World world;
  const auto pair = world.rig.connect();
  constexpr std::size_t kSize = 1 << 20;
  Buffer source(pair.client.connection->domain(), kSize, RemoteAccess::none);
  Buffer target(pair.server.connection->domain(), kSize, RemoteAccess::write);
  source.fill(Bytes8(kSize, std::byte{0xaa}));
  pair.client.post_write(source, target, kSize);
  // At 10'000 bytes/us a MiB takes 107 us.
  world.fabric.network.at(world.now() + microseconds(50), [&] { world.faults().kill("client"); });
  (void)world.fabric.network.run_for(seconds(1));
  const Bytes8 seen = target.bytes(0, kSize);
  const auto torn = std::find(seen.begin(), seen.end(), std::byte{0}) - seen.begin();
  CHECK(torn > 0);
  CHECK(torn < static_cast<std::ptrdiff_t>(kSize));
  CHECK(torn % 4096 == 0);
  CHECK(std::all_of(seen.begin() + torn, seen.end(), [](std::byte byte) { return byte == std::byte{0}; }));
  CHECK(pair.client.completed() == 0);
}

TEST_CASE("A dead machine is noticed by who waits for it after the retries, by the idle never") {
  World world;
  const auto busy = world.rig.connect();
  const auto idle = world.rig.connect();
  Buffer buffer(busy.client.connection->domain(), 64, RemoteAccess::none);
  world.faults().kill("server");
  const Instant begin = world.now();
  busy.client.post_send(buffer, 0, 64);
  CHECK(world.fabric.network.run_for(seconds(60), [&] { return busy.client.disconnected.has_value(); }) ==
        Network::Outcome::done);
  CHECK(world.now() - begin > milliseconds(6 * 67 - 1));
  CHECK(world.now() - begin < milliseconds(7 * 67));
  CHECK(*busy.client.disconnected == Disconnect::Reason::lost);
  REQUIRE(busy.client.completed() == 1);
  CHECK(busy.client.done[0].status == CompletionStatus::retry_exceeded);
  (void)world.fabric.network.run_for(seconds(600));
  CHECK(idle.client.healthy());
  world.rig.server.listener.reset();
}

TEST_CASE("The kernel of a killed process says goodbye for it, and the machine serves again") {
  World world;
  const auto pair = world.rig.connect();
  world.faults().kill_process("server");
  world.rig.expect([&] { return pair.client.disconnected.has_value(); }, "the goodbye arrives");
  CHECK(*pair.client.disconnected == Disconnect::Reason::peer_closed);
  CHECK_FALSE(pair.server.disconnected.has_value());
  Side next(world.fabric.server(), world.fabric.server_reactor(), {.receive_depth = 4, .receive_size = 128});
  next.accepts = true;
  next.listen(world.fabric.address());
  End& client = world.rig.client.connect(world.fabric.address());
  world.rig.expect([&] { return client.established && !next.ends.empty() && next.ends[0]->established; },
                   "a new process is connected to");
  world.rig.expect_working({client, *next.ends[0]});
  client.connection->close();
  next.ends[0]->connection->close();
  world.rig.expect([&] { return client.closed && next.ends[0]->closed; }, "it closes");
}

TEST_CASE("A partition shorter than the retries goes unnoticed, a longer one loses the connection") {
  for (const bool shorter : {true, false}) {
    World world;
    const auto pair = world.rig.connect();
    Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::none);
    world.faults().partition("client", "server");
    world.fabric.network.at(world.now() + milliseconds(shorter ? 300 : 3000),
                            [&] { world.faults().join("client", "server"); });
    pair.client.post_send(buffer, 0, 64);
    world.rig.expect([&] { return pair.client.completed() == 1; }, "it completes");
    CHECK(pair.client.healthy() == shorter);
    CHECK(pair.server.messages.size() == (shorter ? 1 : 0));
    if (shorter) world.rig.expect_working(pair);
  }
}

TEST_CASE("A stalled connection waits and goes on, and no other waits with it") {
  World world;
  const auto stalled = world.rig.connect();
  const auto other = world.rig.connect();
  world.faults().stall(*stalled.client.connection, seconds(2));
  const Instant begin = world.now();
  world.rig.expect_working(other);
  CHECK(world.now() - begin < seconds(1));
  world.rig.expect_working(stalled);
  CHECK(world.now() - begin >= seconds(2));
}

TEST_CASE("A slow link is slow") {
  World world;
  const auto pair = world.rig.connect();
  world.faults().set_link("client", "server", {.latency = milliseconds(100), .jitter = Duration{0}});
  const Instant begin = world.now();
  world.rig.expect_working(pair);
  CHECK(world.now() - begin >= milliseconds(300));  // two messages, the second one's acknowledgement
}

TEST_CASE("A sender gives up after its retries when there is no receive buffer; the receiver does not care") {
  World world({.rnr_retries = 3});
  const auto pair = world.rig.connect();
  world.faults().exhaust_receives("server", seconds(1));
  Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::none);
  pair.client.post_send(buffer, 0, 64);
  world.rig.expect([&] { return pair.client.completed() == 1; }, "it completes");
  CHECK(pair.client.done[0].status == CompletionStatus::rnr_retry_exceeded);
  CHECK(world.rig.server.group->counters().receives_stalled == 1);
  CHECK(pair.server.healthy());
}

TEST_CASE("A sender that retries for ever outlasts the want of receive buffers") {
  World world;
  const auto pair = world.rig.connect();
  world.faults().exhaust_receives("server", seconds(1));
  const Instant begin = world.now();
  world.rig.expect_working(pair);
  CHECK(world.now() - begin >= seconds(1));
}

TEST_CASE("A key that is not the receiver's to give up costs the receiver the connection, not the sender") {
  World world;
  const auto pair = world.rig.connect();
  Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::read);
  const Segment segment = buffer.segment(0, 64);
  const WorkRequest request{// its own key, not one of the server's
                            .opcode = Opcode::send_with_invalidate,
                            .rkey = buffer.rkey(),
                            .segments = {&segment, 1}};
  REQUIRE(pair.client.connection->post({&request, 1}) == PostResult::posted);
  world.rig.expect([&] { return pair.client.completed() == 1 && pair.server.disconnected.has_value(); },
                   "the server loses it");
  CHECK(pair.client.done[0].status == CompletionStatus::success);
  CHECK(pair.server.failed);
  CHECK(pair.server.messages.empty());
  CHECK(pair.client.healthy());
}

TEST_CASE("A message larger than a receive buffer shows as a failed receive, without a buffer to give back") {
  World world;
  const auto pair = world.rig.connect();
  Buffer buffer(pair.client.connection->domain(), 4161, RemoteAccess::none);
  pair.client.post_send(buffer, 0, 4161);
  world.rig.expect([&] { return pair.client.completed() == 1 && pair.server.disconnected.has_value(); }, "it ends");
  CHECK(pair.server.failed);
}

TEST_CASE("A peer that knocks and then stays silent is dropped in time") {
  World world;
  world.rig.server.listen(world.fabric.address(), {.half_open = milliseconds(700)});
  (void)world.rig.client.connect(world.fabric.address());
  world.rig.expect([&] { return !world.rig.server.requests.empty(); }, "the connect arrives");
  world.faults().kill("client");
  const Instant begin = world.now();
  End& server = world.rig.server.accept();
  world.rig.expect([&] { return server.disconnected.has_value(); }, "the server is rid of it");
  CHECK(*server.disconnected == Disconnect::Reason::lost);
  CHECK_FALSE(server.established);
  CHECK(world.now() - begin == milliseconds(700));
}

TEST_CASE("A connect to a machine that is off says unreachable when its time is up") {
  World world;
  world.rig.server.listen(world.fabric.address());
  world.faults().kill("server");
  const Instant begin = world.now();
  End& client = world.rig.client.connect(world.fabric.address(), {.timeout = milliseconds(1500)});
  world.rig.expect([&] { return client.disconnected.has_value(); }, "the client gives up");
  CHECK(*client.disconnected == Disconnect::Reason::unreachable);
  CHECK(world.now() - begin == milliseconds(1500));
}

TEST_CASE("A device that goes takes its connections with it, the other device's stay") {
  SimUnderTest fabric;
  Fabric& two = fabric.network.fabric("server", 2);
  REQUIRE(&two == &fabric.server());
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  std::array<End*, 2> clients{&rig.client.connect(fabric.uri("server", 4420)),
                              &rig.client.connect(fabric.uri("server.1", 4420))};
  rig.expect([&] { return rig.server.requests.size() == 2; }, "a connect arrives by each device");
  std::array<End*, 2> servers{&rig.server.accept(), &rig.server.accept()};
  rig.expect(
      [&] {
        return std::all_of(clients.begin(), clients.end(), [](End* end) { return end->established; }) &&
               std::all_of(servers.begin(), servers.end(), [](End* end) { return end->established; });
      },
      "all are established");
  if (servers[0]->connection->domain().name() != "server/sim0") std::swap(servers[0], servers[1]);
  REQUIRE(servers[0]->connection->domain().name() == "server/sim0");
  REQUIRE(servers[1]->connection->domain().name() == "server/sim1");
  // A key of the other device's protection domain opens nothing here.
  Buffer theirs(servers[1]->connection->domain(), 64, RemoteAccess::write);
  Buffer ours(clients[0]->connection->domain(), 64, RemoteAccess::none);
  End& stranger = rig.client.connect(fabric.uri("server.0", 4420));
  rig.expect([&] { return !rig.server.requests.empty(); }, "a third connect arrives");
  End& host = rig.server.accept();
  rig.expect([&] { return stranger.established && host.established; }, "it is established");
  stranger.post_write(ours, theirs, 64);
  rig.expect([&] { return stranger.completed() == 1; }, "a write with a foreign key completes");
  CHECK(stranger.done[0].status == CompletionStatus::remote_access_error);

  Buffer buffer(servers[0]->connection->domain(), 64, RemoteAccess::none);
  servers[0]->post_send(buffer, 0, 64);
  fabric.network.faults().remove_device("server", 0);
  rig.expect([&] { return servers[0]->disconnected.has_value() && servers[0]->completed() == 1; }, "one is lost");
  CHECK(*servers[0]->disconnected == Disconnect::Reason::device_removed);
  CHECK(servers[0]->done[0].status == CompletionStatus::flushed);
  CHECK(rig.server.listener_error.empty());  // it hears the other device
  rig.expect_working({*clients[1], *servers[1]});
  fabric.network.faults().remove_device("server", 1);
  rig.expect([&] { return !rig.server.listener_error.empty() && servers[1]->disconnected.has_value(); },
             "the last device takes the listener along");
}

TEST_CASE("An address that changes loses what was bound to it and can be listened on again") {
  World world;
  const auto pair = world.rig.connect();
  world.faults().change_address("server");
  world.rig.expect([&] { return pair.server.disconnected.has_value(); }, "the connection is lost");
  CHECK(*pair.server.disconnected == Disconnect::Reason::address_changed);
  CHECK_FALSE(world.rig.server.listener_error.empty());
  world.rig.server.listener.reset();
  world.rig.expect_working(world.rig.connect());
}

TEST_CASE("Posted memory that changes before its completion is found") {
  World world({.check_posted_memory = true});
  const auto pair = world.rig.connect();
  Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::none);
  pair.client.post_send(buffer, 0, 64);
  world.rig.expect([&] { return pair.client.completed() == 1; }, "a send completes");
  CHECK(world.fabric.network.violations() == 0);
  pair.client.post_send(buffer, 0, 64);
  *buffer.data() ^= std::byte{1};
  world.rig.expect([&] { return pair.client.completed() == 2; }, "another one, used too early, completes");
  CHECK(world.fabric.network.violations() == 1);
}

TEST_CASE("A failure in silence shows in the completions alone") {
  World world({.silent_failure = 1});
  const auto pair = world.rig.connect();
  Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::none);
  Buffer target(pair.server.connection->domain(), 64, RemoteAccess::read);
  pair.client.post_write(buffer, target, 64);
  world.rig.expect([&] { return pair.client.completed() == 1; }, "it completes");
  world.rig.run_a_while();
  CHECK(pair.client.failed);
  CHECK_FALSE(pair.client.disconnected.has_value());
  CHECK_FALSE(pair.server.disconnected.has_value());
  pair.client.connection->close();
  world.rig.expect([&] { return pair.server.disconnected.has_value(); }, "the other end hears of the close");
}

TEST_CASE("Whatever operation fails, nothing is lost, doubled or left behind") {
  for (std::size_t kind = 0; kind < sim::kOperations; ++kind) {
    const auto operation = static_cast<Operation>(kind);
    bool clean = false;
    for (std::uint64_t n = 0; !clean; ++n) {
      INFO("failing operation " << n << " of kind " << sim::name(operation));
      REQUIRE(n < 1000);
      Network network({.seed = n});
      network.faults().fail_nth(operation, n);
      Exchange exchange(network, {.rounds = 5});
      exchange.run();
      for (const std::string& mistake : exchange.mistakes())
        FAIL_CHECK(mistake);
      clean = network.faults().pending(operation);
      CHECK(exchange.complete() == clean);
      CHECK((clean || n < network.faults().count(operation)));
    }
  }
}

TEST_CASE("In rough weather nothing is lost, doubled or left behind, and after it all is well") {
  std::uint64_t rounds = 0, broken = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    INFO("seed " << seed);
    Network network({.seed = seed, .silent_failure = 5});
    network.faults().plan(Exchange::rough_weather());
    {
      Exchange exchange(network, {.rounds = 20});
      exchange.run();
      for (const std::string& mistake : exchange.mistakes())
        FAIL_CHECK(mistake);
      rounds += exchange.rounds_done();
      if (!exchange.complete()) ++broken;
    }
    network.faults().heal();
    Exchange calm(network, {.rounds = 20});
    calm.run();
    CHECK(calm.mistakes().empty());
    CHECK(calm.complete());
  }
  CHECK(rounds > 300);  // the weather lets something through
  CHECK(broken > 30);   // and is rough
}
