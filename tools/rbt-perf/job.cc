#include "tools/rbt-perf/job.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "common/random.h"
#include "tools/rbt-perf/pattern.h"

namespace rbt::tools {

namespace {

constexpr std::size_t kMessagesMax = 5;
// After the last request of a phase was sent: longer than any command may take before the queue pair gives it up.
constexpr Duration kDrainMax = std::chrono::minutes(2);

Duration thread_cpu() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  const auto duration = [](const timeval& t) {
    return std::chrono::seconds(t.tv_sec) + std::chrono::microseconds(t.tv_usec);
  };
  return duration(usage.ru_utime) + duration(usage.ru_stime);
}

// One thread; dies with its queue pair.
class Job {
 public:
  Job(initiator::QueuePair& queue, transport::Reactor& reactor, const initiator::Namespace& disk,
      const JobOptions& options, const Interrupt& interrupt)
      : queue_(queue),
        reactor_(reactor),
        disk_(disk),
        options_(options),
        interrupt_(interrupt),
        random_(options.seed),
        places_(options.part.count.value() / options.block.value()) {}

  Result<JobResult> run();

 private:
  enum class Phase : std::uint8_t {
    fill,       // every place once, in order: so that there is something to verify
    measure,    // what was asked for, until the time is over
    read_back,  // every place that was written, in order
    over,
  };
  struct Slot {
    initiator::Request request;
    iovec data{};
    Job* job = nullptr;
    std::uint64_t place = 0;
    bool write = false;
    Instant sent{};
  };

  void run_phase(Phase phase);
  void issue(Slot& slot);
  [[nodiscard]] bool choose(Slot& slot);
  void submit(Slot& slot);
  void done(Slot& slot);
  void check(Slot& slot);
  void complain(std::string message);
  [[nodiscard]] std::span<std::byte> bytes(const Slot& slot) const {
    return {static_cast<std::byte*>(slot.data.iov_base), slot.data.iov_len};
  }
  [[nodiscard]] Lba lba(std::uint64_t place) const {
    return options_.part.first + Blocks(place * options_.block.value());
  }

