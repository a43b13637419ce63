#pragma once
// RFC 4122 UUIDs, as namespaces (Identify CNS 03h), hosts and NQNs carry them: 16 bytes in text order.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/random.h"
#include "common/result.h"

namespace rbt::nvme {

class Uuid {
 public:
  /// All zero: "none".
  constexpr Uuid() noexcept = default;
  explicit constexpr Uuid(const std::array<std::uint8_t, 16>& bytes) noexcept : bytes_(bytes) {}

  /// "8-4-4-4-12" hexadecimal digits, either case. Error: invalid_argument.
  static Result<Uuid> parse(std::string_view text);
  /// Version 4, variant 1.
  static Uuid generate(Random& random) noexcept;

  [[nodiscard]] std::string to_string() const;  ///< lower case
  [[nodiscard]] constexpr const std::array<std::uint8_t, 16>& bytes() const noexcept { return bytes_; }
  [[nodiscard]] constexpr bool is_zero() const noexcept { return *this == Uuid(); }
  friend constexpr auto operator<=>(const Uuid&, const Uuid&) noexcept = default;

 private:
  std::array<std::uint8_t, 16> bytes_{};
};

}  // namespace rbt::nvme
