// The engine's threads: making and ending them, and the work of those two that may block.

#include <linux/membarrier.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <future>

#include "common/check.h"
#include "transport/coherence/engine.h"

namespace rbt::transport::coherence {

namespace {

/// A thread that takes no signal: the embedding program's handlers run on its own threads.
template <typename Body>
std::thread quiet_thread(const char* name, Body&& body) {
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::forward<Body>(body));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_setname_np(thread.native_handle(), name);
  return thread;
}

/// Errors of restore() that time may heal.
bool may_pass(ErrorKind kind) noexcept {
  return kind == ErrorKind::in_use || kind == ErrorKind::resource || kind == ErrorKind::io;
}

}  // namespace

Engine::Engine(const Clock& clock, Logger& logger, const MonitorOptions& options)
    : clock_(clock), logger_(logger), options_(options), leases_(options.lease_signal) {}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    check(std::all_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.body == nullptr; }),
          "a monitor goes after its regions");
    stopping_ = true;
  }
  if (wake_ >= 0) wake_watch();
  fence_work_.notify_all();
  restore_work_.notify_all();
  for (std::thread* thread : {&watch_, &fence_, &restore_})
    if (thread->joinable()) thread->join();
  for (const int fd : {epoll_, wake_})
    if (fd >= 0) ::close(fd);
}

Result<void> Engine::start() {
  fence_needed_ = ::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0;
  if (fence_needed_)
    logger_.info("coherence: the kernel refuses membarrier(2); requests pay a memory fence each instead");
  epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_ < 0 || wake_ < 0) return errno_failure(errno, "coherence: a descriptor for the monitor");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeTag;
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event) != 0) return errno_failure(errno, "coherence: epoll_ctl");
  if (options_.threads == MonitorOptions::Threads::manual) return {};
  std::promise<Result<void>> started;
  auto answer = started.get_future();
  watch_ = quiet_thread("rbt-coherence", [this, &started] {
    auto leases = leases_.start();
    if (leases) {
      epoll_event signal{};
      signal.events = EPOLLIN;
      signal.data.u64 = kSignalTag;
      if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, leases_.descriptor(), &signal) != 0)
        leases = errno_failure(errno, "coherence: epoll_ctl of the signal descriptor");
    }
    const bool ok = leases.has_value();
    started.set_value(std::move(leases));
    if (ok) watch_thread();
  });
  if (auto result = answer.get(); !result) return result;
  fence_ = quiet_thread("rbt-fence", [this] { fence_thread(); });
  restore_ = quiet_thread("rbt-restore", [this] { restore_thread(); });
  return {};
}

void Engine::watch_thread() {
  for (;;) {
    turn_watch(sleep_ms());
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
  }
}

void Engine::fence_thread() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      fence_work_.wait(lock, [&] { return stopping_ || to_fence_.first() != nullptr; });
      if (stopping_) return;
    }
    turn_fence();
  }
}

bool Engine::turn_fence() {
  RegionBody* body = nullptr;
  {
    const std::lock_guard lock(mutex_);
    body = to_fence_.pop();
    if (body == nullptr) return false;
    body->fence_running = true;
  }
  const Result<void> fenced = body->registration.fence();
  {
    const std::lock_guard lock(mutex_);
    if (body->phase == Phase::fencing) body->fence = fenced ? FenceOutcome::up : FenceOutcome::failed;
    wake_watch();  // before anything that could wait for whom we block
  }
  if (!fenced) logger_.error("{}: deregistering: {}", body->options.name, fenced.error().message());
  const std::lock_guard lock(mutex_);
  body->fence_running = false;
  settled_.notify_all();
  return true;
}

void Engine::restore_thread() {
  for (;;) {
    turn_restore();
    std::unique_lock lock(mutex_);
    if (stopping_) return;
    const Instant now = clock_.now();
    Instant next = now + std::chrono::hours(1);
    for (RegionBody* body = to_restore_.first(); body != nullptr; body = body->next_to_restore)
      next = std::min(next, body->news != nullptr ? now : body->restore_at);
    // Woken for nothing now and then, which turn_restore() does not mind.
    if (next > now) restore_work_.wait_for(lock, next - now);
  }
}

bool Engine::turn_restore() {
  const Instant now = clock_.now();
  bool did = false;
  for (RegionBody* body = nullptr; (body = take_due(now)) != nullptr;) {
    did = true;
    if (body->news_to_tell != nullptr) tell_news(*body);
    if (body->restore_now) try_restore(*body);
    const std::lock_guard lock(mutex_);
    body->restore_running = false;
    settled_.notify_all();
  }
  return did;
}

