#include "common/histogram.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

namespace rbt {

// Bucket b below kSteps is the value itself; above, power p has kSteps/2 useful steps of 2^(p) each: the usual trick of
// keeping the top StepBits bits of the value.
template <unsigned StepBits>
std::size_t LogHistogram<StepBits>::bucket(std::uint64_t ns) noexcept {
  const auto width = static_cast<unsigned>(std::bit_width(ns));
  if (width <= StepBits) return ns;
  const unsigned power = std::min(width - StepBits, kPowers - 1);
  return std::size_t{power} * kSteps + std::min<std::uint64_t>(ns >> power, kSteps - 1);
}

template <unsigned StepBits>
std::uint64_t LogHistogram<StepBits>::value(std::size_t bucket) noexcept {
  const std::size_t power = bucket / kSteps;
  return static_cast<std::uint64_t>(bucket % kSteps) << power;
}

template <unsigned StepBits>
void LogHistogram<StepBits>::record(Duration latency) noexcept {
  const auto ns = static_cast<std::uint64_t>(std::max<Duration::rep>(latency.count(), 0));
  const auto put = [](std::uint64_t& where, std::uint64_t what) {
    std::atomic_ref(where).store(what, std::memory_order_relaxed);
  };
  std::uint64_t& one = buckets_[bucket(ns)];
  put(one, one + 1);
  put(count_, count_ + 1);
  put(sum_ns_, sum_ns_ + ns);
  if (ns > max_ns_) put(max_ns_, ns);
}

template <unsigned StepBits>
void LogHistogram<StepBits>::add(const LogHistogram& other) noexcept {
  const auto get = [](const std::uint64_t& where) {
    return std::atomic_ref(const_cast<std::uint64_t&>(where)).load(std::memory_order_relaxed);
  };
  for (std::size_t i = 0; i < buckets_.size(); ++i)
    buckets_[i] += get(other.buckets_[i]);
  count_ += get(other.count_);
  sum_ns_ += get(other.sum_ns_);
  max_ns_ = std::max(max_ns_, get(other.max_ns_));
}

template <unsigned StepBits>
double LogHistogram<StepBits>::quantile_us(double quantile) const noexcept {
  if (count_ == 0) return 0;
  const auto rank = static_cast<std::uint64_t>(std::ceil(quantile * static_cast<double>(count_)));
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen >= rank && buckets_[i] != 0) return static_cast<double>(std::min(value(i), max_ns_)) / 1000.0;
  }
  return max_us();
}

template <unsigned StepBits>
double LogHistogram<StepBits>::mean_us() const noexcept {
  return count_ == 0 ? 0 : static_cast<double>(sum_ns_) / static_cast<double>(count_) / 1000.0;
}

template <unsigned StepBits>
double LogHistogram<StepBits>::max_us() const noexcept {
  return static_cast<double>(max_ns_) / 1000.0;
}

template class LogHistogram<9>;
template class LogHistogram<5>;

}  // namespace rbt
