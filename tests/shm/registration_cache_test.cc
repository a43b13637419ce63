// Reading into any memory, over shared memory, while that memory comes and goes: what a target writes must be where the
// caller's pointer points. Without the watch it is not, which is shown as well.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <thread>

#include "scratch.h"
#include "tests/shm/cache_rig.h"
#include "transport/memory/mapping.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using initiator::BufferCacheOptions;
using initiator::Outcome;
using initiator::Request;
using initiator::Submitted;
using Host = CacheHost;

namespace {

struct Shm {
  ScratchDirectory scratch;
  Random keys{7};
  std::unique_ptr<transport::shm::Fabric> server = std::move(transport::shm::Fabric::open({}, keys).value());
  std::unique_ptr<transport::shm::Fabric> client = std::move(transport::shm::Fabric::open({}, keys).value());
  Uri uri = Uri::parse("nvme+shm:///nqn.2024-01.io.example:cache/1?socket=" + scratch.path("socket")).value();
};
struct Pair : Shm, CachePair {
  explicit Pair(const BufferCacheOptions& cache) : CachePair(*server, *client, Shm::uri, cache) {}
};

int rounds_wanted() {
  const char* const text = std::getenv("RBT_ROUNDS");
  return text != nullptr ? std::atoi(text) : 100'000;
}

}  // namespace

TEST_CASE("Memory that is allocated, read into and freed at the same addresses never shows stale data") {
  Pair pair({.size_min = Bytes(kPage)});
  const int rounds = rounds_wanted() / 2;
  std::array<Tally, 2> tallies;
  std::thread second([&] { tallies[1] = churn(pair, 2, rounds); });
  tallies[0] = churn(pair, 1, rounds);
  second.join();
  for (const Tally& tally : tallies) {
    CHECK(tally.stale == 0);
    CHECK(tally.failed == 0);
    CHECK(tally.bounced < tally.bytes / 2);  // most of it went through the cache, not around it
  }
  const auto counters = pair.session->buffer_cache();
  CHECK(counters.registered > static_cast<std::uint64_t>(rounds));
  WARN(2 * rounds << " rounds: " << counters.registered << " ranges registered, "
                  << (tallies[0].bounced + tallies[1].bounced) * 100 / (tallies[0].bytes + tallies[1].bytes)
                  << " % of the data copied");
}

TEST_CASE("The same without the watch does show stale data") {
  Pair pair({.mode = BufferCacheOptions::Mode::unwatched, .size_min = Bytes(kPage)});
  const Tally tally = churn(pair, 1, 300);
  CHECK(tally.failed == 0);
  CHECK(tally.stale > 10);
}

TEST_CASE("Without a monitor's cache everything is copied, and right") {
  Pair pair({.mode = BufferCacheOptions::Mode::off});
  const Tally tally = churn(pair, 1, 300);
  CHECK(tally.failed == 0);
  CHECK(tally.stale == 0);
  CHECK(tally.bounced == tally.bytes);
}

TEST_CASE("malloc's memory is copied over shm, and a memfd's is not") {
  Pair pair({.size_min = Bytes(kPage)});
  Host host(pair);
  std::vector<std::byte> heap(64 * kKiB);
  REQUIRE(host.read(3, heap.data(), heap.size()) == Outcome::success);
  CHECK(holds(heap.data(), heap.size(), 3));
  CHECK(host.queue->counters().bytes_bounced == heap.size());
  auto memory = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
  REQUIRE(host.read(5, memory.data(), memory.size()) == Outcome::success);
  CHECK(holds(memory.data(), memory.size(), 5));
  CHECK(host.queue->counters().bytes_bounced == heap.size());
}

