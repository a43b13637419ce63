#include "session_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "target/store/spec.h"
#include "tests/sim/tags.h"

namespace rbt::test {

using namespace std::chrono_literals;
using initiator::Operation;
using initiator::Outcome;
using initiator::Submitted;

namespace {

constexpr const char* kNqn = "nqn.2024-01.io.example:simulated";
constexpr std::uint64_t kFaultyRequests = 250;
constexpr std::uint64_t kHealthyRequests = 60;
constexpr unsigned kTriesPerSession = 20;
constexpr Duration kFaultyTime = 30s;
constexpr Duration kHealingTime = 20s;  // the target's teardown is bounded by 5 s; then a session must come up

transport::sim::NetworkOptions options_for(std::uint64_t seed) {
  transport::sim::NetworkOptions options{.seed = seed};
  options.silent_failure = seed % 3;  // never, always, every other time
  options.rnr_retries = seed % 5 == 0 ? 3 : transport::sim::NetworkOptions::kRetryForever;
  return options;
}

}  // namespace

SessionWorld::SessionWorld(std::uint64_t seed, Logger& logger)
    : seed_(seed), logger_(logger), network_(options_for(seed), logger), random_(seed * 2 + 1) {
  const auto make_reactor = [&] {
    return std::move(transport::Reactor::create(network_.clock(), logger, {.waiter = &network_}).value());
  };
  target::TargetOptions options{.clock = network_.clock(), .logger = logger, .random = random_};
  for (std::size_t i = 0; i < 1 + seed % 2; ++i) {
    target_reactors_.push_back(make_reactor());
    network_.add(*target_reactors_.back());
    options.given_reactors.push_back(target_reactors_.back().get());
  }
  options.limits.buffers = Bytes(8 * kMiB);
  target_ = std::move(target::Target::open(options).value());
  const auto nqn = nvme::Nqn::parse(kNqn).value();
  check(target_->add_subsystem(nqn, {.allow_any_host = true}).has_value(), "the subsystem is new");
  const char* const spec = seed % 4 == 0 ? "ram:size=4MiB,block=4096" : "ram:size=4MiB,block=512";
  auto store = target::make_store(spec, {.clock = network_.clock(), .random = random_, .logger = logger});
  check(store.has_value() && target_->add_namespace(nqn, std::move(*store)).has_value(), "the namespace is new");
  uri_ = Uri::parse(fmt::format("nvme+sim://target/{}/1", kNqn)).value();
  check(target_->listen(network_.fabric("target"), uri_).has_value() && target_->start().has_value(),
        "the target listens");

  reactor_ = make_reactor();
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
}

SessionWorld::~SessionWorld() {
  drop_session();
  target_->drain(Duration::zero());
  (void)network_.run_for(20s, [this] { return target_->drained(); });
  target_.reset();
  for (const auto& reactor : target_reactors_)
    network_.remove(*reactor);
}

void SessionWorld::run(Duration time) {
  (void)reactor_->run_until([] { return false; }, now() + time);
}

void SessionWorld::fail(std::string what) {
  if (!failed()) result_.failure = fmt::format("seed {}, {} ns: {}", seed_, now().time_since_epoch().count(), what);
}

// ---- faults

void SessionWorld::choose_faults() {
  transport::sim::FaultPlan plan;
  const auto sometimes = [this](std::uint64_t n) { return random_.once_in(2) ? n + random_.below(n) : 0; };
  plan.packet_lost = sometimes(300);
  plan.not_ready = sometimes(300);
  plan.stalled = sometimes(500);
  plan.connection_lost = sometimes(2000);
  using transport::sim::Operation;
  plan.of(Operation::connect) = sometimes(10);
  plan.of(Operation::accept) = sometimes(10);
  plan.of(Operation::register_memory) = sometimes(20);
  plan.of(Operation::open_poll_group) = sometimes(10);
  plan.of(Operation::post) = sometimes(1000);
  plan.of(Operation::post_full) = sometimes(50);
  plan.of(Operation::completion) = sometimes(1000);
  network_.faults().plan(plan);
}

void SessionWorld::disturb() {
  switch (random_.below(40)) {
    case 0:
      network_.faults().partition("host", "target");
      network_.at(now() + std::chrono::milliseconds(random_.below(1500)),
                  [this] { network_.faults().join("host", "target"); });
      break;
    case 1: network_.faults().exhaust_receives("target", std::chrono::milliseconds(random_.below(20))); break;
    case 2: network_.faults().exhaust_receives("host", std::chrono::milliseconds(random_.below(20))); break;
    case 3:
      if (random_.once_in(4)) network_.faults().change_address("host");
      break;
    case 4: queues_[random_.below(kQueues)].reset(); break;
    case 5:
      if (random_.once_in(4)) drop_session();
      break;
    default: break;
  }
}

// ---- sessions

bool SessionWorld::connect_once() {
  ++result_.sessions;
  auto session = initiator::Session::connect({network_.fabric("host"), network_.clock(), logger_, random_}, uri_,
                                             {.io_queues = kQueues,
                                              .keep_alive = 1s,
                                              .connect_timeout = 2s,
                                              .command_timeout = 2s,
                                              .management = reactor_.get()});
  if (!session) {
    if (session.error().message().empty()) fail("an error without words");
    return false;
  }
  session_ = std::move(*session);
  const auto space = session_->find(Nsid(1));
  if (!space) return fail("the namespace is not there: " + space.error().message()), false;
  if (space_ && ((*space)->uuid != space_->uuid || (*space)->blocks != space_->blocks))
    return fail("the namespace is another one"), false;
  space_ = **space;
  if (!model_) model_ = std::make_unique<BlockModel>(space_->blocks.value());
  if (random_.once_in(2)) {
    auto registered = session_->register_buffer(arena_.span());
    if (registered) registered_ = std::move(*registered);
  }
  return true;
}

void SessionWorld::drop_session() {
  for (auto& queue : queues_)
    queue.reset();
  registered_.reset();
  session_.reset();
}

// A live session with all its queue pairs, if that can be had in time.
bool SessionWorld::ensure_session(Instant deadline) {
  for (unsigned tries = 1; !failed() && now() < deadline; ++tries) {
    // A target that never noticed the loss of a queue keeps it: only a new association helps then.
    if (session_ && (session_->state() != initiator::SessionState::live || tries % kTriesPerSession == 0))
      drop_session();
    if (!session_ && !connect_once()) {
      run(50ms);
      continue;
    }
    bool all = true;
    for (auto& queue : queues_) {
      if (queue && queue->live()) continue;
      queue.reset();
      auto opened = session_->open_queue_pair(
          *reactor_, {.depth = 2 + static_cast<std::uint32_t>(random_.below(16)), .bounce = Bytes(4 * kMiB)});
      if (opened) queue = std::move(*opened);
      all = all && queue != nullptr;
    }
    if (all) return true;
    run(50ms);
  }
  return false;
}

// ---- requests

bool SessionWorld::submit(Worker& worker) {
  worker.queue = random_.below(kQueues);
  if (!queues_[worker.queue]) return false;
  const std::uint64_t limit = std::min(model_->size(), std::uint64_t{kWorkerBytes} >> space_->block_shift.value());
  worker.blocks = 1 + random_.below(random_.once_in(16) ? limit : std::min<std::uint64_t>(limit, 16));
  // Small areas, so that requests meet.
  worker.first = Lba(random_.below(std::min<std::uint64_t>(model_->size() - worker.blocks + 1, 48)));
  const std::size_t bytes = worker.blocks << space_->block_shift.value();
  const std::size_t cut = random_.once_in(3) ? random_.below(bytes) : bytes;
  worker.pieces = {iovec{worker.memory.data(), cut}, iovec{worker.memory.data() + cut, bytes - cut}};
  constexpr std::array kChoices = {Operation::read,         Operation::read,    Operation::read,
                                   Operation::write,        Operation::write,   Operation::write,
                                   Operation::write_zeroes, Operation::discard, Operation::flush};
  const Operation operation = kChoices[random_.below(kChoices.size())];
  worker.tag = operation == Operation::write ? next_tag_++ : 0;
  worker.began = ++moment_;
  if (operation == Operation::write) {
    const std::size_t size = space_->block_size();
    for (std::uint64_t i = 0; i < worker.blocks; ++i)
      put_tag(worker.memory.subspan(i * size, size), worker.tag);
  }
  const Submitted submitted = submit_chosen(worker, operation);
  if (submitted == Submitted::refused)
    fail(fmt::format("a proper {} was refused: {}", name(operation), name(worker.request.outcome)));
  if (submitted != Submitted::accepted) return false;
  ++result_.requests;
  worker.busy = true;
  if (operation != Operation::read && operation != Operation::flush)
    for (std::uint64_t i = 0; i < worker.blocks; ++i)
      model_->begin_write(worker.first.value() + i, worker.tag, worker.began);
  return true;
}

Submitted SessionWorld::submit_chosen(Worker& worker, Operation operation) {
  initiator::QueuePair& queue = *queues_[worker.queue];
  const BlockRange range{worker.first, Blocks(worker.blocks)};
  const auto fua = random_.once_in(4) ? nvme::ForceUnitAccess::yes : nvme::ForceUnitAccess::no;
  switch (operation) {
    case Operation::read: return queue.read(worker.request, *space_, worker.first, worker.pieces);
    case Operation::write: return queue.write(worker.request, *space_, worker.first, worker.pieces, fua);
    case Operation::write_zeroes: return queue.write_zeroes(worker.request, *space_, range, nvme::Deallocate::no, fua);
    case Operation::discard:
      worker.discarded = range;
      return queue.discard(worker.request, *space_, {&worker.discarded, 1});
    case Operation::flush: return queue.flush(worker.request, *space_);
    case Operation::compare: break;
  }
  return Submitted::refused;
}

void SessionWorld::finish(Worker& worker) {
  if (!worker.busy) return fail("a request is done twice, or was never accepted");
  worker.busy = false;
  ++moment_;
  const initiator::Request& request = worker.request;
  if (request.outcome == Outcome::success) {
    if (request.operation == Operation::read) check_read(worker);
    // A discard may or may not have cleared: like a write of zeroes that never ends.
    if (request.operation == Operation::write || request.operation == Operation::write_zeroes)
      for (std::uint64_t i = 0; i < worker.blocks; ++i)
        model_->end_write(worker.first.value() + i, worker.tag, worker.began, moment_);
    return;
  }
  ++result_.failed_requests;
  if (request.outcome == Outcome::failed)
    fail(fmt::format("{} failed with {}", name(request.operation), nvme::describe(request.status)));
}

void SessionWorld::check_read(const Worker& worker) {
  const std::size_t size = space_->block_size();
  for (std::uint64_t i = 0; i < worker.blocks; ++i) {
    const auto tag = tag_of(worker.memory.subspan(i * size, size));
    const std::uint64_t block = worker.first.value() + i;
    if (!tag) return fail(fmt::format("block {} is torn", block));
    if (!model_->may_read(block, *tag, worker.began))
      return fail(fmt::format("block {} holds {}; allowed:{}", block, *tag, model_->allowed(block, worker.began)));
  }
}

// ---- the run

void SessionWorld::work(std::uint64_t requests, Instant deadline, bool faults) {
  const std::uint64_t until = result_.requests + requests;
  while (!failed() && result_.requests < until && now() < deadline) {
    if (!ensure_session(deadline)) return;
    if (faults) disturb();
    Moment oldest = moment_;
    for (Worker& worker : workers_) {
      if (!worker.busy && session_) (void)submit(worker);
      if (worker.busy) oldest = std::min(oldest, worker.began);
    }
    model_->set_oldest_read(oldest);
    const std::uint64_t before = moment_;
    (void)reactor_->run_until([&] { return moment_ != before; }, now() + 10ms);
  }
}

void SessionWorld::drain() {
  const auto idle = [this] {
    return std::none_of(workers_.begin(), workers_.end(), [](const Worker& worker) { return worker.busy; });
  };
  if (!reactor_->run_until(idle, now() + 15s)) fail("a request is never done");
}

void SessionWorld::read_everything() {
  Worker& worker = workers_.front();
  const std::uint64_t step = std::uint64_t{kWorkerBytes} >> space_->block_shift.value();
  for (std::uint64_t first = 0; first < model_->size() && !failed(); first += step) {
    worker.first = Lba(first);
    worker.blocks = std::min(step, model_->size() - first);
    worker.pieces = {iovec{worker.memory.data(), worker.blocks << space_->block_shift.value()}, iovec{}};
    worker.began = ++moment_;
    worker.busy = true;
    if (queues_[0]->read(worker.request, *space_, worker.first, worker.pieces) != Submitted::accepted)
      return fail("the last read is not accepted");
    drain();
    if (worker.request.outcome != Outcome::success)
      return fail(fmt::format("the last read: {}", name(worker.request.outcome)));
  }
}

SimulationResult SessionWorld::run() {
  choose_faults();
  work(kFaultyRequests, now() + kFaultyTime, true);
  network_.faults().heal();
  if (!failed()) drain();
  if (!failed() && !ensure_session(now() + kHealingTime))
    fail("no session comes up although the network is well again");
  if (!failed()) {
    const std::uint64_t failed_before = result_.failed_requests;
    const std::uint64_t requests_before = result_.requests;
    work(kHealthyRequests, now() + 10s, false);
    drain();
    if (result_.requests < requests_before + kHealthyRequests) fail("too little gets done on a healthy network");
    if (result_.failed_requests != failed_before) fail("requests fail on a healthy network");
  }
  if (!failed()) read_everything();
  drop_session();
  (void)network_.run_for(10s, [this] { return target_->statistics().connections() == 0; });
  const auto statistics = target_->statistics();
  if (statistics.connections() != 0 || statistics.controllers != 0)
    fail(fmt::format("the target keeps {} connections and {} controllers", statistics.connections(),
                     statistics.controllers));
  for (const auto& reactor : statistics.reactors)
    if (reactor.buffers_free != reactor.buffers_size) fail("the target keeps buffers");
  if (network_.deadlocks() != 0) fail("the world stood still");
  result_.trace_hash = network_.trace_hash();
  return result_;
}

SimulationResult simulate(std::uint64_t seed, bool verbose) {
  const auto to_stderr = make_stderr_logger(LogLevel::debug);
  SessionWorld world(seed, verbose ? *to_stderr : null_logger());
  return world.run();
}

}  // namespace rbt::test
