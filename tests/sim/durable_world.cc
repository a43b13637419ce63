#include "tests/sim/durable_world.h"

#include <fmt/format.h>

#include <chrono>

#include "common/check.h"
#include "target/store/delay_layer.h"
#include "target/store/spec.h"
#include "tests/sim/kept_store.h"

namespace rbt::test {

using namespace std::chrono_literals;

namespace {

constexpr const char* kNqn = "nqn.2024-01.io.example:durable";

}  // namespace

DurableWorld::DurableWorld(std::uint64_t seed, Lie lie, Logger& logger)
    : seed_(seed), lie_(lie), logger_(logger), network_({.seed = seed}, logger), random_(seed * 2 + 1) {
  const std::uint64_t block = seed % 2 == 0 ? 512 : 4096;
  auto disk = target::make_store(fmt::format("ram:size={},block={}", kBlocks * block, block),
                                 {.clock = network_.clock(), .random = random_, .logger = logger});
  check(disk.has_value(), "the disk can be made");
  disk_ = std::move(*disk);
  reactor_ = transport::Reactor::create(network_.clock(), logger, {.waiter = &network_}).value();
  load_ = std::make_unique<DurableLoad>(*reactor_, random_, kBlocks);
}

DurableWorld::~DurableWorld() {
  if (target_) crash();
}

void DurableWorld::power_on() {
  // The store below takes its time: a crash finds a flush half done.
  target::DelayOptions slow;
  slow.of.fill({Duration::zero(), 300us});
  slow.seed = random_();
  auto cache = target::DropUnflushed::create(target::make_delay_layer(std::make_unique<KeptStore>(*disk_), slow),
                                             {.memory = Bytes(target::DropUnflushedOptions::kMemoryMin)});
  check(cache.has_value(), "the cache can be made");
  cache_ = cache->get();
  target_reactor_ = transport::Reactor::create(network_.clock(), logger_, {.waiter = &network_}).value();
  network_.add(*target_reactor_);
  target::TargetOptions options{.clock = network_.clock(), .logger = logger_, .random = random_};
  options.given_reactors.push_back(target_reactor_.get());
  options.limits.buffers = Bytes(8 * kMiB);
  target_ = std::move(target::Target::open(options).value());
  const auto nqn = nvme::Nqn::parse(kNqn).value();
  check(target_->add_subsystem(nqn, {.allow_any_host = true}).has_value(), "the subsystem is new");
  check(target_->add_namespace(nqn, std::make_unique<LyingStore>(std::move(*cache), lie_)).has_value(),
        "the namespace is new");
  const Uri uri = Uri::parse(std::string("nvme+sim://target/") + kNqn + "/1").value();
  check(target_->listen(network_.fabric("target"), uri).has_value() && target_->start().has_value(),
        "the target listens");
  auto session = initiator::Session::connect({network_.fabric("host"), network_.clock(), logger_, random_}, uri,
                                             {.management = reactor_.get()});
  if (!session) return load_->fail(session.error().message());
  session_ = std::move(*session);
  auto queue = session_->open_queue_pair(*reactor_, {.depth = 8, .bounce = Bytes(kMiB)});
  if (!queue) return load_->fail(queue.error().message());
  queue_ = std::move(*queue);
  load_->attach(*queue_, **session_->find(Nsid(1)));
}

/// The target is gone from one moment to the next. What is taken down after crash() is the test's own.
void DurableWorld::crash() {
  load_->stop_believing();
  cache_->crash();
  queue_.reset();
  session_.reset();
  load_->detach();
  target_->drain(Duration::zero());
  (void)network_.run_for(20s, [this] { return target_->drained(); });
  check(target_->drained(), "a target whose store answers ends");
  target_.reset();
  network_.remove(*target_reactor_);
  target_reactor_.reset();
  ++crashes_;
}

DurabilityResult DurableWorld::run() {
  for (std::uint64_t life = 0; life < kLives && !load_->failed(); ++life) {
    power_on();
    // Until a moment that nothing in the target knows of.
    load_->run(network_.clock().now() + Duration(random_.below(20'000'000)));
    crash();
  }
  if (!load_->failed()) power_on();
  DurabilityResult result{.failure = {},
                          .requests = load_->requests,
                          .crashes = crashes_,
                          .lost = load_->lost,
                          .unknown = load_->unknown,
                          .trace_hash = network_.trace_hash()};
  if (load_->failed()) result.failure = fmt::format("seed {}, life {}: {}", seed_, crashes_ + 1, load_->failure());
  return result;
}

}  // namespace rbt::test