TEST_CASE("Reading into memory that is not mapped is refused with words; after mapping it works") {
  Pair pair({.size_min = Bytes(kPage)});
  Host host(pair);
  auto memory = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
  std::byte* const at = memory.data();
  REQUIRE(host.read(0, at, 64 * kKiB) == Outcome::success);
  REQUIRE(::mmap(at, 64 * kKiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
  Request request;
  CHECK(host.start(request, 0, at, 64 * kKiB) == Submitted::refused);
  CHECK(request.outcome == Outcome::unmapped);
  CHECK(name(request.outcome) == "unmapped memory");
  CHECK(host.queue->live());
  REQUIRE(::mmap(at, 64 * kKiB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory.span().fd, 0) == at);
  REQUIRE(host.read(7, at, 64 * kKiB) == Outcome::success);
  CHECK(holds(at, 64 * kKiB, 7));
  CHECK(host.queue->counters().bytes_bounced == 0);
}

TEST_CASE("Whoever unmaps memory under a request waits until the request is done") {
  Pair pair({.size_min = Bytes(kPage), .change_wait_max = 60s});
  Host host(pair);
  auto memory = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
  REQUIRE(host.read(0, memory.data(), memory.size()) == Outcome::success);
  pair.hold();
  Request request;
  REQUIRE(host.start(request, 9, memory.data(), memory.size()) == Submitted::accepted);
  std::atomic<bool> returned{false};
  std::thread changer([&] {
    if (::mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
        memory.data())
      std::abort();
    returned = true;
  });
  // The kernel has replaced the mapping already while it keeps the caller waiting for us.
  const transport::MappingTable mappings;
  while (mappings.find(reinterpret_cast<std::uintptr_t>(memory.data())).value().inode != 0)
    std::this_thread::yield();
  CHECK_FALSE(returned);
  pair.go_on();
  REQUIRE(host.queue->wait(request, pair.clock.now() + 60s));
  CHECK(request.outcome == Outcome::success);
  CHECK(host.queue->counters().bytes_bounced == 0);
  changer.join();
  CHECK(memory.data()[0] == std::byte{0});
  void* const again = ::mmap(nullptr, memory.size(), PROT_READ, MAP_SHARED, memory.span().fd, 0);
  REQUIRE(again != MAP_FAILED);
  CHECK(holds(static_cast<std::byte*>(again), memory.size(), 9));
  ::munmap(again, memory.size());
}

TEST_CASE("A request that does not end in time loses its connection, and says so; the unmapping goes on") {
  Pair pair({.size_min = Bytes(kPage), .change_wait_max = 200ms});
  Host host(pair);
  auto memory = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
  REQUIRE(host.read(0, memory.data(), memory.size()) == Outcome::success);
  pair.hold();
  Request request;
  REQUIRE(host.start(request, 9, memory.data(), memory.size()) == Submitted::accepted);
  const Instant before = pair.clock.now();
  // By the thread that would have to see the request done.
  REQUIRE(::mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) == memory.data());
  CHECK(pair.clock.now() - before < 10s);
  REQUIRE(host.queue->wait(request, pair.clock.now() + 60s));
  CHECK(request.outcome == Outcome::disconnected);
  REQUIRE(host.queue->failure() != nullptr);
  CHECK_THAT(host.queue->failure()->message(), Contains("unmapped") && Contains("change_wait_max"));
  pair.go_on();
  CHECK(std::all_of(memory.data(), memory.data() + memory.size(), [](std::byte b) { return b == std::byte{0}; }));
  CHECK(pair.session->state() == initiator::SessionState::live);
  Host another(pair);
  CHECK(another.read(11, memory.data(), memory.size()) == Outcome::success);
  CHECK(holds(memory.data(), memory.size(), 11));
}

TEST_CASE("A registered buffer whose mapping is replaced follows it") {
  Pair pair({});
  Host host(pair);
  auto memory = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
  auto other = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
  auto registered = pair.session->register_buffer(memory.span());
  REQUIRE(registered);
  REQUIRE(host.read(1, memory.data(), kPage) == Outcome::success);
  REQUIRE(::mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, other.span().fd, 0) ==
          memory.data());
  REQUIRE(host.read(2, memory.data(), kPage) == Outcome::success);
  CHECK(holds(memory.data(), kPage, 2));
  CHECK(holds(other.data(), kPage, 2));
  CHECK(host.queue->counters().bytes_bounced == 0);
}
