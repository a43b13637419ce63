#include "transport/coherence/engine.h"

#include <linux/membarrier.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "common/check.h"

namespace rbt::transport::coherence {

namespace {

constexpr int kDrainPollMs = 1;  // how often the counters are looked at while requests are in flight

int milliseconds_until(Instant until, Instant now) noexcept {
  if (until <= now) return 0;
  return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(until - now).count());
}

}  // namespace

bool Engine::turn_watch(int timeout_ms) {
  std::array<epoll_event, 64> events;
  const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), timeout_ms);
  const std::lock_guard lock(mutex_);
  const Instant now = clock_.now();
  bool did = false;
  for (int i = 0; i < count; ++i) {
    const std::uint64_t tag = events[static_cast<std::size_t>(i)].data.u64;
    if (tag == kWakeTag) {
      std::uint64_t rung = 0;
      [[maybe_unused]] const auto got = ::read(wake_, &rung, sizeof rung);
    } else if (tag == kSignalTag) {
      leases_.on_signal();
    } else if (RegionBody* const body = find(tag); body != nullptr) {
      did |= hear(*body, now);
    }
  }
  quiesce();
  for (RegionBody *body = active_.first(), *next = nullptr; body != nullptr; body = next) {
    next = body->next_active;
    did |= step(*body, now);
  }
  return did;
}

bool Engine::hear(RegionBody& body, Instant now) noexcept {
  if (!body.changing()) {
    listen_again(body);
    return false;
  }
  switch (body.state()) {
    case RegionState::coherent: begin(body, now); break;
    case RegionState::quiescing: return false;  // answered when it is fenced
    case RegionState::restoring:                // nobody uses it; what restore() is registering now, it will undo
      ++body.counters.events;
      body.advance(RegionState::fenced, RegionBody::Epoch::next);
      body.counters.last_change = answer(body);
      break;
    case RegionState::fenced:
    case RegionState::gone:
      // What was discarded first and is unmapped now: its owner need not wait for the discarding any more.
      if (const Change change = answer(body); body.counters.last_change == Change::discarded && change != Change::none)
        body.counters.last_change = change;
      break;
  }
  return true;
}

void Engine::begin(RegionBody& body, Instant now) noexcept {
  body.advance(RegionState::quiescing);
  ++body.counters.events;
  body.since = now;
  body.change = Change::none;
  body.phase = Phase::begun;
  active_.push(body);
}

/// After this every user has either been counted in, and is seen by drained(), or sees that the region is quiescing.
void Engine::quiesce() noexcept {
  bool begun = false;
  for (RegionBody* body = active_.first(); body != nullptr; body = body->next_active) {
    if (body->phase != Phase::begun) continue;
    body->phase = Phase::draining;
    begun = true;
  }
  if (begun && !fence_needed_) ::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}

bool Engine::step(RegionBody& body, Instant now) noexcept {
  if (body.phase == Phase::draining) {
    if (!body.drained()) {
      if (now < body.since + body.options.drain_max) return false;
      body.counters.overdue += body.notify_overdue();
      body.news = "requests in flight did not end in time; their connections are closed";
    }
    begin_fence(body);
    return true;
  }
  if (body.phase != Phase::fencing) return false;
  if (body.fence == FenceOutcome::pending && now < body.since + body.options.acknowledge_max) return false;
  if (body.fence == FenceOutcome::up) {
    finish(body, RegionState::fenced, now);
    return true;
  }
  ++body.counters.fences_failed;
  body.news = body.fence == FenceOutcome::failed ? "deregistering failed; the region is given up"
                                                 : "deregistering did not end in time; the region is given up";
  body.notify(RegionBody::overdue);
  finish(body, RegionState::gone, now);
  return true;
}

/// From here on a request that is still in flight is not `clean` any more, whatever its completion says.
void Engine::begin_fence(RegionBody& body) noexcept {
  body.advance(RegionState::quiescing, RegionBody::Epoch::next);
  body.phase = Phase::fencing;
  body.fence = FenceOutcome::pending;
  to_fence_.push(body);
  fence_work_.notify_one();
}

void Engine::finish(RegionBody& body, RegionState to, Instant now) noexcept {
  body.advance(to);
  active_.remove(body);
  body.phase = Phase::idle;
  body.counters.last_change = answer(body);
  body.counters.blocked_last = clock_.now() - body.since;
  body.counters.blocked_max = std::max(body.counters.blocked_max, body.counters.blocked_last);
  body.notify(RegionBody::fenced);
  if (to == RegionState::fenced && body.options.restore_by_itself && !body.owner_holds) {
    body.restore_wanted = true;
    body.restore_at = now;
    body.pause = body.options.restore_retry;
  }
  if (body.restore_wanted || body.news != nullptr) queue_for_restore(body);
  settled_.notify_all();
}

Change Engine::answer(RegionBody& body) noexcept {
  const Change change = std::max(body.change, body.acknowledge());
  body.change = Change::none;
  listen_again(body);
  return change;
}

