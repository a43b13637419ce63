#pragma once
// One-shot timers of one reactor. Intrusive: arming allocates nothing once the heap has grown to its working size.

#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

#include "common/clock.h"

namespace rbt::transport {

class TimerQueue;

/// A callback that runs once, not before its time. Cancelled by its destructor. Owner and queue share one thread.
class Timer {
 public:
  Timer(TimerQueue& queue, std::function<void()> callback) : queue_(queue), callback_(std::move(callback)) {}
  ~Timer() { cancel(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  /// (Re)arms: an armed timer moves to the new time. The callback may arm it again,
  /// but not destroy it.
  void arm(Instant at);
  void cancel() noexcept;
  [[nodiscard]] bool armed() const noexcept { return position_ != kNowhere; }

 private:
  friend class TimerQueue;
  static constexpr std::size_t kNowhere = ~std::size_t{0};
  TimerQueue& queue_;
  std::function<void()> callback_;
  Instant at_{};
  std::size_t position_ = kNowhere;  // in the queue's heap
};

/// A binary heap of timers.
class TimerQueue {
 public:
  /// Runs what is due at `now`; timers armed meanwhile for a past time run at the next call. Returns how many ran.
  std::size_t run(Instant now);
  [[nodiscard]] std::optional<Instant> next() const noexcept;

 private:
  friend class Timer;
  void insert(Timer& timer);
  void erase(Timer& timer) noexcept;
  void sift_up(std::size_t position) noexcept;
  void sift_down(std::size_t position) noexcept;
  void place(std::size_t position, Timer* timer) noexcept;
  std::vector<Timer*> heap_;
};

}  // namespace rbt::transport
