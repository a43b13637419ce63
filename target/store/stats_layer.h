#pragma once
// Counts what passes: operations, bytes, failures, and how long each took.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "common/clock.h"
#include "common/log.h"
#include "target/store/layer.h"

namespace rbt::target {

/// How long things took, in classes that are a quarter of a power of two wide: 19 % exact or better. One thread
/// writes, any thread reads a snapshot (relaxed: numbers, no more).
class LatencyClasses {
 public:
  static constexpr std::size_t kClasses = 160;  // up to 2^40 ns, 18 minutes
  void add(Duration took) noexcept;
  [[nodiscard]] std::uint64_t of(std::size_t index) const noexcept {
    return counts_.at(index).load(std::memory_order_relaxed);
  }
  [[nodiscard]] static std::size_t index_of(Duration took) noexcept;
  /// The longest that falls into the class.
  [[nodiscard]] static Duration most(std::size_t index) noexcept;

 private:
  std::array<std::atomic<std::uint64_t>, kClasses> counts_{};
};

/// counts() tells; when the store is closed the log is told the same.
[[nodiscard]] std::unique_ptr<Store> make_stats_layer(std::unique_ptr<Store> below, Logger& logger);

}  // namespace rbt::target
