// The simulated world itself: time, turns, and that a seed replays.

#include <catch2/catch.hpp>
#include <set>

#include "tests/sim/exchange.h"
#include "tests/sim/fabric_rig.h"
#include "tests/sim/sim_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using sim::Network;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST_CASE("A caller that waits on its own reactor drives both ends") {
  SimUnderTest fabric;
  Rig rig(fabric);
  rig.server.accepts = true;
  rig.server.listen(fabric.address());
  End& client = rig.client.connect(fabric.address());
  Reactor& reactor = fabric.client_reactor();
  CHECK(reactor.run_until([&] { return client.established; }, fabric.network.clock().now() + seconds(1)));
  Buffer buffer(client.connection->domain(), 64, RemoteAccess::none);
  client.post_send(buffer, 0, 64);
  CHECK(reactor.run_until([&] { return client.completed() == 1; }, fabric.network.clock().now() + seconds(1)));
  CHECK(rig.server.ends.size() == 1);
}

TEST_CASE("Virtual time jumps to the next timer and nothing sleeps") {
  SimUnderTest fabric;
  Rig rig(fabric);
  const Instant begin = fabric.network.clock().now();
  std::vector<Duration> fired;
  Timer near(fabric.server_reactor().timers(), [&] { fired.push_back(fabric.network.clock().now() - begin); });
  Timer far(fabric.client_reactor().timers(), [&] { fired.push_back(fabric.network.clock().now() - begin); });
  near.arm(begin + seconds(30));
  far.arm(begin + seconds(3600));
  CHECK(fabric.client_reactor().run_until([&] { return fired.size() == 2; }, begin + seconds(7200)));
  CHECK(fired == std::vector<Duration>{seconds(30), seconds(3600)});
  CHECK_FALSE(fabric.client_reactor().run_until([] { return false; }, begin + seconds(7200)));
  CHECK(fabric.network.clock().now() == begin + seconds(7200));
}

TEST_CASE("An action happens at its time, in the middle of what else goes on") {
  SimUnderTest fabric;
  Rig rig(fabric);
  const Instant begin = fabric.network.clock().now();
  Duration at{};
  fabric.network.at(begin + milliseconds(7), [&] { at = fabric.network.clock().now() - begin; });
  CHECK(fabric.network.settle());
  CHECK(at == milliseconds(7));
}

TEST_CASE("A world in which nothing can happen any more is reported and not spun on") {
  SimUnderTest fabric;
  Rig rig(fabric);
  const auto pair = rig.connect();
  CHECK(fabric.network.run_until([] { return false; }, Instant::max()) == Network::Outcome::stuck);
  CHECK(fabric.network.deadlocks() == 0);
  auto reactor = Reactor::create(fabric.network.clock(), null_logger(), {.waiter = &fabric.network});
  REQUIRE(reactor.has_value());
  (*reactor)->run();  // returns although nobody called stop()
  CHECK(fabric.network.deadlocks() == 1);
  rig.expect_working(pair);
}

TEST_CASE("A reactor that waits inside another one's turn does not turn that one again") {
  SimUnderTest fabric;
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  End& client = rig.client.connect(fabric.address());
  int depth = 0;
  bool nested = false;
  auto third = Reactor::create(fabric.network.clock(), null_logger(), {.waiter = &fabric.network});
  REQUIRE(third.has_value());
  fabric.network.add(**third);
  fabric.server_reactor().post([&] {
    CHECK(++depth == 1);
    nested = (*third)->run_until([] { return false; }, fabric.network.clock().now() + seconds(1));
    --depth;
  });
  fabric.server_reactor().post([&] { CHECK(depth == 0); });
  CHECK(fabric.client_reactor().run_until([&] { return !rig.server.requests.empty(); },
                                          fabric.network.clock().now() + seconds(3)));
  CHECK_FALSE(nested);
  rig.server.requests.clear();
  rig.expect([&] { return client.disconnected.has_value(); }, "the refusal arrives");
  fabric.network.remove(**third);
}

TEST_CASE("The same seed gives the same run, event for event; another seed another one") {
  std::set<std::uint64_t> hashes;
  const auto run = [](std::uint64_t seed) {
    Network network({.seed = seed, .silent_failure = 4});
    network.faults().plan(Exchange::rough_weather());
    Exchange exchange(network, Exchange::Options{.rounds = 20});
    exchange.run();
    return std::pair(network.trace_hash(), network.events());
  };
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    INFO("seed " << seed);
    const auto first = run(seed);
    // Other addresses in memory must make no difference.
    const std::vector<std::byte> elsewhere((seed + 1) * 1000);
    const auto second = run(seed);
    CHECK(first == second);
    hashes.insert(first.first);
  }
  CHECK(hashes.size() > 90);  // some are over before chance has said anything
}
