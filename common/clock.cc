#include "common/clock.h"

namespace rbt {

namespace {
// 2020-01-01: simulated time starts at a date that no peer can mistake for "not set".
constexpr std::uint64_t kManualEpochMs = 1'577'836'800'000;
}  // namespace

Instant SystemClock::now() const noexcept {
  return std::chrono::steady_clock::now();
}

std::uint64_t SystemClock::unix_time_ms() const noexcept {
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(since_epoch).count());
}

std::uint64_t ManualClock::unix_time_ms() const noexcept {
  const auto elapsed = std::chrono::duration_cast<std::chrono::milliseconds>(now_.time_since_epoch()).count();
  return kManualEpochMs + static_cast<std::uint64_t>(elapsed);
}

}  // namespace rbt
