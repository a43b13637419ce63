#include "transport/reactor/reactor.h"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

namespace rbt::transport {

namespace {

// While busy, descriptors (signals of life, connection events) are looked at this often: a system call per millisecond
// is invisible, and a dead peer is noticed a thousand times faster than anyone asked for.
constexpr Duration kDescriptorPollInterval = std::chrono::milliseconds(1);
// Spinning shorter than this is not worth arming later; below it the learned spin snaps to zero.
constexpr Duration kSpinMin = std::chrono::microseconds(2);
constexpr int kDescriptorBatch = 64;

}  // namespace

// One registered descriptor. Stays in place until the pass that removed it is over, because the kernel may have handed
// out its pointer in the batch that is being worked through.
struct Reactor::Watched {
  int fd;
  DescriptorHandler handler;
  bool removed = false;
};

Result<std::unique_ptr<Reactor>> Reactor::create(const Clock& clock, Logger& logger, const ReactorOptions& options) {
  std::unique_ptr<Reactor> reactor(new Reactor(clock, logger, options));
  reactor->epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  if (reactor->epoll_fd_ < 0)
    return errno_failure(errno, "creating a reactor: epoll_create1", "raise the limit of open files (`ulimit -n`)");
  if (reactor->mailbox_.descriptor() < 0)
    return errno_failure(errno, "creating a reactor: eventfd", "raise the limit of open files (`ulimit -n`)");
  // The mailbox is emptied by turn(); its descriptor only has to end a sleep.
  auto watched = reactor->watch(reactor->mailbox_.descriptor(), EPOLLIN, [](std::uint32_t) {});
  if (!watched) return failure(std::move(watched.error()));
  return reactor;
}

Reactor::Reactor(const Clock& clock, Logger& logger, const ReactorOptions& options)
    : clock_(clock), logger_(logger), options_(options), now_(clock.now()), spin_(options.spin_max) {}

Reactor::~Reactor() {
  if (epoll_fd_ >= 0) ::close(epoll_fd_);
}

void Reactor::add(Source& source) {
  sources_.push_back(&source);
}

void Reactor::remove(Source& source) {
  const auto found = std::find(sources_.begin(), sources_.end(), &source);
  if (found == sources_.end()) return;
  if (in_pass_) {
    *found = nullptr;
  } else {
    sources_.erase(found);
  }
}

Result<void> Reactor::watch(int fd, std::uint32_t epoll_events, DescriptorHandler handler) {
  auto entry = std::make_unique<Watched>(Watched{fd, std::move(handler)});
  epoll_event event{};
  event.events = epoll_events;
  event.data.ptr = entry.get();
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0)
    return errno_failure(errno, "watching descriptor " + std::to_string(fd));
  watched_.push_back(std::move(entry));
  return {};
}

void Reactor::unwatch(int fd) {
  for (const auto& entry : watched_) {
    if (entry->fd != fd || entry->removed) continue;
    entry->removed = true;
    ::epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);  // fails only if the descriptor is closed: gone just as well
  }
  if (!in_pass_) std::erase_if(watched_, [](const auto& entry) { return entry->removed; });
}

void Reactor::post(Task task) {
  mailbox_.put(std::move(task));
}

void Reactor::stop() {
  stopping_.store(true, std::memory_order_release);  // acquired by run()
  mailbox_.ring();
}

std::size_t Reactor::poll_descriptors(int timeout_ms) {
  std::array<epoll_event, kDescriptorBatch> events;  // NOLINT(cppcoreguidelines-pro-type-member-init): written by epoll
  counters_.descriptor_polls.fetch_add(1, std::memory_order_relaxed);
  const int count = ::epoll_wait(epoll_fd_, events.data(), kDescriptorBatch, timeout_ms);
  if (count <= 0) return 0;
  if (timeout_ms != 0) now_ = clock_.now();  // the turn's time is as old as the sleep was long
  in_pass_ = true;
  std::size_t handled = 0;
  for (const epoll_event& event : std::span(events.data(), static_cast<std::size_t>(count))) {
    auto* const entry = static_cast<Watched*>(event.data.ptr);
    if (entry->removed) continue;
    if (entry->fd == mailbox_.descriptor()) {
      mailbox_.quiet();
      continue;
    }
    ++handled;
    entry->handler(event.events);
  }
  in_pass_ = false;
  std::erase_if(watched_, [](const auto& entry) { return entry->removed; });
  return handled;
}

