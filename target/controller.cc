#include "target/controller.h"

#include <utility>

namespace rbt::target {

namespace {
constexpr std::chrono::milliseconds kDiscoveryKeepAlive = std::chrono::minutes(2);
}

void ErrorLog::record(Entry entry) noexcept {
  const std::lock_guard lock(mutex_);
  entry.number = ++total_;
  ring_[(total_ - 1) % kEntries] = entry;
}

std::array<ErrorLog::Entry, ErrorLog::kEntries> ErrorLog::newest_first() const noexcept {
  const std::lock_guard lock(mutex_);
  std::array<Entry, kEntries> entries{};
  for (std::uint64_t i = 0; i < kEntries && i < total_; ++i)
    entries[i] = ring_[(total_ - 1 - i) % kEntries];
  return entries;
}

std::uint64_t ErrorLog::total() const noexcept {
  const std::lock_guard lock(mutex_);
  return total_;
}

namespace {

// A discovery controller has no I/O queues.
Controller::Offer fitting(Controller::Offer offer, ControllerKind kind) noexcept {
  if (kind == ControllerKind::discovery) offer.io_queues_max = 0;
  return offer;
}

}  // namespace

Controller::Controller(Identity identity, const Subsystem& subsystem, const Offer& offer, transport::TimerQueue& timers,
                       const Clock& clock, std::function<void()> on_expired)
    : identity_(std::move(identity)),
      subsystem_(subsystem),
      host_(subsystem.find(identity_.host_nqn, identity_.host_id)),
      offer_(fitting(offer, subsystem.kind())),
      clock_(clock),
      write_cache_(offer.write_cache),
      io_queues_granted_(offer_.io_queues_max),
      registers_(subsystem.kind(), offer.queue_entries_max),
      on_expired_(std::move(on_expired)),
      timer_(timers, [this] { on_timer(); }) {
  held_events_.reserve(kHeldEventsMax);
}

nvme::Expected<Registers::Effect> Controller::set_property(const nvme::PropertyAccess& access) noexcept {
  const auto effect = registers_.set(access);
  if (effect == Registers::Effect::reset) {
    features_ = Features{};
    changed_namespaces_.clear();  // it reads them all anew
    access_notice_.clear();
    reservation_notices_.clear();
    set_write_cache(offer_.write_cache);
    grant_io_queues(offer_.io_queues_max);
  }
  // Base 2.0, 3.9.2: the timer starts anew when the controller is enabled.
  if (effect == Registers::Effect::enabled) set_keep_alive(keep_alive_);
  ready_.store(registers_.ready(), std::memory_order_relaxed);
  return effect;
}

void Controller::set_keep_alive(std::chrono::milliseconds timeout) {
  keep_alive_ = timeout;
  if (keep_alive_.count() == 0 && kind() == ControllerKind::discovery) keep_alive_ = kDiscoveryKeepAlive;
  traffic_.store(false, std::memory_order_relaxed);
  if (keep_alive_.count() == 0) {
    timer_.cancel();
  } else {
    timer_.arm(clock_.now() + keep_alive_);
  }
}

void Controller::on_timer() {
  if (traffic_.exchange(false, std::memory_order_relaxed)) {
    timer_.arm(clock_.now() + keep_alive_);
    return;
  }
  on_expired_();
}

}  // namespace rbt::target
