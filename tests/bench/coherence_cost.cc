// What being watched costs a command while nothing happens: machine instructions, counted one by one (ptrace), of 4 KiB
// reads over the simulated fabric, initiator and target and network in one thread. Three times the same: a ram store; the
// same with each lease counted in and out of a region (Use::enter(), leave()) with nobody watching; and with a monitor whose
// threads watch that region. Counts, not times: they do not depend on what else the machine does.
//   coherence_cost [READS [LIMIT]]      fails if being counted or watched costs more than LIMIT instructions a read

#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/check.h"
#include "initiator/initiator.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "transport/coherence/monitor.h"
#include "transport/coherence/userfault.h"
#include "transport/sim/network.h"

namespace {

using namespace rbt;
using namespace rbt::target;
using namespace rbt::transport::coherence;
using namespace std::chrono_literals;

enum class Watching { no, counted, watched };

/// A store's memory that could be exchanged: here nobody does.
struct Guard final : UserHandler {
  Guard(const Clock& clock, Logger& logger, Watching watching)
      : memory(transport::SharedMemory::create(Bytes(4096), {}).value()),
        registered(memory.span(), transport::RemoteAccess::none) {
    const auto threads = watching == Watching::watched ? MonitorOptions::Threads::own : MonitorOptions::Threads::manual;
    monitor = Monitor::start(clock, logger, {.threads = threads}).value();
    std::vector<std::unique_ptr<Watch>> watches;
    if (watching == Watching::watched) watches.push_back(make_userfault_watch(memory.span(), clock).value());
    region = monitor->add(registration, std::move(watches), {.name = "guarded"}).value();
    check(region->restore().has_value(), "the region is registered");
    use = std::make_unique<Use>(*region, user);
  }
  void on_region_overdue(Use&) override {}
  void on_region_fenced(Use&) override {}
  void on_region_coherent(Use&) override {}
  transport::SharedMemory memory;
  transport::RegisteredMemory registered;
  MemoryRegistration registration{registered};
  std::unique_ptr<Monitor> monitor;
  std::unique_ptr<Region> region;
  User user{*this};
  std::unique_ptr<Use> use;
  std::uint64_t passes = 0;
};

/// The queue below, with each lease counted in and out. One lease at a time.
class GuardedQueue final : public StoreQueue {
 public:
  GuardedQueue(std::unique_ptr<StoreQueue> below, Guard* guard) : below_(std::move(below)), guard_(guard) {}
  Progress acquire(Lease& lease, StoreRequest& request) override {
    if (guard_ != nullptr) {
      pass_ = guard_->use->enter();
      check(static_cast<bool>(pass_), "nothing happens here");
    }
    return below_->acquire(lease, request);
  }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    return below_->commit(lease, durability, request);
  }
  void release(Lease& lease) noexcept override {
    below_->release(lease);
    if (guard_ == nullptr) return;
    check(guard_->use->leave(pass_) == Passage::clean, "nothing happens here");
    ++guard_->passes;
  }
  Progress flush(StoreRequest& request) override { return below_->flush(request); }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    return below_->discard(ranges, request);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    return below_->write_zeroes(range, deallocate, durability, request);
  }

 private:
  std::unique_ptr<StoreQueue> below_;
  Guard* guard_;
  Pass pass_;
};

class GuardedStore final : public Store {
 public:
  GuardedStore(std::unique_ptr<Store> below, Guard* guard) : below_(std::move(below)), guard_(guard) {}
  Geometry geometry() const override { return below_->geometry(); }
  const Identity& identity() const noexcept override { return below_->identity(); }
  const std::string& spec() const noexcept override { return below_->spec(); }
  Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override {
    return below_->prepare(domain, path_mtu);
  }
  Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override {
    return std::make_unique<GuardedQueue>(below_->open_queue(context).value(), guard_);
  }

 private:
  std::unique_ptr<Store> below_;
  Guard* guard_;
};