namespace {

/// Sets the flag for its lifetime; a turn may lie within another one (a caller that waits inside a callback).
class Turning {
 public:
  explicit Turning(bool& flag) noexcept : flag_(flag), before_(std::exchange(flag, true)) {}
  ~Turning() { flag_ = before_; }
  Turning(const Turning&) = delete;
  Turning& operator=(const Turning&) = delete;

 private:
  bool& flag_;
  bool before_;
};

}  // namespace

bool Reactor::turn() {
  const Turning turning(turning_);
  now_ = clock_.now();
  std::size_t work = mailbox_.run();
  work += timers_.run(now_);
  if (now_ >= next_descriptor_poll_) {
    next_descriptor_poll_ = now_ + kDescriptorPollInterval;
    work += poll_descriptors(0);
  }
  in_pass_ = true;
  for (std::size_t i = 0; i < sources_.size(); ++i)  // by index: poll() may add sources
    if (sources_[i] != nullptr) work += sources_[i]->poll();
  in_pass_ = false;
  std::erase(sources_, nullptr);
  counters_.turns.fetch_add(1, std::memory_order_relaxed);
  if (work != 0) counters_.busy_turns.fetch_add(1, std::memory_order_relaxed);
  return work != 0;
}

void Reactor::wait_for_work(std::optional<Instant> until) {
  if (options_.waiter != nullptr) {
    options_.waiter->wait(*this, until);
    return;
  }
  // Arm everything, look once more at what has no doorbell of its own, then sleep.
  std::size_t armed = 0;
  bool may_sleep = true;
  for (; armed < sources_.size() && may_sleep; ++armed)
    may_sleep = sources_[armed]->arm();
  if (may_sleep && !mailbox_.pending() && !stopping_.load(std::memory_order_acquire)) {
    int timeout_ms = -1;
    if (until) {
      // Rounded up: waking early would only mean spinning until the timer is due.
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*until - clock_.now()).count();
      timeout_ms = static_cast<int>(std::clamp<decltype(left)>(left, 0, 60'000));
    }
    counters_.sleeps.fetch_add(1, std::memory_order_relaxed);
    poll_descriptors(timeout_ms);
  }
  for (std::size_t i = 0; i < armed && i < sources_.size(); ++i)
    sources_[i]->disarm();
}

void Reactor::learn_spin(Instant idle_since) {
  // Work that came while spinning, or just after: spinning pays, spin longer. Work that came long after: it does not.
  const Duration gap = clock_.now() - idle_since;
  if (gap <= options_.spin_max) {
    spin_ = std::min(options_.spin_max, std::max(kSpinMin, spin_ * 2));
  } else {
    spin_ = spin_ / 2 < kSpinMin ? Duration::zero() : spin_ / 2;
  }
}

bool Reactor::run_until(const std::function<bool()>& done, Instant deadline) {
  std::optional<Instant> idle_since;
  while (true) {
    if (done()) return true;
    const bool worked = turn();
    if (worked) {
      if (idle_since) learn_spin(*idle_since);
      idle_since.reset();
      if (now_ >= deadline) return done();  // never done with its work, and the caller wants to know
      continue;
    }
    if (done()) return true;
    if (now_ >= deadline) return false;
    if (stopping_.load(std::memory_order_acquire)) return false;
    if (!idle_since) idle_since = now_;
    if (options_.waiter == nullptr && now_ - *idle_since < spin_) continue;
    const auto next = timers_.next();
    std::optional<Instant> until = deadline;
    if (deadline == Instant::max())
      until = next;
    else if (next && *next < deadline)
      until = next;
    wait_for_work(until);
  }
}

void Reactor::run() {
  if (options_.cpu >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<unsigned>(options_.cpu), &set);
    if (const int error = ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set); error != 0)
      logger_.warning("{}", Error::from_errno(error, fmt::format("pinning a reactor to CPU {}", options_.cpu),
                                              "it runs wherever the scheduler puts it")
                                .message());
  }
  [[maybe_unused]] const bool stopped =
      run_until([this] { return stopping_.load(std::memory_order_acquire); }, Instant::max());
}

}  // namespace rbt::transport
