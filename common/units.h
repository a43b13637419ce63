#pragma once
// Strong types for the numbers that cross function boundaries. Lba + Blocks compiles, Lba + Bytes does not.
// Blocks become bytes only through BlockShift, which checks for overflow.

#include <chrono>
#include <compare>
#include <cstdint>
#include <optional>

namespace rbt {

/// An integer with a name. `Tag` makes each use a type of its own.
template <typename Tag, typename Rep>
class Quantity {
 public:
  using rep = Rep;
  constexpr Quantity() noexcept = default;
  explicit constexpr Quantity(Rep value) noexcept : value_(value) {}
  [[nodiscard]] constexpr Rep value() const noexcept { return value_; }
  friend constexpr auto operator<=>(Quantity, Quantity) noexcept = default;

 private:
  Rep value_ = 0;
};

struct LbaTag;
struct BlocksTag;
struct BytesTag;
struct NsidTag;
struct QidTag;
struct CidTag;
struct CntlidTag;

using Lba = Quantity<LbaTag, std::uint64_t>;        ///< logical block address
using Blocks = Quantity<BlocksTag, std::uint64_t>;  ///< number of logical blocks, 1-based
using Bytes = Quantity<BytesTag, std::uint64_t>;
using Nsid = Quantity<NsidTag, std::uint32_t>;
using Qid = Quantity<QidTag, std::uint16_t>;
using Cid = Quantity<CidTag, std::uint16_t>;
using Cntlid = Quantity<CntlidTag, std::uint16_t>;
using Duration = std::chrono::nanoseconds;

constexpr Lba operator+(Lba lba, Blocks count) noexcept {
  return Lba(lba.value() + count.value());
}
constexpr Blocks operator-(Lba a, Lba b) noexcept {
  return Blocks(a.value() - b.value());
}
constexpr Blocks operator+(Blocks a, Blocks b) noexcept {
  return Blocks(a.value() + b.value());
}
constexpr Blocks operator-(Blocks a, Blocks b) noexcept {
  return Blocks(a.value() - b.value());
}
constexpr Bytes operator+(Bytes a, Bytes b) noexcept {
  return Bytes(a.value() + b.value());
}
constexpr Bytes operator-(Bytes a, Bytes b) noexcept {
  return Bytes(a.value() - b.value());
}

/// A run of logical blocks. Never wraps: made only by checked().
struct BlockRange {
  Lba first;
  Blocks count;

  /// The range [first, first + count) if it lies within [0, end), else nothing. 64-bit safe, by subtraction.
  static constexpr std::optional<BlockRange> checked(Lba first, Blocks count, Blocks end) noexcept {
    if (first.value() > end.value() || count.value() > end.value() - first.value()) return std::nullopt;
    return BlockRange{first, count};
  }
  [[nodiscard]] constexpr Lba end() const noexcept { return first + count; }
  [[nodiscard]] constexpr bool overlaps(const BlockRange& other) const noexcept {
    return first < other.end() && other.first < end();
  }
  friend constexpr bool operator==(const BlockRange&, const BlockRange&) noexcept = default;
};

/// log2 of the logical block size in bytes, 9 (512) to 12 (4096): the only way from blocks to bytes.
class BlockShift {
 public:
  static constexpr std::uint8_t kMin = 9;
  static constexpr std::uint8_t kMax = 12;

  constexpr BlockShift() noexcept = default;
  /// Nothing unless `block_size` is a power of two from 512 to 4096 bytes.
  static constexpr std::optional<BlockShift> of(std::uint64_t block_size) noexcept {
    for (std::uint8_t shift = kMin; shift <= kMax; ++shift)
      if (block_size == std::uint64_t{1} << shift) return BlockShift(shift);
    return std::nullopt;
  }
  [[nodiscard]] constexpr std::uint8_t value() const noexcept { return shift_; }
  [[nodiscard]] constexpr std::uint32_t block_size() const noexcept { return std::uint32_t{1} << shift_; }

  /// Nothing when the product does not fit 64 bits.
  [[nodiscard]] constexpr std::optional<Bytes> bytes(Blocks count) const noexcept {
    if (count.value() > (~std::uint64_t{0} >> shift_)) return std::nullopt;
    return Bytes(count.value() << shift_);
  }
  /// Whole blocks in `size` (rounds down).
  [[nodiscard]] constexpr Blocks blocks(Bytes size) const noexcept { return Blocks(size.value() >> shift_); }
  [[nodiscard]] constexpr bool is_multiple(std::uint64_t bytes) const noexcept {
    return (bytes & (block_size() - 1)) == 0;
  }

 private:
  explicit constexpr BlockShift(std::uint8_t shift) noexcept : shift_(shift) {}
  std::uint8_t shift_ = kMin;
};

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;
inline constexpr std::uint64_t kTiB = 1024 * kGiB;

}  // namespace rbt
