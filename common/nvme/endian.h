#pragma once
// Little-endian integers as they lie on the wire. A wire structure is built of these and of bytes only:
// alignment 1, no padding, no bit-fields, the same bytes on every host. It enters and leaves through
// read_wire() and wire_bytes().

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

namespace rbt::nvme {

/// An unsigned integer, least significant byte first.
template <std::unsigned_integral T>
class Le {
 public:
  constexpr Le() noexcept = default;
  constexpr Le(T value) noexcept : bytes_(encode(value)) {}  // implicit: writing `sqe.cid = 7` loses nothing
  [[nodiscard]] constexpr T get() const noexcept { return std::bit_cast<T>(ordered(bytes_)); }
  friend constexpr bool operator==(const Le&, const Le&) noexcept = default;

 private:
  using Raw = std::array<std::byte, sizeof(T)>;
  static constexpr Raw ordered(Raw raw) noexcept {
    if constexpr (std::endian::native == std::endian::big) std::reverse(raw.begin(), raw.end());
    return raw;
  }
  static constexpr Raw encode(T value) noexcept { return ordered(std::bit_cast<Raw>(value)); }

  Raw bytes_{};
};

using Le16 = Le<std::uint16_t>;
using Le32 = Le<std::uint32_t>;
using Le64 = Le<std::uint64_t>;

/// A 24-bit length, least significant byte first.
class Le24 {
 public:
  static constexpr std::uint32_t kMax = (1u << 24) - 1;
  constexpr Le24() noexcept = default;
  /// `value` ≤ kMax; the caller has checked. Higher bits are dropped.
  explicit constexpr Le24(std::uint32_t value) noexcept
      : low_(static_cast<std::uint16_t>(value & 0xffff)), high_(static_cast<std::uint8_t>(value >> 16 & 0xff)) {}
  [[nodiscard]] constexpr std::uint32_t get() const noexcept { return std::uint32_t{high_} << 16 | low_.get(); }
  friend constexpr bool operator==(const Le24&, const Le24&) noexcept = default;

 private:
  Le16 low_;
  std::uint8_t high_ = 0;
};

/// Anything whose object representation is its wire representation.
template <typename T>
concept WireType = std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T> && alignof(T) == 1;

/// The structure at the start of `bytes`; nothing if there are fewer bytes than it has.
template <WireType T>
[[nodiscard]] std::optional<T> read_wire(std::span<const std::byte> bytes) noexcept {
  if (bytes.size() < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

/// The bytes of `value`, for as long as it lives.
template <WireType T>
[[nodiscard]] std::span<const std::byte, sizeof(T)> wire_bytes(const T& value) noexcept {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

/// Copies `value` to the start of `out`; false, and nothing written, if it does not fit.
template <WireType T>
[[nodiscard]] bool write_wire(std::span<std::byte> out, const T& value) noexcept {
  if (out.size() < sizeof(T)) return false;
  std::memcpy(out.data(), &value, sizeof(T));
  return true;
}

/// Bits [low, low + width) of `value`.
template <std::unsigned_integral T>
[[nodiscard]] constexpr T bits(T value, unsigned low, unsigned width) noexcept {
  return static_cast<T>(value >> low & static_cast<T>((std::uint64_t{1} << width) - 1));
}

}  // namespace rbt::nvme
