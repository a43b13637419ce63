#pragma once
// Latencies in constant memory, without an allocation.

#include <array>
#include <cstddef>
#include <cstdint>

#include "common/units.h"

namespace rbt {

/// Log-linear: powers of two from 1 ns to 2^42 ns (73 minutes), 2^StepBits linear steps in each, so a value is known to one
/// part in 2^(StepBits - 1) or better. One thread; another one's may be add()ed
/// while it is recorded into: each number is as it was at some time, not all at the same.
template <unsigned StepBits>
class LogHistogram {
 public:
  void record(Duration latency) noexcept;
  void add(const LogHistogram& other) noexcept;

  [[nodiscard]] std::uint64_t count() const noexcept { return count_; }
  /// Microseconds; 0 while nothing was recorded. `quantile` in [0, 1].
  [[nodiscard]] double quantile_us(double quantile) const noexcept;
  [[nodiscard]] double mean_us() const noexcept;
  [[nodiscard]] double max_us() const noexcept;

 private:
  static constexpr unsigned kPowers = 42 - StepBits + 1;
  static constexpr std::uint32_t kSteps = 1U << StepBits;
  static std::size_t bucket(std::uint64_t ns) noexcept;
  static std::uint64_t value(std::size_t bucket) noexcept;

  std::array<std::uint64_t, std::size_t{kPowers} * kSteps> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ns_ = 0;
  std::uint64_t max_ns_ = 0;
};

/// For measuring: three digits, 136 KiB.
using Histogram = LogHistogram<9>;
/// For counting all the time: 6 %, 10 KiB, few cache lines of which are in use.
using CoarseHistogram = LogHistogram<5>;
extern template class LogHistogram<9>;
extern template class LogHistogram<5>;

}  // namespace rbt
