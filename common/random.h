#pragma once
// One seeded generator, passed by reference to whoever needs chance: the same seed gives the same run.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace rbt {

/// xoshiro256** (Blackman and Vigna, 2018), seeded through splitmix64. Not for secrets. One thread.
class Random {
 public:
  using result_type = std::uint64_t;
  explicit Random(std::uint64_t seed) noexcept;
  /// Seeded from the kernel's entropy: for main() alone.
  static Random from_entropy();

  result_type operator()() noexcept;
  static constexpr result_type min() noexcept { return 0; }
  static constexpr result_type max() noexcept { return ~std::uint64_t{0}; }

  /// Uniform in [0, bound); bound > 0.
  std::uint64_t below(std::uint64_t bound) noexcept;
  /// True once in `n` on average; never for n == 0.
  bool once_in(std::uint64_t n) noexcept { return n != 0 && below(n) == 0; }
  void fill(std::span<std::byte> bytes) noexcept;
  /// An independent generator derived from this one.
  Random fork() noexcept { return Random((*this)()); }

 private:
  std::array<std::uint64_t, 4> state_;
};

}  // namespace rbt