void Engine::listen_again(RegionBody& body) noexcept {
  for (const auto& watch : body.watches) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLONESHOT;
    event.data.u64 = body.tag;
    ::epoll_ctl(epoll_, EPOLL_CTL_MOD, watch->descriptor(), &event);
  }
}

RegionBody* Engine::find(std::uint64_t tag) noexcept {
  const std::size_t slot = tag & 0xffffffff;
  if (slot >= slots_.size() || slots_[slot].generation != tag >> 32) return nullptr;
  return slots_[slot].body;
}

int Engine::sleep_ms() noexcept {
  const std::lock_guard lock(mutex_);
  const Instant now = clock_.now();
  int sleep = -1;
  for (RegionBody* body = active_.first(); body != nullptr; body = body->next_active) {
    const int wanted = body->phase == Phase::fencing
                           ? milliseconds_until(body->since + body->options.acknowledge_max, now)
                           : kDrainPollMs;
    sleep = sleep < 0 ? wanted : std::min(sleep, wanted);
  }
  return stopping_ ? 0 : sleep;
}

void Engine::wake_watch() noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_, &one, sizeof one);
}

// --- Users and regions, from any thread

void Engine::attach(RegionBody& body, Use& use) noexcept {
  const std::lock_guard lock(mutex_);
  use.next_of_region_ = body.uses;
  body.uses = &use;
}

void Engine::detach(RegionBody& body, Use& use) noexcept {
  const std::lock_guard lock(mutex_);
  for (Use** at = &body.uses; *at != nullptr; at = &(*at)->next_of_region_)
    if (*at == &use) {
      *at = use.next_of_region_;
      return;
    }
}

Result<void> Engine::add(RegionBody& body) {
  if (auto fenced = body.registration.fence(); !fenced) return fenced;
  std::vector<Slot> larger, old;
  {
    std::unique_lock lock(mutex_);
    auto free = [&] {
      return std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) { return s.body == nullptr; });
    };
    while (free() == slots_.end()) {  // grown outside the lock
      const std::size_t size = slots_.size() * 2 + 16;
      lock.unlock();
      larger.resize(size);
      lock.lock();
      if (larger.size() <= slots_.size()) continue;
      std::copy(slots_.begin(), slots_.end(), larger.begin());
      slots_.swap(larger);
      old.swap(larger);
    }
    const auto slot = free();
    slot->body = &body;
    body.tag = std::uint64_t{++slot->generation} << 32 | static_cast<std::uint64_t>(slot - slots_.begin());
  }
  for (const auto& watch : body.watches) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLONESHOT;
    event.data.u64 = body.tag;
    if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, watch->descriptor(), &event) == 0) continue;
    const int error = errno;
    remove(body);
    return errno_failure(error, "watching a region: epoll_ctl", "raise fs.epoll.max_user_watches");
  }
  return {};
}

void Engine::remove(RegionBody& body) {
  {
    std::unique_lock lock(mutex_);
    check(body.uses == nullptr, "a region goes after its uses");
    slots_[body.tag & 0xffffffff].body = nullptr;
    for (const auto& watch : body.watches)
      ::epoll_ctl(epoll_, EPOLL_CTL_DEL, watch->descriptor(), nullptr);
    active_.remove(body);
    to_fence_.remove(body);
    to_restore_.remove(body);
    settled_.wait(lock, [&] { return !body.fence_running && !body.restore_running; });
    to_restore_.remove(body);
    if (body.state() != RegionState::gone) body.advance(RegionState::gone);
  }
  if (auto fenced = body.registration.fence(); !fenced)
    logger_.error("{}: {}", body.options.name, fenced.error().message());
  body.acknowledge();
}

RegionCounters Engine::counters(const RegionBody& body) {
  const std::lock_guard lock(mutex_);
  return body.counters;
}

Result<void> Engine::invalidate(RegionBody& body) {
  bool restoring = false;
  {
    std::unique_lock lock(mutex_);
    body.owner_holds = true;
    body.restore_wanted = false;
    switch (body.state()) {
      case RegionState::coherent: begin(body, clock_.now()); break;
      case RegionState::restoring:
        body.advance(RegionState::fenced, RegionBody::Epoch::next);
        restoring = true;
        break;
      case RegionState::quiescing:
      case RegionState::fenced:
      case RegionState::gone: break;
    }
    if (body.state() == RegionState::quiescing) {
      body.change = Change::by_owner;
      wake_watch();
      const auto settled = [&] { return body.phase == Phase::idle; };
      if (options_.threads == MonitorOptions::Threads::own) settled_.wait(lock, settled);
    }
  }
  if (restoring) const std::lock_guard wait_for_it(body.restoring);
  switch (body.region.state()) {
    case RegionState::gone:
      return failure(ErrorKind::unsupported, body.options.name + ": deregistering failed; the region is given up");
    case RegionState::quiescing:
      return failure(ErrorKind::timed_out, body.options.name + ": has only begun; turn the monitor");
    case RegionState::coherent:
    case RegionState::fenced:
    case RegionState::restoring: return {};
  }
  return {};
}

}  // namespace rbt::transport::coherence
