// rbt-perf's own jobs over the simulated network: what --verify does is what it does over a real one, at virtual speed.
#include <array>
#include <catch2/catch.hpp>
#include <memory>

#include "target/store/spec.h"
#include "target/target.h"
#include "tools/rbt-perf/job.h"
#include "transport/sim/network.h"

namespace {

using namespace rbt;
using namespace rbt::tools;
using namespace std::chrono_literals;
using Catch::Matchers::StartsWith;
using transport::sim::FaultPlan;

constexpr std::uint64_t kBlocks = 2048;

/// A target with one disk in memory, and a session of a host that runs jobs on it.
class World {
 public:
  explicit World(std::uint64_t seed) : network_({.seed = seed}), random_(seed) {
    target_reactor_ = reactor();
    target_ = std::move(target::Target::open({.clock = network_.clock(),
                                              .logger = null_logger(),
                                              .random = random_,
                                              .given_reactors = {target_reactor_.get()}})
                            .value());
    const auto nqn = nvme::Nqn::parse("nqn.2026-01.io.example:perf").value();
    REQUIRE(target_->add_subsystem(nqn, {.allow_any_host = true}));
    auto store =
        target::make_store("ram:size=1MiB", {.clock = network_.clock(), .random = random_, .logger = null_logger()});
    REQUIRE(store);
    REQUIRE(target_->add_namespace(nqn, std::move(*store)));
    const Uri uri = Uri::parse("nvme+sim://target/nqn.2026-01.io.example:perf/1").value();
    REQUIRE(target_->listen(network_.fabric("target"), uri));
    REQUIRE(target_->start());
    host_reactor_ = reactor();
    session_ =
        std::move(initiator::Session::connect({network_.fabric("host"), network_.clock(), null_logger(), random_}, uri,
                                              {.io_queues = 2, .management = host_reactor_.get()})
                      .value());
  }
  ~World() {
    network_.faults().heal();
    session_.reset();
    target_->drain(Duration::zero());
    CHECK(network_.run_for(30s, [this] { return target_->drained(); }) == transport::sim::Network::Outcome::done);
  }

  [[nodiscard]] JobResult run(Mix mix, Blocks block) {
    const JobOptions options{.mix = mix,
                             .block = block,
                             .depth = 16,
                             .part = {Lba(0), Blocks(kBlocks)},
                             .runtime = 3ms,
                             .verify = true,
                             .run = 7,
                             .seed = network_.random()()};
    auto result = run_job(*session_, **session_->find(Nsid(1)), options, *host_reactor_, interrupt_);
    if (!result) FAIL(result.error().message());
    return std::move(*result);
  }

  [[nodiscard]] transport::sim::Network& network() noexcept { return network_; }
  [[nodiscard]] initiator::Session& session() noexcept { return *session_; }
  [[nodiscard]] transport::Reactor& host() noexcept { return *host_reactor_; }

 private:
  std::unique_ptr<transport::Reactor> reactor() {
    return std::move(transport::Reactor::create(network_.clock(), null_logger(), {.waiter = &network_}).value());
  }

  transport::sim::Network network_;
  Random random_;
  Interrupt interrupt_;
  std::unique_ptr<transport::Reactor> target_reactor_;
  std::unique_ptr<target::Target> target_;
  std::unique_ptr<transport::Reactor> host_reactor_;
  std::unique_ptr<initiator::Session> session_;
};

}  // namespace

TEST_CASE("Every pattern of rbt-perf reads back what it wrote, in small and in large requests") {
  const auto mix = GENERATE(Mix::read, Mix::write, Mix::randread, Mix::randwrite, Mix::randrw);
  const auto block = GENERATE(Blocks(1), Blocks(64));
  World world(1);
  const JobResult result = world.run(mix, block);
  CHECK(result.errors == 0);
  CHECK(result.requests > 50);
  CHECK(result.verified >= block.value());
  CHECK(result.elapsed >= 3ms);
}

TEST_CASE("A job under loss, stalls and hosts that are not ready is slower and no less right") {
  const auto seed = GENERATE(range(std::uint64_t{1}, std::uint64_t{6}));
  World world(seed);
  world.network().faults().plan({.packet_lost = 3000, .not_ready = 500, .stalled = 500, .stall_max = 1ms});
  const JobResult result = world.run(Mix::randrw, Blocks(8));
  CHECK(result.errors == 0);
  CHECK(result.requests > 0);
  CHECK(result.verified > 0);
}

TEST_CASE("A connection that is lost in the middle of a job is reported, and the job ends") {
  const auto seed = GENERATE(range(std::uint64_t{1}, std::uint64_t{6}));
  World world(seed);
  world.network().at(world.network().clock().now() + 2ms,
                     [&] { world.network().faults().partition("host", "target"); });
  const JobResult result = world.run(Mix::randrw, Blocks(8));
  CHECK(result.errors > 0);
  REQUIRE_FALSE(result.messages.empty());
  CHECK_THAT(result.messages.front(), Catch::Contains("disconnected"));
}

TEST_CASE("A block that somebody else has written meanwhile is found") {
  World world(1);
  auto queue = world.session().open_queue_pair(world.host(), {.depth = 2, .buffers = Bytes(kMiB)});
  REQUIRE(queue);
  const auto foreign = (*queue)->buffers()->allocate(kBlocks * 512);
  REQUIRE_FALSE(foreign.empty());
  const iovec data{foreign.data(), foreign.size()};
  initiator::Request request;
  world.network().at(world.network().clock().now() + 2500us, [&] {
    REQUIRE((*queue)->write(request, **world.session().find(Nsid(1)), Lba(0), {&data, 1}) ==
            initiator::Submitted::accepted);
  });
  const JobResult result = world.run(Mix::randwrite, Blocks(1));
  CHECK(request.outcome == initiator::Outcome::success);
  CHECK(result.errors > 0);
  REQUIRE_FALSE(result.messages.empty());
  CHECK_THAT(result.messages.front(), StartsWith("verify: "));
}
