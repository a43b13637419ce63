// Whoever changes a mapping may hold malloc's lock. Not under sanitizers, which bring a malloc of their own.

#include <malloc.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <thread>
#include <vector>

#include "common/log.h"
#include "transport/coherence/monitor.h"
#include "transport/coherence/userfault.h"

using namespace rbt;
using namespace rbt::transport;
using namespace rbt::transport::coherence;

namespace {

struct NoRegistration final : Registration {
  Result<void> fence() override { return {}; }
  Result<void> restore() override { return {}; }
};

}  // namespace

TEST_CASE("A free() that gives a watched heap back, under malloc's own lock, is acknowledged at once") {
  const SystemClock clock;
  auto started = Monitor::start(clock, null_logger());
  REQUIRE(started);
  std::uint64_t events = 0;
  Duration blocked{};
  std::thread worker([&] {  // a thread has an arena of its own, which shrinks with its lock held
    for (int round = 0; round < 50; ++round) {
      std::vector<void*> blocks;
      for (int i = 0; i < 64; ++i)
        blocks.push_back(std::malloc(100'000));
      NoRegistration registration;
      auto watch = make_userfault_watch({.data = static_cast<std::byte*>(blocks[8]), .size = 40 * std::size_t{100'000}},
                                        clock, {.settle = {}});
      REQUIRE(watch);
      std::vector<std::unique_ptr<Watch>> watches;
      watches.push_back(std::move(*watch));
      auto region = (*started)->add(registration, std::move(watches), {.name = "heap"});
      REQUIRE(region);
      REQUIRE((*region)->restore());
      for (void* block : blocks)
        std::free(block);
      ::malloc_trim(0);
      events += (*region)->counters().events;
      blocked = std::max(blocked, (*region)->counters().blocked_max);
      CHECK((*region)->state() != RegionState::gone);
    }
  });
  worker.join();
  CHECK(events >= 50);
  CHECK(blocked < std::chrono::milliseconds(500));
}
