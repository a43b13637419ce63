#pragma once
// Time and randomness come in as parameters: nothing below main() reads the wall clock or seeds itself.

#include <chrono>
#include <cstdint>

#include "common/units.h"

namespace rbt {

/// Monotonic time since an arbitrary start.
using Instant = std::chrono::time_point<std::chrono::steady_clock, Duration>;

/// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual Instant now() const noexcept = 0;
  /// Milliseconds since 1970-01-01 UTC: for timestamps that a peer or a person reads, never for deadlines.
  [[nodiscard]] virtual std::uint64_t unix_time_ms() const noexcept = 0;
};

/// CLOCK_MONOTONIC and CLOCK_REALTIME.
class SystemClock final : public Clock {
 public:
  [[nodiscard]] Instant now() const noexcept override;
  [[nodiscard]] std::uint64_t unix_time_ms() const noexcept override;
};

/// Stands still until it is told to move: simulation and tests. One thread.
class ManualClock final : public Clock {
 public:
  [[nodiscard]] Instant now() const noexcept override { return now_; }
  [[nodiscard]] std::uint64_t unix_time_ms() const noexcept override;
  void advance(Duration by) noexcept { now_ += by; }
  void advance_to(Instant to) noexcept {
    if (to > now_) now_ = to;
  }

 private:
  Instant now_{};
};

}  // namespace rbt