RegionBody* Engine::take_due(Instant now) noexcept {
  const std::lock_guard lock(mutex_);
  for (RegionBody* body = to_restore_.first(); body != nullptr; body = body->next_to_restore) {
    const bool due = body->restore_wanted && body->restore_at <= now;
    if (!due && body->news == nullptr && body->restore_wanted) continue;
    body->restore_now = due;
    body->news_to_tell = std::exchange(body->news, nullptr);
    body->restore_running = true;
    if (due || !body->restore_wanted) {
      body->restore_wanted = false;
      body->restore_queued = false;
      to_restore_.remove(*body);
    }
    return body;
  }
  return nullptr;
}

void Engine::queue_for_restore(RegionBody& body) noexcept {
  if (!body.restore_queued) {
    body.restore_queued = true;
    to_restore_.push(body);
  }
  restore_work_.notify_one();
}

void Engine::tell_news(RegionBody& body) {
  const RegionCounters seen = counters(body);
  logger_.warning("{} ({}): {}; whoever changed it waited {} ms", body.options.name, name(seen.last_change),
                  body.news_to_tell, std::chrono::duration_cast<std::chrono::milliseconds>(seen.blocked_last).count());
}

void Engine::try_restore(RegionBody& body) {
  const auto restored = restore(body, By::itself);
  if (restored) {
    if (std::exchange(body.failure_told, false)) logger_.info("{}: registered again", body.options.name);
    return;
  }
  const bool again = may_pass(restored.error().kind());
  if (!std::exchange(body.failure_told, true))
    logger_.log(again ? LogLevel::info : LogLevel::warning, "{}: {}; {}", body.options.name, restored.error().message(),
                again ? "to be tried again" : "it stays without registration");
  if (!again) return;
  const std::lock_guard lock(mutex_);
  if (body.owner_holds || body.state() == RegionState::gone || body.restore_wanted) return;
  body.restore_wanted = true;
  body.restore_at = clock_.now() + body.pause;
  body.pause = std::min(body.pause * 2, body.options.restore_retry_max);
  queue_for_restore(body);
}

void Engine::restore_when_possible(RegionBody& body) {
  check(body.options.restore_by_itself, "a region that is restored when possible was made to restore by itself");
  const std::lock_guard lock(mutex_);
  body.owner_holds = false;
  if (body.state() == RegionState::gone || body.state() == RegionState::coherent) return;
  body.restore_wanted = true;
  body.restore_at = clock_.now();
  body.pause = body.options.restore_retry;
  queue_for_restore(body);
}

Result<void> Engine::restore(RegionBody& body, By whom) {
  const std::lock_guard one_at_a_time(body.restoring);
  RegionState before;
  bool held = false;
  {
    const std::lock_guard lock(mutex_);
    if (whom == By::owner) body.owner_holds = false;
    held = body.owner_holds;
    before = body.state();
    if (before == RegionState::fenced && !held) body.advance(RegionState::restoring);
  }
  if (held) return failure(ErrorKind::in_use, body.options.name + ": its owner is changing it");
  switch (before) {
    case RegionState::coherent: return {};
    case RegionState::fenced: break;
    case RegionState::quiescing: return failure(ErrorKind::in_use, body.options.name + ": a change is being handled");
    case RegionState::gone: return failure(ErrorKind::unsupported, body.options.name + ": the region was given up");
    case RegionState::restoring: check(false, "a region is restored once at a time");
  }
  Result<void> result;
  for (const auto& watch : body.watches)
    if (result) result = watch->arm();
  if (result) result = body.registration.restore();
  bool kept = false;
  {
    const std::lock_guard lock(mutex_);
    if (body.state() == RegionState::restoring) {
      kept = result.has_value();
      body.advance(kept ? RegionState::coherent : RegionState::fenced);
    }
    ++(kept ? body.counters.restores : body.counters.restores_failed);
    if (kept) {
      body.restore_wanted = false;
      body.notify(RegionBody::coherent);
    }
  }
  if (kept) return result;
  // What came to be registered while the mapping changed again may be the old pages.
  if (auto fenced = body.registration.fence(); !fenced) return fenced;
  if (result) return failure(ErrorKind::in_use, body.options.name + ": it changed again while it was being registered");
  return result;
}

}  // namespace rbt::transport::coherence
