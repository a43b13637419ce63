// What it costs to move data straight to where a caller's pointer points, against copying it: a hit in the registration
// cache, a miss (watching and registering), what unmapping such memory costs its owner, and the copy that is saved.
// Over shm without a peer: what a peer does with an announced region (mapping the memfd) comes on top, once per memfd.

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "common/log.h"
#include "transport/coherence/userfault.h"
#include "transport/memory/registration_view.h"
#include "transport/memory/shared_memory.h"
#include "transport/shm/fabric.h"

namespace {

using namespace rbt;
using namespace rbt::transport;

struct Rig {
  Rig() {
    if (!cache.add_domain(fabric->domain()) || !view.start()) std::abort();
  }
  bool use(const std::byte* data, std::size_t size) {
    Reached reached;
    return view.find(data, size, reached) == Reach::direct && RegistrationView::leave(reached);
  }
  SystemClock clock;
  Random random{1};
  std::unique_ptr<shm::Fabric> fabric = std::move(shm::Fabric::open({}, random).value());
  std::unique_ptr<coherence::Monitor> monitor = std::move(coherence::Monitor::start(clock, null_logger()).value());
  RegistrationCache cache{
      monitor.get(),
      {.size_min = 4096,
       .make_watch = [this](const MemorySpan& m) { return coherence::make_userfault_watch(m, clock); }},
      null_logger()};
  std::unique_ptr<Reactor> reactor = std::move(Reactor::create(clock, null_logger()).value());
  RegistrationView view{cache, fabric->domain(), *reactor, [] {}};
};

void hit(benchmark::State& state) {
  Rig rig;
  const auto size = static_cast<std::size_t>(state.range(0));
  const auto memory = SharedMemory::create(Bytes(size), {.populate = true}).value();
  if (!rig.use(memory.data(), size)) return state.SkipWithError("it is not registered");
  for (auto _ : state)
    if (!rig.use(memory.data(), size)) return state.SkipWithError("it is not registered");
}

enum class Timed : bool { use, unmapping };

// A mapping comes, is used, and goes; one of the two is what the clock runs for.
void come_and_go(benchmark::State& state, Timed timed) {
  Rig rig;
  const auto size = static_cast<std::size_t>(state.range(0));
  const auto memory = SharedMemory::create(Bytes(size), {.populate = true}).value();
  const auto measure = [&](Timed what, auto&& action) {
    const auto before = std::chrono::steady_clock::now();
    action();
    if (what == timed)
      state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count());
  };
  for (auto _ : state) {
    void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory.span().fd, 0);
    bool direct = false;
    measure(Timed::use, [&] { direct = rig.use(static_cast<std::byte*>(at), size); });
    measure(Timed::unmapping, [&] { ::munmap(at, size); });
    if (!direct) return state.SkipWithError("it is not registered");
  }
}

// The same without a watch.
void unmapping_alone(benchmark::State& state) {
  const auto size = static_cast<std::size_t>(state.range(0));
  const auto memory = SharedMemory::create(Bytes(size), {.populate = true}).value();
  for (auto _ : state) {
    void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory.span().fd, 0);
    const auto before = std::chrono::steady_clock::now();
    ::munmap(at, size);
    state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count());
  }
}

void copy(benchmark::State& state) {
  const auto size = static_cast<std::size_t>(state.range(0));
  // In turn, so that it comes from further away than the nearest cache, as data from a peer does.
  constexpr std::size_t kTurns = 16;
  const auto from = SharedMemory::create(Bytes(kTurns * size), {.populate = true}).value();
  const auto to = SharedMemory::create(Bytes(kTurns * size), {.populate = true}).value();
  std::size_t turn = 0;
  for (auto _ : state) {
    const std::size_t at = turn++ % kTurns * size;
    std::memcpy(to.data() + at, from.data() + at, size);
    benchmark::ClobberMemory();
  }
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->Arg(4 << 10)->Arg(64 << 10)->Arg(128 << 10)->Arg(1 << 20);
}

BENCHMARK(hit)->Apply(sizes);
BENCHMARK_CAPTURE(come_and_go, miss, Timed::use)->Apply(sizes)->UseManualTime()->Iterations(2000);
BENCHMARK_CAPTURE(come_and_go, unmapping, Timed::unmapping)->Apply(sizes)->UseManualTime()->Iterations(2000);
BENCHMARK(unmapping_alone)->Apply(sizes)->UseManualTime()->Iterations(2000);
BENCHMARK(copy)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
