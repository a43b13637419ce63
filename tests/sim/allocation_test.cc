// No heap allocation per I/O, on either side: a counting operator new, and target and initiator in steady state.
#include <sys/uio.h>

#include <array>
#include <catch2/catch.hpp>
#include <memory>
#include <vector>

#include "counting_allocator.h"
#include "initiator/initiator.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "transport/sim/network.h"

namespace {

using namespace rbt;
using namespace std::chrono_literals;
using initiator::Outcome;
using initiator::Request;
using initiator::Submitted;

constexpr std::size_t kRequests = 24;  // in flight, of all kinds and from all kinds of memory
constexpr std::uint64_t kWarmUp = 5'000;
constexpr std::uint64_t kMeasured = 20'000;

/// Requests that submit themselves again for ever.
struct Mill {
  initiator::QueuePair* queue = nullptr;
  std::uint64_t done = 0;
  std::uint64_t failed = 0;
  bool stop = false;
  std::array<Request, kRequests> requests{};

  static void again(Request& request) {
    auto& mill = *static_cast<Mill*>(request.context);
    ++mill.done;
    if (request.outcome != Outcome::success) ++mill.failed;
    if (!mill.stop && mill.queue->submit(request) != Submitted::accepted) ++mill.failed;
  }
};

}  // namespace

TEST_CASE("The counting allocator counts") {
  const std::uint64_t before = test::allocations();
  const auto something = std::make_unique<int>(1);
  CHECK(*something == 1);
  CHECK(test::allocations() == before + 1);
}

TEST_CASE("In steady state neither side allocates: reads, writes, flushes, discards, from every kind of memory") {
  const std::string spec = GENERATE("ram:size=64MiB", "ram:size=64MiB,atomic=shadow");
  transport::sim::Network network;
  Random random(1);
  auto target_reactor =
      std::move(transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network}).value());
  auto target = std::move(target::Target::open({.clock = network.clock(),
                                                .logger = null_logger(),
                                                .random = random,
                                                .given_reactors = {target_reactor.get()}})
                              .value());
  const auto nqn = nvme::Nqn::parse("nqn.2024-01.io.example:mill").value();
  REQUIRE(target->add_subsystem(nqn, {.allow_any_host = true}));
  REQUIRE(target->add_namespace(
      nqn,
      std::move(
          target::make_store(spec, {.clock = network.clock(), .random = random, .logger = null_logger()}).value())));
  Uri uri = Uri::parse("nvme+sim://target/nqn.2024-01.io.example:mill/1").value();
  REQUIRE(target->listen(network.fabric("target"), uri));
  REQUIRE(target->start());
  auto reactor = std::move(transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network}).value());
  {
    auto session =
        std::move(initiator::Session::connect({network.fabric("host"), network.clock(), null_logger(), random}, uri,
                                              {.management = reactor.get()})
                      .value());
    auto queue = std::move(session->open_queue_pair(*reactor, {.depth = 64, .buffers = Bytes(8 * kMiB)}).value());
    const initiator::Namespace& space = **session->find(Nsid(1));
    auto arena = transport::SharedMemory::create(Bytes(kMiB), {}).value();
    auto registered = std::move(session->register_buffer(arena.span()).value());
    std::vector<std::byte> foreign(kMiB);

    Mill mill;
    mill.queue = queue.get();
    std::array<iovec, kRequests> pieces{};
    const std::array<std::byte*, 3> memory = {queue->buffers()->allocate(kMiB).data(), arena.data(), foreign.data()};
    const std::array<std::size_t, 4> sizes = {512, 4096, 16384, 131072};
    const std::array<BlockRange, 2> ranges = {BlockRange{Lba(8), Blocks(8)}, BlockRange{Lba(64), Blocks(1)}};
    const std::uint64_t at_start = test::allocations();
    for (std::size_t i = 0; i < kRequests; ++i) {
      Request& request = mill.requests[i];
      request.done = Mill::again;
      request.context = &mill;
      pieces[i] = {memory[i % 3], sizes[i % 4]};
      Submitted submitted = Submitted::dead;
      if (i == 0)
        submitted = queue->flush(request, space);
      else if (i == 1)
        submitted = queue->discard(request, space, ranges);
      else if (i == 2)
        submitted = queue->write_zeroes(request, space, {Lba(100), Blocks(100)});
      else if (i % 2 == 0)
        submitted = queue->read(request, space, Lba(i * 64), {&pieces[i], 1});
      else
        submitted = queue->write(request, space, Lba(i * 64), {&pieces[i], 1});
      REQUIRE(submitted == Submitted::accepted);
    }
    // The fabric's and the heaps' working sizes are found while warming up.
    REQUIRE(reactor->run_until([&] { return mill.done >= kWarmUp; }, network.clock().now() + 60s));
    const std::uint64_t before = test::allocations();
    CHECK(before > at_start);  // and they are seen by the counter
    const bool measured =
        reactor->run_until([&] { return mill.done >= kWarmUp + kMeasured; }, network.clock().now() + 60s);
    const std::uint64_t after = test::allocations();
    REQUIRE(measured);
    CHECK(after - before <= 1);  // run_until's own std::function, if anything
    mill.stop = true;
    REQUIRE(reactor->run_until([&] { return queue->in_flight() == 0; }, network.clock().now() + 60s));
    CHECK(mill.failed == 0);
    CHECK(queue->counters().bytes_bounced > 0);
    CHECK(queue->counters().bytes_in_capsule > 0);
  }
  target->drain(Duration::zero());
  REQUIRE(network.run_for(10s, [&] { return target->drained(); }) == transport::sim::Network::Outcome::done);
  target.reset();
}