  initiator::QueuePair& queue_;
  transport::Reactor& reactor_;
  const initiator::Namespace& disk_;
  const JobOptions& options_;
  const Interrupt& interrupt_;
  Random random_;
  std::uint64_t places_;
  Phase phase_ = Phase::over;
  Instant end_{};
  std::uint64_t next_ = 0;
  std::vector<Slot> slots_;
  std::vector<Slot*> waiting_;              // the queue was full
  std::vector<std::uint32_t> generations_;  // --verify: of each place; 0: not ours
  std::vector<bool> busy_;                  // --verify: a request is on its way there
  std::uint32_t in_flight_ = 0;
  JobResult result_;
};

Result<JobResult> Job::run() {
  const std::uint64_t size = options_.block.value() << disk_.block_shift.value();
  slots_ = std::vector<Slot>(options_.depth);
  waiting_.reserve(options_.depth);
  if (options_.verify) {
    generations_.resize(places_);
    busy_.resize(places_);
  }
  for (Slot& slot : slots_) {
    const auto buffer = queue_.buffers()->allocate(size);
    if (buffer.empty())
      return failure(ErrorKind::resource, fmt::format("no memory for {} buffers of {} bytes", options_.depth, size));
    Random(options_.seed).fill(buffer);
    slot.data = {buffer.data(), size};
    slot.job = this;
    slot.request.context = &slot;
    slot.request.done = [](initiator::Request& request) {
      auto& mine = *static_cast<Slot*>(request.context);
      mine.job->done(mine);
    };
  }
  if (options_.verify && !writes(options_.mix)) run_phase(Phase::fill);
  const Instant began = reactor_.clock().now();
  const Duration cpu = thread_cpu();
  const auto calls = [this] {
    const auto counters = queue_.counters().transport;
    return counters.doorbells + counters.wake_ups +
           reactor_.counters().descriptor_polls.load(std::memory_order_relaxed);
  };
  const std::uint64_t calls_before = calls();
  end_ = began + options_.runtime;
  run_phase(Phase::measure);
  result_.elapsed = reactor_.clock().now() - began;
  result_.cpu = thread_cpu() - cpu;
  result_.system_calls = calls() - calls_before;
  if (options_.verify) run_phase(Phase::read_back);
  result_.counters = queue_.counters();
  return std::move(result_);
}

void Job::run_phase(Phase phase) {
  phase_ = phase;
  next_ = 0;
  waiting_.clear();
  for (Slot& slot : slots_)
    issue(slot);
  const auto drained = [this] { return in_flight_ == 0; };
  while (!drained()) {
    // Every request has its deadline in the queue pair: it comes back, if only as a failure.
    if (!reactor_.run_until(drained, reactor_.clock().now() + options_.runtime + kDrainMax)) {
      complain("requests did not come back: a defect of rbt");
      break;
    }
  }
  phase_ = Phase::over;
}

// The next place for this slot; false when the phase has nothing more for it.
bool Job::choose(Slot& slot) {
  if (interrupt_.raised() || !queue_.live()) return false;
  switch (phase_) {
    case Phase::fill:
      slot.write = true;
      slot.place = next_++;
      return slot.place < places_;
    case Phase::read_back:
      slot.write = false;
      while (next_ < places_ && generations_[next_] == 0)
        ++next_;
      slot.place = next_++;
      return slot.place < places_;
    case Phase::measure: break;
    case Phase::over: return false;
  }
  if (reactor_.clock().now() >= end_) return false;
  slot.write = options_.mix == Mix::randrw ? random_.below(100) >= options_.read_percent : writes(options_.mix);
  slot.place = is_random(options_.mix) ? random_.below(places_) : next_++ % places_;
  // Two requests on one place at a time would leave either; the check would have to guess. The next free place will do.
  for (std::uint64_t tried = 0; options_.verify && busy_[slot.place]; ++tried) {
    if (tried == places_) return false;
    slot.place = (slot.place + 1) % places_;
  }
  return true;
}

void Job::issue(Slot& slot) {
  if (!choose(slot)) return;
  if (options_.verify) {
    busy_[slot.place] = true;
    if (slot.write) {
      const std::uint32_t generation = ++generations_[slot.place];
      const std::size_t block = disk_.block_size();
      for (std::uint64_t i = 0; i < options_.block.value(); ++i)
        stamp(bytes(slot).subspan(i * block, block), lba(slot.place) + Blocks(i), generation, options_.run);
    } else {
      std::fill(bytes(slot).begin(), bytes(slot).end(), std::byte{0xa5});  // what was not transferred must not pass
    }
  }
  ++in_flight_;
  submit(slot);
}

void Job::submit(Slot& slot) {
  slot.sent = reactor_.clock().now();
  const std::span<const iovec> data(&slot.data, 1);
  const auto submitted = slot.write ? queue_.write(slot.request, disk_, lba(slot.place), data)
                                    : queue_.read(slot.request, disk_, lba(slot.place), data);
  switch (submitted) {
    case initiator::Submitted::accepted: return;
    case initiator::Submitted::full: waiting_.push_back(&slot); return;
    case initiator::Submitted::refused:
    case initiator::Submitted::dead: break;
  }
  --in_flight_;
  if (options_.verify) busy_[slot.place] = false;
  complain(submitted == initiator::Submitted::dead && queue_.failure() != nullptr
               ? queue_.failure()->message()
               : fmt::format("request refused: {}", name(slot.request.outcome)));
}

void Job::done(Slot& slot) {
  --in_flight_;
  if (slot.request.outcome != initiator::Outcome::success) {
    const auto where = fmt::format("{} at LBA {}", slot.write ? "write" : "read", lba(slot.place).value());
    complain(slot.request.outcome == initiator::Outcome::failed
                 ? fmt::format("{}: {}", where, nvme::describe(slot.request.status))
                 : fmt::format("{}: {}{}{}", where, name(slot.request.outcome), queue_.failure() != nullptr ? ": " : "",
                               queue_.failure() != nullptr ? queue_.failure()->message() : ""));
    if (options_.verify && slot.write) generations_[slot.place] = 0;  // it may be there or not
  } else {
    if (phase_ == Phase::measure) {
      result_.latency.record(reactor_.clock().now() - slot.sent);
      ++result_.requests;
      if (!slot.write) ++result_.reads;
    }
    if (options_.verify && !slot.write && generations_[slot.place] != 0) check(slot);
  }
  if (options_.verify) busy_[slot.place] = false;
  if (!waiting_.empty()) {
    Slot& other = *waiting_.back();
    waiting_.pop_back();
    submit(other);
  }
  issue(slot);
}

void Job::check(Slot& slot) {
  const std::size_t block = disk_.block_size();
  for (std::uint64_t i = 0; i < options_.block.value(); ++i) {
    auto wrong = mismatch(bytes(slot).subspan(i * block, block), lba(slot.place) + Blocks(i), generations_[slot.place],
                          options_.run);
    if (wrong) {
      complain("verify: " + *wrong);
    } else {
      ++result_.verified;
    }
  }
}

void Job::complain(std::string message) {
  ++result_.errors;
  if (result_.messages.size() < kMessagesMax) result_.messages.push_back(std::move(message));
}

}  // namespace

Result<JobResult> run_job(initiator::Session& session, const initiator::Namespace& disk, const JobOptions& options,
                          transport::Reactor& reactor, const Interrupt& interrupt) {
  // Buddy blocks are powers of two: ask for what the requests will really take.
  std::uint64_t buffer = transport::BufferPool::kBlockMin;
  while (buffer < options.block.value() << disk.block_shift.value())
    buffer *= 2;
  auto queue = session.open_queue_pair(
      reactor, {.depth = std::max(options.depth, 2U), .buffers = Bytes(buffer * options.depth)});
  if (!queue) return failure(std::move(queue.error()));
  return Job(**queue, reactor, disk, options, interrupt).run();
}

}  // namespace rbt::tools
