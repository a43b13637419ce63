#pragma once
// Latencies with three significant digits in constant memory.

#include <array>
#include <cstdint>

#include "common/units.h"

namespace rbt::tools {

/// Log-linear: powers of two from 1 ns to 2^42 ns (73 minutes), 512 linear steps in each, so a value is known to 0.2 %.
class Histogram {
 public:
  void record(Duration latency) noexcept;
  void add(const Histogram& other) noexcept;

  [[nodiscard]] std::uint64_t count() const noexcept { return count_; }
  /// Microseconds; 0 while nothing was recorded. `quantile` in [0, 1].
  [[nodiscard]] double quantile_us(double quantile) const noexcept;
  [[nodiscard]] double mean_us() const noexcept;
  [[nodiscard]] double max_us() const noexcept;

 private:
  static constexpr unsigned kStepBits = 9;
  static constexpr unsigned kPowers = 34;
  static constexpr std::uint32_t kSteps = 1U << kStepBits;
  static std::size_t bucket(std::uint64_t ns) noexcept;
  static std::uint64_t value(std::size_t bucket) noexcept;

  std::array<std::uint64_t, std::size_t{kPowers} * kSteps> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ns_ = 0;
  std::uint64_t max_ns_ = 0;
};

}  // namespace rbt::tools
