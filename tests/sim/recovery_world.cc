#include "tests/sim/recovery_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "common/check.h"
#include "target/store/delay_layer.h"
#include "target/store/spec.h"
#include "tests/sim/kept_store.h"
#include "tests/sim/straggling_store.h"
#include "tests/sim/tags.h"

namespace rbt::test {

using namespace std::chrono_literals;
using initiator::Operation;
using initiator::Outcome;
using initiator::Submitted;
using Trouble = RecoveryPlan::Trouble;

namespace {

constexpr const char* kNqn = "nqn.2024-01.io.example:recovered";
constexpr const char* kUri = "nvme+sim://target/nqn.2024-01.io.example:recovered/1";
constexpr Duration kTroubledTime = 6s;  // crashes
constexpr Duration kSlowTime = 20s;     // network
constexpr Duration kQuietTime = 1s;
constexpr Duration kThinkingTime = 25ms;  // of all callers, between two requests
// Every store operation of a crashing target takes a while, so that a crash finds something half done; writes of the other
// one take longer than the host waits for an answer, now and then.
constexpr Duration kQuickMax = 300us;
constexpr Duration kCommandTimeout = 1200ms;

}  // namespace

RecoveryWorld::RecoveryWorld(std::uint64_t seed, const RecoveryPlan& plan, Logger& logger)
    : seed_(seed), plan_(plan), logger_(logger), network_({.seed = seed}, logger), random_(seed * 2 + 1) {
  // Shadow blocks: a write is there when it is committed, not as its data comes, and waits for no other.
  auto disk = target::make_store(fmt::format("ram:size={},block=512,atomic=shadow", kBlocks * 512),
                                 {.clock = network_.clock(), .random = random_, .logger = logger});
  check(disk.has_value(), "the disk can be made");
  disk_ = std::move(*disk);
  reactor_ = transport::Reactor::create(network_.clock(), logger, {.waiter = &network_}).value();
  for (std::size_t i = 0; i < seed % kLanesMax; ++i) {
    lane_reactors_.push_back(transport::Reactor::create(network_.clock(), logger, {.waiter = &network_}).value());
    network_.add(*lane_reactors_.back());
  }
  constexpr std::size_t kWorkerBytes = kTransferBlocks * 512;
  arena_ = transport::SharedMemory::create(Bytes(kWorkers * kWorkerBytes), {}).value();
  for (std::size_t i = 0; i < kWorkers; ++i) {
    workers_[i].world = this;
    workers_[i].memory = std::span(arena_.data(), arena_.size()).subspan(i * kWorkerBytes, kWorkerBytes);
    workers_[i].request.context = &workers_[i];
    workers_[i].request.done = [](initiator::Request& request) {
      auto& worker = *static_cast<Worker*>(request.context);
      worker.world->finish(worker);
    };
  }
  power_on();
  open_volume(Duration::zero());
}

void RecoveryWorld::open_volume(Duration patience) {
  std::vector<transport::Reactor*> lanes;
  for (const auto& reactor : lane_reactors_)
    lanes.push_back(reactor.get());
  auto volume = initiator::Volume::open(
      {network_.fabric("host"), network_.clock(), logger_, random_}, std::array{Uri::parse(kUri).value()}, *reactor_,
      {.session = {.keep_alive = 2s, .command_timeout = kCommandTimeout},
       .queue = {.depth = 6, .bounce = Bytes(2 * kMiB)},
       .lane_reactors = lanes,
       .unflushed = Bytes(plan_.remember ? 4 * kMiB : 0),
       .fencing = plan_.fencing,
       .open_patience = patience,
       .predecessor = plan_.succeed ? record_ : std::nullopt,
       .on_succession = [this](const initiator::Succession& succession) -> Result<void> {
         record_ = succession;
         return {};
       }});
  if (!volume) return fail(fmt::format("the volume is not opened: {}", volume.error().message()));
  volume_ = std::move(*volume);
}

// As the kernel does with a block device: what was in flight is given to the next process, in order.
void RecoveryWorld::kill_process() {
  network_.faults().change_address("host");  // its connections end without a word of its own
  killing_ = true;
  note_statistics();
  volume_.reset();
  killing_ = false;
  ++result_.crashes;
  open_volume(120s);
  std::vector<Worker*> orphans;
  for (Worker& worker : workers_)
    if (std::exchange(worker.orphaned, false)) orphans.push_back(&worker);
  std::sort(orphans.begin(), orphans.end(), [](const Worker* a, const Worker* b) { return a->began < b->began; });
  for (Worker* const orphan : orphans)
    if (!failed() && resubmit(*orphan) != Submitted::accepted) fail("an orphaned request is not accepted");
}

RecoveryWorld::~RecoveryWorld() {
  volume_.reset();
  for (const auto& reactor : lane_reactors_)
    network_.remove(*reactor);
  if (target_) power_off();
}

// ---- the target

void RecoveryWorld::power_on() {
  std::unique_ptr<target::Store> store = std::make_unique<KeptStore>(*disk_);
  if (plan_.trouble != Trouble::crashes) {
    store = std::make_unique<StragglingStore>(std::move(store), random_());
  } else {
    target::DelayOptions delay;
    delay.seed = random_();
    delay.of.fill({Duration::zero(), kQuickMax});
    store = target::make_delay_layer(std::move(store), delay);
    auto cache =
        target::DropUnflushed::create(std::move(store), {.memory = Bytes(target::DropUnflushedOptions::kMemoryMin)});
    check(cache.has_value(), "the cache can be made");
    cache_ = cache->get();
    store = std::move(*cache);
  }
  target_reactor_ = transport::Reactor::create(network_.clock(), logger_, {.waiter = &network_}).value();
  network_.add(*target_reactor_);
  target::TargetOptions options{.clock = network_.clock(), .logger = logger_, .random = random_};
  options.given_reactors.push_back(target_reactor_.get());
  options.limits.buffers = Bytes(8 * kMiB);
  target_ = std::move(target::Target::open(options).value());
  const auto nqn = nvme::Nqn::parse(kNqn).value();
  check(target_->add_subsystem(nqn, {.allow_any_host = true}).has_value(), "the subsystem is new");
  check(target_->add_namespace(nqn, std::move(store)).has_value(), "the namespace is new");
  check(
      target_->listen(network_.fabric("target"), Uri::parse(kUri).value()).has_value() && target_->start().has_value(),
      "the target listens");
}

/// From one moment to the next nothing of it reaches anybody. What is taken down behind the cut is the test's own.
void RecoveryWorld::power_off() {
  network_.faults().partition("host", "target");
  if (cache_ != nullptr) cache_->crash();
  target_->drain(Duration::zero());
  (void)network_.run_for(60s, [this] { return target_->drained(); });
  check(target_->drained(), "a target whose store answers ends");
  target_.reset();
  network_.remove(*target_reactor_);
  target_reactor_.reset();
}

void RecoveryWorld::disturb() {
  auto& faults = network_.faults();
  if (plan_.trouble == Trouble::processes && random_.once_in(2)) return kill_process();
  if (plan_.trouble != Trouble::crashes) {
    transport::sim::FaultPlan plan;
    plan.connection_lost = random_.once_in(2) ? 300 : 0;
    plan.packet_lost = random_.once_in(2) ? 200 : 0;
    plan.of(transport::sim::Operation::connect) = random_.once_in(3) ? 3 : 0;
    plan.of(transport::sim::Operation::register_memory) = random_.once_in(3) ? 20 : 0;
    plan.of(transport::sim::Operation::completion) = random_.once_in(3) ? 200 : 0;
    faults.plan(plan);
    if (random_.once_in(8)) faults.change_address("host");
    if (random_.once_in(6)) {
      faults.partition("host", "target");
      network_.at(now() + std::chrono::milliseconds(random_.below(2500)),
                  [this] { network_.faults().join("host", "target"); });
    }
    return;
  }
  power_off();
  ++result_.crashes;
  const bool soon = random_.once_in(2);  // the machine answers before the target does
  if (soon) network_.faults().join("host", "target");
  (void)reactor_->run_until([] { return false; }, now() + std::chrono::milliseconds(random_.below(800)));
  power_on();
  if (!soon) network_.faults().join("host", "target");
}

// ---- the caller

void RecoveryWorld::fail(std::string what) {
  if (!failed()) result_.failure = fmt::format("seed {}, {} ns: {}", seed_, now().time_since_epoch().count(), what);
}

void RecoveryWorld::submit(Worker& worker) {
  constexpr std::array kChoices = {Operation::read,  Operation::read,         Operation::read,  Operation::write,
                                   Operation::write, Operation::write,        Operation::write, Operation::write,
                                   Operation::write, Operation::write_zeroes, Operation::flush};
  const Operation operation = random_.once_in(40) ? Operation::discard : kChoices.at(random_.below(kChoices.size()));
  const std::uint64_t blocks = 1 + random_.below(kTransferBlocks);
  worker.range = {Lba(random_.below(kBlocks - blocks + 1)), Blocks(blocks)};
  worker.piece = {worker.memory.data(), blocks * 512};
  worker.tag = operation == Operation::write ? next_tag_++ : 0;
  worker.began = ++moment_;
  if (operation == Operation::write)
    for (std::uint64_t i = 0; i < blocks; ++i)
      put_tag(worker.memory.subspan(i * 512, 512), worker.tag);
  const Submitted submitted = submit_chosen(worker, operation);
  if (submitted != Submitted::accepted)
    return fail(fmt::format("a proper {} is not accepted: {}", name(operation), name(worker.request.outcome)));
  ++result_.requests;
  worker.busy = true;
  if (operation != Operation::read && operation != Operation::flush)
    for (std::uint64_t block = worker.range.first.value(); block < worker.range.end().value(); ++block)
      model_.begin_write(block, worker.tag, worker.began);
}

Submitted RecoveryWorld::resubmit(Worker& worker) {
  return volume_->lane(worker.lane).submit(worker.request);
}

Submitted RecoveryWorld::submit_chosen(Worker& worker, Operation operation) {
  worker.lane = volume_->lanes() == 1 ? 0 : random_.below(volume_->lanes());
  initiator::Request& request = worker.request;
  request.operation = operation;
  request.range = worker.range;
  request.data = {&worker.piece, 1};
  request.ranges = {&worker.range, 1};
  request.deallocate = nvme::Deallocate::no;
  request.fua =
      operation != Operation::read && random_.once_in(6) ? nvme::ForceUnitAccess::yes : nvme::ForceUnitAccess::no;
  return resubmit(worker);
}

void RecoveryWorld::finish(Worker& worker) {
  if (!worker.busy) return fail("a request is done twice, or was never accepted");
  worker.busy = false;
  ++moment_;
  const initiator::Request& request = worker.request;
  if (killing_ && request.outcome == Outcome::aborted) {
    worker.busy = worker.orphaned = true;
    return;
  }
  if (request.outcome != Outcome::success) {
    if (volume_ == nullptr || request.outcome == Outcome::aborted) return;  // the end of a failed run
    return fail(
        fmt::format("{}: {} {}", name(request.operation), name(request.outcome), nvme::describe(request.status)));
  }
  if (request.operation == Operation::read) check_read(worker);
  // A discard may or may not have cleared: like a write of zeroes that never ends.
  if (request.operation == Operation::write || request.operation == Operation::write_zeroes)
    for (std::uint64_t block = worker.range.first.value(); block < worker.range.end().value(); ++block)
      model_.end_write(block, worker.tag, worker.began, moment_);
}

void RecoveryWorld::check_read(const Worker& worker) {
  for (std::uint64_t block = worker.range.first.value(); block < worker.range.end().value(); ++block) {
    const std::size_t at = (block - worker.range.first.value()) * 512;
    const auto tag = tag_of(worker.memory.subspan(at, 512));
    if (!tag) return fail(fmt::format("block {} is torn", block));
    if (!model_.may_read(block, *tag, worker.began))
      return fail(fmt::format("block {} holds {}; allowed:{}", block, *tag, model_.allowed(block, worker.began)));
  }
}

void RecoveryWorld::work(Duration time, bool trouble) {
  const Instant end = now() + time;
  Instant next_trouble = now() + std::chrono::milliseconds(random_.below(1000));
  while (!failed() && now() < end) {
    Moment oldest = moment_;
    for (Worker& worker : workers_) {
      if (!worker.busy && !failed()) submit(worker);
      if (worker.busy) oldest = std::min(oldest, worker.began);
    }
    model_.set_oldest_read(oldest);
    if (trouble && now() >= next_trouble) {
      const auto soon = static_cast<Duration::rep>(random_.below(static_cast<std::uint64_t>(2 * kQuickMax.count())));
      (void)volume_->run_until([] { return false; }, now() + Duration(soon));  // in the middle of something
      disturb();
      next_trouble =
          now() + std::chrono::milliseconds(100 + random_.below(plan_.trouble == Trouble::crashes ? 1000 : 4000));
    }
    (void)volume_->run_until([] { return false; }, now() + kThinkingTime);
  }
}

void RecoveryWorld::drain() {
  const auto idle = [this] {
    return std::none_of(workers_.begin(), workers_.end(), [](const Worker& worker) { return worker.busy; });
  };
  if (!volume_->run_until(idle, now() + 60s)) fail("a request is never done although all is well again");
}

void RecoveryWorld::read_everything() {
  Worker& worker = workers_.front();
  for (std::uint64_t first = 0; first < kBlocks && !failed(); first += kTransferBlocks) {
    worker.range = {Lba(first), Blocks(std::min(kTransferBlocks, kBlocks - first))};
    worker.piece = {worker.memory.data(), worker.range.count.value() * 512};
    worker.began = ++moment_;
    worker.busy = true;
    if (volume_->read(worker.request, worker.range.first, {&worker.piece, 1}) != Submitted::accepted)
      return fail("the last read is not accepted");
    drain();
  }
}

void RecoveryWorld::note_statistics() {
  const initiator::VolumeStatistics& statistics = volume_->statistics();
  result_.losses += statistics.losses;
  result_.attempts += statistics.attempts;
  result_.reissued += statistics.reissued;
  result_.rewritten += statistics.rewritten;
}

RecoveryResult RecoveryWorld::run() {
  work(plan_.trouble == Trouble::crashes ? kTroubledTime : kSlowTime, true);
  network_.faults().heal();
  if (!failed()) work(kQuietTime, false);
  if (!failed()) drain();
  if (!failed()) read_everything();
  if (!failed() && volume_->state() != initiator::VolumeState::live) fail("the volume is not live in the end");
  note_statistics();
  result_.trace_hash = network_.trace_hash();
  volume_.reset();
  return result_;
}

}  // namespace rbt::test
