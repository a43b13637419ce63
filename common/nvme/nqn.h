#pragma once
// NVMe Qualified Names (Base 2.0, 4.5) and host identifiers (Base 2.0, 5.27.1.25): who is who.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/nvme/uuid.h"
#include "common/result.h"

namespace rbt::nvme {

/// The name of a host or a subsystem: 1 to 223 bytes, no control characters. A value type.
class Nqn {
 public:
  static constexpr std::size_t kLengthMax = 223;   ///< bytes without the NUL (Base 2.0, 4.5)
  static constexpr std::size_t kFieldBytes = 256;  ///< NUL-terminated on the wire

  /// What we call ourselves and what hosts call themselves: must begin with "nqn.". Error: invalid_argument.
  static Result<Nqn> parse(std::string_view text);
  /// The name of somebody else's subsystem, which need not begin with "nqn.": the Linux target takes any
  /// directory's name for one. Error: invalid_argument.
  static Result<Nqn> parse_foreign(std::string_view text);
  /// From a peer's message. Nothing without a NUL within the field, if longer than 223 bytes, or if not
  /// "nqn.…".
  static std::optional<Nqn> from_field(std::span<const char, kFieldBytes> field);
  /// "nqn.2014-08.org.nvmexpress:uuid:<uuid>" (Base 2.0, 4.5, second form).
  static Nqn from_uuid(const Uuid& uuid);
  /// The well-known discovery subsystem, "nqn.2014-08.org.nvmexpress.discovery" (Base 2.0, 3.1.2.3).
  static Nqn discovery();

  /// Fills the field with the name and NULs.
  void store(std::span<char, kFieldBytes> field) const noexcept;
  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] bool is_discovery() const noexcept;
  friend auto operator<=>(const Nqn&, const Nqn&) noexcept = default;

 private:
  explicit Nqn(std::string text) noexcept : text_(std::move(text)) {}
  std::string text_;
};

inline constexpr std::string_view kDiscoveryNqn = "nqn.2014-08.org.nvmexpress.discovery";

/// 128-bit host identifier of Connect: what reservations belong to. All zero is not a valid one.
class HostId {
 public:
  constexpr HostId() noexcept = default;
  explicit constexpr HostId(const std::array<std::uint8_t, 16>& bytes) noexcept : bytes_(bytes) {}
  /// A UUID's bytes in text order, as nvme-cli and the kernel do.
  explicit constexpr HostId(const Uuid& uuid) noexcept : bytes_(uuid.bytes()) {}

  [[nodiscard]] constexpr const std::array<std::uint8_t, 16>& bytes() const noexcept { return bytes_; }
  [[nodiscard]] constexpr bool is_zero() const noexcept { return *this == HostId(); }
  [[nodiscard]] std::string to_string() const { return Uuid(bytes_).to_string(); }
  friend constexpr auto operator<=>(const HostId&, const HostId&) noexcept = default;

 private:
  std::array<std::uint8_t, 16> bytes_{};
};

}  // namespace rbt::nvme
