// The simulated world itself: time, turns, and that a seed replays.

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <set>
#include <thread>

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

TEST_CASE("What happens at the same instant happens in the order of asking") {
  Network network;
  std::vector<int> order, expected;
  const Instant when = network.clock().now() + seconds(1);
  for (int i = 0; i < 50; ++i) {
    expected.push_back(i);
    network.at(when, [&order, i] { order.push_back(i); });
  }
  CHECK(network.settle());
  CHECK(order == expected);
}

TEST_CASE("close() takes back what lies in the queue and has not been delivered") {
  SimUnderTest fabric;
  Rig rig(fabric, {.receive_depth = 64, .receive_size = 64});
  const auto pair = rig.connect();
  Buffer ours(pair.client.connection->domain(), 64, RemoteAccess::none);
  Buffer theirs(pair.server.connection->domain(), 64, RemoteAccess::none);
  bool first = true;
  int depth = 0;
  pair.client.on_any = [&](const Completion&) {
    CHECK(depth == 0);  // this reactor is not turned again while it is here
    ++depth;
    if (first) {
      first = false;
      for (std::uint64_t i = 0; i < 40; ++i) {
        pair.client.post_send(ours, 0, 64, i);
        pair.server.post_send(theirs, 0, 64, i);
      }
      rig.client.group->flush();
      // The server goes on alone; all that comes for the client lies there.
      CHECK(fabric.server_reactor().run_until(
          [&] { return pair.server.messages.size() == 41 && pair.server.completed() == 40; },
          fabric.network.clock().now() + seconds(1)));
      CHECK_FALSE(fabric.server_reactor().run_until([] { return false; }, fabric.network.clock().now() + seconds(1)));
      pair.client.connection->close();
    }
    --depth;
  };
  pair.client.post_send(ours, 0, 64);
  // Driven by the client's own reactor: the server's run_until() above is called from within its turn.
  CHECK(fabric.client_reactor().run_until([&] { return pair.client.closed; },
                                          fabric.network.clock().now() + seconds(10)));
  CHECK(pair.client.completed() == 1);
  CHECK(pair.client.messages.empty());
  // The 40 receive buffers are there again: 64 messages find one each.
  const auto next = rig.connect();
  rig.client.hold_receives = true;
  for (std::uint64_t i = 0; i < 64; ++i)
    next.server.post_send(theirs, 0, 64, i);
  rig.expect([&] { return next.client.messages.size() == 64; }, "as many messages as buffers arrive");
  CHECK(rig.client.group->counters().receives_stalled == 0);
}

TEST_CASE("READs beyond the limit wait for earlier ones, and what is behind them waits too") {
  for (const std::uint32_t limit : {1U, 8U}) {
    SimUnderTest fabric({.link = {.latency = milliseconds(1), .jitter = Duration{0}}});
    Rig rig(fabric);
    const auto pair = rig.connect({.incoming_reads = limit});
    CHECK(pair.server.connection->limits().read_depth == limit);
    Buffer far(pair.client.connection->domain(), 64, RemoteAccess::read);
    Buffer near(pair.server.connection->domain(), 64, RemoteAccess::none);
    const Instant begin = fabric.network.clock().now();
    for (std::uint64_t i = 0; i < 8; ++i)
      pair.server.post_read(near, far, 64, i);
    pair.server.post_send(near, 0, 64, 8);
    rig.expect([&] { return pair.client.messages.size() == 1; }, "the message behind the READs arrives");
    const Duration took = fabric.network.clock().now() - begin;
    if (limit == 1) CHECK(took >= milliseconds(2 * 7 + 1));  // seven round trips, then the last goes
    if (limit == 8) CHECK(took < milliseconds(2));           // it follows them without waiting for their data
    rig.expect([&] { return pair.server.completed() == 9; }, "everything completes");
  }
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

TEST_CASE("A thread beside the simulated world, as a coherence monitor's, that deregisters its memory is stopped") {
  SimUnderTest fabric;
  Rig rig(fabric);
  rig.server.accepts = true;
  rig.server.listen(fabric.address());
  End& client = rig.client.connect(fabric.address());
  Reactor& reactor = fabric.client_reactor();
  REQUIRE(reactor.run_until([&] { return client.established; }, fabric.network.clock().now() + seconds(1)));
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // not the test runner's
    ::close(STDERR_FILENO);
    auto buffer = std::make_unique<Buffer>(client.connection->domain(), 64, RemoteAccess::none);
    std::thread([&] { buffer.reset(); }).join();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT));
}
