#include "transport/reactor/reactor.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <limits>
#include <thread>

#include "common/random.h"

using namespace rbt;
using namespace rbt::transport;
using namespace std::chrono_literals;

namespace {

std::unique_ptr<Reactor> make_reactor(const Clock& clock) {
  auto reactor = Reactor::create(clock, null_logger());
  REQUIRE(reactor);
  return std::move(*reactor);
}

double process_cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct CountingSource final : Source {
  std::size_t poll() override { return polls++ < busy_polls ? 1 : 0; }
  bool arm() override { return ++arms > refuse_arms; }
  void disarm() override { ++disarms; }
  int polls = 0, busy_polls = 0, arms = 0, refuse_arms = 0, disarms = 0;
};

}  // namespace

TEST_CASE("Timers run in the order of their times, cancelled ones not at all") {
  TimerQueue queue;
  std::vector<int> ran;
  const Instant start{};
  std::vector<std::unique_ptr<Timer>> timers;
  Random random(3);
  for (int i = 0; i < 200; ++i)
    timers.push_back(std::make_unique<Timer>(queue, [&ran, i] { ran.push_back(i); }));
  std::vector<int> order(200);
  for (int i = 0; i < 200; ++i)
    order[std::size_t(i)] = i;
  for (std::size_t i = 199; i > 0; --i)
    std::swap(order[i], order[random.below(i + 1)]);
  for (std::size_t i = 0; i < 200; ++i)
    timers[std::size_t(order[i])]->arm(start + std::chrono::microseconds(i));
  for (std::size_t i = 0; i < 200; i += 3)
    timers[std::size_t(order[i])]->cancel();
  CHECK(*queue.next() == start + 1us);
  queue.run(start + 99us);
  queue.run(start + 1s);
  std::vector<int> expected;
  for (std::size_t i = 0; i < 200; ++i)
    if (i % 3 != 0) expected.push_back(order[i]);
  CHECK(ran == expected);
  CHECK_FALSE(queue.next());
}

TEST_CASE("A timer may arm itself again, and a past time waits for the next pass") {
  TimerQueue queue;
  int ran = 0;
  Timer* self = nullptr;
  Timer timer(queue, [&] {
    ++ran;
    self->arm(Instant{});
  });
  self = &timer;
  timer.arm(Instant{});
  CHECK(queue.run(Instant{} + 1s) == 1);
  CHECK(queue.run(Instant{} + 1s) == 1);
  CHECK(ran == 2);
}

TEST_CASE("Tasks posted from several threads all run, each sender's in order") {
  const SystemClock clock;
  auto reactor = make_reactor(clock);
  std::array<std::vector<int>, 3> seen;
  std::atomic<int> total{0};
  std::vector<std::thread> senders;
  for (std::size_t s = 0; s < 3; ++s)
    senders.emplace_back([&, s] {
      for (int i = 0; i < 1000; ++i)
        reactor->post([&, s, i] {
          seen.at(s).push_back(i);
          total.fetch_add(1, std::memory_order_relaxed);
        });
    });
  CHECK(reactor->run_until([&] { return total.load() == 3000; }, clock.now() + 10s));
  for (auto& sender : senders)
    sender.join();
  for (const auto& numbers : seen)
    CHECK(std::is_sorted(numbers.begin(), numbers.end()));
}

TEST_CASE("stop() ends a sleeping reactor, and counts when it comes first") {
  const SystemClock clock;
  auto reactor = make_reactor(clock);
  std::thread runner([&] { reactor->run(); });
  reactor->stop();
  runner.join();
  reactor->run();  // still stopped: returns at once
}

TEST_CASE("An idle reactor uses no processor") {
  const SystemClock clock;
  auto reactor = make_reactor(clock);
  const double before = process_cpu_seconds();
  CHECK_FALSE(reactor->run_until([] { return false; }, clock.now() + 300ms));
  CHECK(process_cpu_seconds() - before < 0.05);
  CHECK(reactor->counters().sleeps.load() >= 1);
}

TEST_CASE("A source that refuses to be armed is polled again instead of slept on") {
  const SystemClock clock;
  auto reactor = make_reactor(clock);
  CountingSource source;
  source.refuse_arms = 3;
  reactor->add(source);
  CHECK_FALSE(reactor->run_until([] { return false; }, clock.now() + 20ms));
  CHECK(source.arms > 3);
  CHECK(source.disarms == source.arms);
  reactor->remove(source);
  const int polls = source.polls;
  reactor->turn();
  CHECK(source.polls == polls);
}

TEST_CASE("A descriptor's handler may remove itself and its neighbour") {
  const SystemClock clock;
  auto reactor = make_reactor(clock);
  const int a = eventfd(1, EFD_NONBLOCK), b = eventfd(1, EFD_NONBLOCK);
  int calls = 0;
  const auto handler = [&](std::uint32_t) {
    ++calls;
    reactor->unwatch(a);
    reactor->unwatch(b);
  };
  REQUIRE(reactor->watch(a, EPOLLIN, handler));
  REQUIRE(reactor->watch(b, EPOLLIN, handler));
  CHECK_FALSE(reactor->run_until([] { return false; }, clock.now() + 10ms));
  CHECK(calls == 1);
  close(a);
  close(b);
}

TEST_CASE("What ends a sleep sees the time after it, not before") {
  SystemClock clock;
  auto reactor = make_reactor(clock);
  const int fd = eventfd(0, EFD_CLOEXEC);
  Instant seen{};
  REQUIRE(reactor->watch(fd, EPOLLIN, [&](std::uint32_t) {
    seen = reactor->now();
    reactor->unwatch(fd);
  }));
  Instant rung{};
  std::thread ringer([&] {
    while (reactor->counters().sleeps == 0)
      std::this_thread::yield();
    const Instant until = clock.now() + 20ms;  // what it sleeps through
    while (clock.now() < until)
      std::this_thread::yield();
    rung = clock.now();
    eventfd_write(fd, 1);
  });
  CHECK(reactor->run_until([&] { return seen != Instant{}; }, clock.now() + 10s));
  ringer.join();
  CHECK(seen >= rung);
  close(fd);
}

TEST_CASE("A deadline counts also for a reactor that is never idle") {
  SystemClock clock;
  auto reactor = make_reactor(clock);
  CountingSource source;
  source.busy_polls = std::numeric_limits<int>::max();
  reactor->add(source);
  CHECK_FALSE(reactor->run_until([] { return false; }, clock.now() + 5ms));
  reactor->remove(source);
}

TEST_CASE("Whatever waits for the world is asked instead of epoll") {
  ManualClock clock;
  struct MoveClock final : Waiter {
    explicit MoveClock(ManualClock& c) : clock(c) {}
    void wait(Reactor&, std::optional<Instant> until) override {
      REQUIRE(until);
      clock.advance_to(*until);
    }
    ManualClock& clock;
  } waiter(clock);
  auto reactor = Reactor::create(clock, null_logger(), {.waiter = &waiter});
  REQUIRE(reactor);
  bool fired = false;
  Timer timer((*reactor)->timers(), [&] { fired = true; });
  timer.arm(clock.now() + 3600s);
  CHECK((*reactor)->run_until([&] { return fired; }, clock.now() + 7200s));
  CHECK(clock.now() == Instant{} + 3600s);
}