/// Between the two stops: `count` reads, one after the other.
void reads(Watching watching, int count) {
  Logger& log = null_logger();
  transport::sim::Network network({.seed = 1});
  const SystemClock real;  // the monitor's threads live in real time
  std::unique_ptr<Guard> guard;
  if (watching != Watching::no) guard = std::make_unique<Guard>(real, log, watching);
  const auto reactor = [&] {
    return std::move(transport::Reactor::create(network.clock(), log, {.waiter = &network}).value());
  };
  auto target_reactor = reactor(), host_reactor = reactor();
  network.add(*target_reactor);
  TargetOptions options{.clock = network.clock(), .logger = log, .random = network.random()};
  options.given_reactors.push_back(target_reactor.get());
  auto target = Target::open(options).value();
  const auto nqn = nvme::Nqn::parse("nqn.2024-01.io.example:cost").value();
  auto store =
      make_store("ram:size=4MiB,block=4096", {.clock = network.clock(), .random = network.random(), .logger = log});
  const Uri uri = Uri::parse("nvme+sim://target/nqn.2024-01.io.example:cost/1").value();
  check(target->add_subsystem(nqn, {.allow_any_host = true}).has_value() &&
            target->add_namespace(nqn, std::make_unique<GuardedStore>(std::move(*store), guard.get())).has_value() &&
            target->listen(network.fabric("target"), uri).has_value() && target->start().has_value(),
        "the target serves");
  initiator::SessionOptions session_options;
  session_options.management = host_reactor.get();
  auto session = initiator::Session::connect({network.fabric("host"), network.clock(), log, network.random()}, uri,
                                             session_options)
                     .value();
  auto queue = session->open_queue_pair(*host_reactor, {.buffers = Bytes(2 * kMiB)}).value();
  const auto memory = queue->buffers()->allocate(4096);
  const iovec piece{memory.data(), memory.size()};
  const auto read = [&](int number) {
    initiator::Request request;
    check(queue->read(request, session->namespaces().front(), Lba(static_cast<std::uint64_t>(number)), {&piece, 1}) ==
                  initiator::Submitted::accepted &&
              queue->wait(request, network.clock().now() + 10s) && request.outcome == initiator::Outcome::success,
          "a read succeeds");
  };
  for (int i = 0; i < 100; ++i)  // everything has grown to its size
    read(i);
  const std::uint64_t before = guard ? guard->passes : 0;
  std::raise(SIGSTOP);
  for (int i = 0; i < count; ++i)
    read(i);
  std::raise(SIGSTOP);
  check(!guard || guard->passes == before + static_cast<std::uint64_t>(count), "each read was counted in and out");
  ::_exit(0);
}

/// Instructions of the child's main thread between its two stops.
std::uint64_t count_instructions(Watching watching, int reads_wanted) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    reads(watching, reads_wanted);
  }
  std::uint64_t count = 0;
  int status = 0;
  const auto stopped_by = [&](int signal) { return WIFSTOPPED(status) && WSTOPSIG(status) == signal; };
  check(::waitpid(child, &status, 0) == child && stopped_by(SIGSTOP), "the child is ready");
  do {
    check(::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0, "single step");
    check(::waitpid(child, &status, 0) == child, "waitpid");
    ++count;
  } while (stopped_by(SIGTRAP));
  check(stopped_by(SIGSTOP), "the child has read everything");
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return count;
}

/// Per read: the difference of two runs, so that what is around the reads is not counted.
double per_read(Watching watching, int reads_wanted) {
  const std::uint64_t some = count_instructions(watching, reads_wanted);
  const std::uint64_t more = count_instructions(watching, 2 * reads_wanted);
  return static_cast<double>(more - some) / reads_wanted;
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 2;  // a step is a context switch or two
  const double none = per_read(Watching::no, count);
  fmt::print("instructions per 4 KiB read over sim, mean of {} (one thread: initiator, target, network)\n", count);
  const auto row = [&](const char* what, double value) {
    fmt::print("{:<44} {:>10.1f}  {:>+7.1f}  {:>+6.3f} %\n", what, value, value - none, (value / none - 1) * 100);
  };
  row("no region", none);
  const double counted = per_read(Watching::counted, count);
  const double watched = per_read(Watching::watched, count);
  row("counted in and out of a region, no monitor", counted);
  row("the same, with a monitor that watches it", watched);
  if (argc <= 2) return 0;
  const double limit = std::atof(argv[2]);
  if (counted - none <= limit && watched - none <= limit) return 0;
  fmt::print("more than {} instructions a read: what is counted and what is watched must cost no more\n", limit);
  return 1;
}
