// No heap allocation per I/O, on either side: a counting operator new, and target and initiator in steady state.
#include <sys/uio.h>

#include <array>
#include <catch2/catch.hpp>
#include <memory>
#include <vector>

#include "counting_allocator.h"
#include "initiator/initiator.h"
#include "initiator/volume.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/sim/changing_store.h"
#include "transport/sim/network.h"

namespace {

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using initiator::Operation;
using initiator::Outcome;
using initiator::Request;
using initiator::Submitted;

constexpr std::size_t kRequests = 24;  // in flight, of all kinds and from all kinds of memory
constexpr std::uint64_t kWarmUp = 5'000;
constexpr std::uint64_t kMeasured = 20'000;

/// Requests that submit themselves again for ever, to a queue pair or a volume.
template <typename Path>
struct Mill {
  explicit Mill(Path& on) : path(on) {}
  Path& path;
  std::uint64_t done = 0;
  std::uint64_t failed = 0;
  bool stop = false;
  std::array<Request, kRequests> requests{};
  std::array<iovec, kRequests> pieces{};
  std::vector<std::byte> zeroes = std::vector<std::byte>(131072);  // of blocks that nobody writes
  const std::array<BlockRange, 2> ranges = {BlockRange{Lba(8), Blocks(8)}, BlockRange{Lba(64), Blocks(1)}};

  static void again(Request& request) {
    auto& mill = *static_cast<Mill*>(request.context);
    ++mill.done;
    if (request.outcome != Outcome::success) ++mill.failed;
    if (!mill.stop && mill.path.submit(request) != Submitted::accepted) ++mill.failed;
  }
  void start(const initiator::Namespace& space, const std::array<std::byte*, 3>& memory) {
    constexpr std::array<std::size_t, 4> kSizes = {512, 4096, 16384, 131072};
    for (std::size_t i = 0; i < kRequests; ++i) {
      Request& request = requests[i];
      request.done = again;
      request.context = this;
      request.target = &space;
      pieces[i] = {memory[i % 3], kSizes[i % 4]};
      request.range = {Lba(i * 64), Blocks(100)};
      if (i == 3 || i == 4) {  // Compare: too long for a capsule, and not
        pieces[i].iov_base = zeroes.data();
        request.range.first = Lba(100'000);
      }
      request.data = {&pieces[i], 1};
      request.ranges = ranges;
      request.operation = i == 0       ? Operation::flush
                          : i == 1     ? Operation::discard
                          : i == 2     ? Operation::write_zeroes
                          : i < 5      ? Operation::compare
                          : i % 2 == 0 ? Operation::read
                                       : Operation::write;
      REQUIRE(path.submit(request) == Submitted::accepted);
    }
  }
};

/// A target with one namespace of `spec`, and a host's reactor.
struct World {
  explicit World(const std::string& spec, StoreHand* hand = nullptr) {
    target_reactor = make_reactor();
    target = std::move(target::Target::open({.clock = network.clock(),
                                             .logger = null_logger(),
                                             .random = random,
                                             .given_reactors = {target_reactor.get()}})
                           .value());
    const auto nqn = nvme::Nqn::parse("nqn.2024-01.io.example:mill").value();
    REQUIRE(target->add_subsystem(nqn, {.allow_any_host = true}));
    auto store = std::move(
        target::make_store(spec, {.clock = network.clock(), .random = random, .logger = null_logger()}).value());
    if (hand != nullptr) store = make_changing_store(std::move(store), *hand);
    REQUIRE(target->add_namespace(nqn, std::move(store)));
    REQUIRE(target->listen(network.fabric("target"), uri));
    REQUIRE(target->start());
    reactor = make_reactor();
  }
  ~World() {
    target->drain(Duration::zero());
    CHECK(network.run_for(10s, [&] { return target->drained(); }) == transport::sim::Network::Outcome::done);
    target.reset();
  }
  std::unique_ptr<transport::Reactor> make_reactor() {
    return std::move(transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network}).value());
  }
  [[nodiscard]] initiator::Environment environment() {
    return {network.fabric("host"), network.clock(), null_logger(), random};
  }
  /// The fabric's and the heaps' working sizes are found while warming up; then nothing is allocated.
  template <typename Path>
  void grind(Mill<Path>& mill, std::uint64_t allocations_at_start) {
    REQUIRE(reactor->run_until([&] { return mill.done >= kWarmUp; }, network.clock().now() + 60s));
    const std::uint64_t before = test::allocations();
    CHECK(before > allocations_at_start);  // and they are seen by the counter
    const bool measured =
        reactor->run_until([&] { return mill.done >= kWarmUp + kMeasured; }, network.clock().now() + 60s);
    const std::uint64_t after = test::allocations();
    REQUIRE(measured);
    CHECK(after - before <= 1);  // run_until's own std::function, if anything
    mill.stop = true;
    REQUIRE(reactor->run_until([&] { return mill.path.in_flight() == 0; }, network.clock().now() + 60s));
    CHECK(mill.failed == 0);
  }

  transport::sim::Network network;
  Random random{1};
  Uri uri = Uri::parse("nvme+sim://target/nqn.2024-01.io.example:mill/1").value();
  std::unique_ptr<transport::Reactor> target_reactor;
  std::unique_ptr<target::Target> target;
  std::unique_ptr<transport::Reactor> reactor;
};

}  // namespace

TEST_CASE("The counting allocator counts") {
  const std::uint64_t before = test::allocations();
  const auto something = std::make_unique<int>(1);
  CHECK(*something == 1);
  CHECK(test::allocations() == before + 1);
}

TEST_CASE(
    "In steady state neither side allocates: reads, writes, compares, flushes, discards, from every kind of memory") {
  World world(GENERATE("ram:size=64MiB", "ram:size=64MiB,atomic=shadow"));
  auto session = std::move(
      initiator::Session::connect(world.environment(), world.uri, {.management = world.reactor.get()}).value());
  auto queue = std::move(session->open_queue_pair(*world.reactor, {.depth = 64, .buffers = Bytes(8 * kMiB)}).value());
  auto arena = transport::SharedMemory::create(Bytes(kMiB), {}).value();
  auto registered = std::move(session->register_buffer(arena.span()).value());
  std::vector<std::byte> foreign(kMiB);
  Mill mill(*queue);
  const std::uint64_t at_start = test::allocations();
  mill.start(**session->find(Nsid(1)), {queue->buffers()->allocate(kMiB).data(), arena.data(), foreign.data()});
  world.grind(mill, at_start);
  CHECK(queue->counters().bytes_bounced > 0);
  CHECK(queue->counters().bytes_in_capsule > 0);
}

TEST_CASE("Nor does a volume, which keeps, counts and times them") {
  // A write cache, so that what is written is kept.
  StoreHand hand{.write_cache = true};
  World world("ram:size=64MiB", &hand);
  auto volume = std::move(initiator::Volume::open(world.environment(), std::array{world.uri}, *world.reactor,
                                                  {.queue = {.depth = 64, .buffers = Bytes(8 * kMiB)}})
                              .value());
  REQUIRE(volume->statistics().memory == initiator::MemoryKind::on);
  std::vector<std::byte> foreign(kMiB);
  Mill mill(*volume);
  const std::uint64_t at_start = test::allocations();
  std::byte* const reachable = volume->buffers()->allocate(kMiB).data();
  mill.start(volume->disk(), {reachable, foreign.data(), reachable});
  world.grind(mill, at_start);
  CHECK(volume->statistics().write.latency.count() > kMeasured / 4);
  CHECK(volume->statistics().flush.requests > 0);
}
