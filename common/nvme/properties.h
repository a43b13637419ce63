#pragma once
// Controller properties that exist over fabrics: Base 2.0, 3.1.3 (figure 35 and the fields' figures). Value
// types with one accessor per field, so that nobody shifts by hand.

#include <cstdint>
#include <optional>

#include "common/nvme/endian.h"
#include "common/nvme/fabrics.h"

namespace rbt::nvme {

/// Offsets. The rest of the PCIe registers do not exist over fabrics.
enum class Property : std::uint32_t {
  capabilities = 0x00,     ///< CAP, 8 bytes, read only
  version = 0x08,          ///< VS, 4 bytes, read only
  configuration = 0x14,    ///< CC, 4 bytes
  status = 0x1c,           ///< CSTS, 4 bytes, read only
  subsystem_reset = 0x20,  ///< NSSR, 4 bytes, optional
  ready_timeouts = 0x68,   ///< CRTO, 4 bytes, read only
};

/// The size that a property has; nothing if `offset` is none of the above.
[[nodiscard]] constexpr std::optional<PropertySize> property_size(std::uint32_t offset) noexcept {
  switch (static_cast<Property>(offset)) {
    case Property::capabilities: return PropertySize::eight_bytes;
    case Property::version:
    case Property::configuration:
    case Property::status:
    case Property::subsystem_reset:
    case Property::ready_timeouts: return PropertySize::four_bytes;
  }
  return std::nullopt;
}

/// One bit field of a register: get and set, range known.
template <typename Rep>
constexpr Rep with_bits(Rep raw, unsigned low, unsigned width, Rep value) noexcept {
  const Rep mask = static_cast<Rep>(((std::uint64_t{1} << width) - 1) << low);
  return static_cast<Rep>((raw & ~mask) | (static_cast<Rep>(value << low) & mask));
}

/// CAP: what the controller can do (figure 36).
struct Capabilities {
  std::uint64_t raw = 0;

  /// Largest queue in entries, 2 to 65536 (MQES is one less).
  [[nodiscard]] constexpr std::uint32_t queue_entries_max() const noexcept {
    return static_cast<std::uint32_t>(bits(raw, 0, 16)) + 1;
  }
  [[nodiscard]] constexpr bool contiguous_queues_required() const noexcept { return bits(raw, 16, 1) != 0; }
  /// How long to wait for CSTS.RDY, in units of 500 ms.
  [[nodiscard]] constexpr std::uint32_t timeout_half_seconds() const noexcept {
    return static_cast<std::uint32_t>(bits(raw, 24, 8));
  }
  [[nodiscard]] constexpr bool supports_subsystem_reset() const noexcept { return bits(raw, 36, 1) != 0; }
  [[nodiscard]] constexpr bool supports_nvm_command_set() const noexcept { return bits(raw, 37, 1) != 0; }
  [[nodiscard]] constexpr bool supports_command_set_selection() const noexcept { return bits(raw, 43, 1) != 0; }
  /// log2 of the smallest and largest memory page, less 12. MPSMIN also scales MDTS.
  [[nodiscard]] constexpr unsigned page_shift_min() const noexcept { return static_cast<unsigned>(bits(raw, 48, 4)); }
  [[nodiscard]] constexpr unsigned page_shift_max() const noexcept { return static_cast<unsigned>(bits(raw, 52, 4)); }
  [[nodiscard]] constexpr bool ready_with_media() const noexcept { return bits(raw, 59, 1) != 0; }            ///< CRWMS
  [[nodiscard]] constexpr bool ready_independent_of_media() const noexcept { return bits(raw, 60, 1) != 0; }  ///< CRIMS

  /// `entries` 1 to 65536.
  constexpr Capabilities with_queue_entries_max(std::uint32_t entries) const noexcept {
    return {with_bits<std::uint64_t>(raw, 0, 16, entries - 1)};
  }
  constexpr Capabilities with_contiguous_queues_required() const noexcept { return {raw | std::uint64_t{1} << 16}; }
  constexpr Capabilities with_timeout_half_seconds(std::uint8_t timeout) const noexcept {
    return {with_bits<std::uint64_t>(raw, 24, 8, timeout)};
  }
  constexpr Capabilities with_nvm_command_set() const noexcept { return {raw | std::uint64_t{1} << 37}; }
  constexpr Capabilities with_command_set_selection() const noexcept { return {raw | std::uint64_t{1} << 43}; }
  constexpr Capabilities with_ready_with_media() const noexcept { return {raw | std::uint64_t{1} << 59}; }
};

/// CC.SHN and CSTS.SHST.
enum class Shutdown : std::uint8_t { none = 0, normal = 1, abrupt = 2, reserved = 3 };
enum class ShutdownStatus : std::uint8_t { none = 0, occurring = 1, complete = 2, reserved = 3 };

/// CC: what the host sets (figure 46). Fields are as the host wrote them; which values are served is the
/// controller's.
struct Configuration {
  std::uint32_t raw = 0;

  [[nodiscard]] constexpr bool enabled() const noexcept { return bits(raw, 0, 1) != 0; }
  /// 0 NVM, 6 all that Identify CNS 1Ch says, 7 admin only.
  [[nodiscard]] constexpr unsigned command_set() const noexcept { return bits(raw, 4, 3); }
  [[nodiscard]] constexpr unsigned page_shift() const noexcept { return bits(raw, 7, 4); }
  [[nodiscard]] constexpr unsigned arbitration() const noexcept { return bits(raw, 11, 3); }
  [[nodiscard]] constexpr Shutdown shutdown() const noexcept { return static_cast<Shutdown>(bits(raw, 14, 2)); }
  /// log2 of the I/O entries' sizes: 6 and 4 are the only ones that exist.
  [[nodiscard]] constexpr unsigned sqe_size_shift() const noexcept { return bits(raw, 16, 4); }
  [[nodiscard]] constexpr unsigned cqe_size_shift() const noexcept { return bits(raw, 20, 4); }

  constexpr Configuration with_enabled(bool enabled) const noexcept {
    return {with_bits<std::uint32_t>(raw, 0, 1, enabled ? 1 : 0)};
  }
  constexpr Configuration with_command_set(unsigned css) const noexcept {
    return {with_bits<std::uint32_t>(raw, 4, 3, css)};
  }
  constexpr Configuration with_shutdown(Shutdown shutdown) const noexcept {
    return {with_bits<std::uint32_t>(raw, 14, 2, static_cast<std::uint32_t>(shutdown))};
  }
  constexpr Configuration with_entry_size_shifts(unsigned sqe, unsigned cqe) const noexcept {
    return {with_bits<std::uint32_t>(with_bits<std::uint32_t>(raw, 16, 4, sqe), 20, 4, cqe)};
  }
};

/// CSTS: what the controller says (figure 47).
struct ControllerStatus {
  std::uint32_t raw = 0;

  [[nodiscard]] constexpr bool ready() const noexcept { return bits(raw, 0, 1) != 0; }
  [[nodiscard]] constexpr bool fatal() const noexcept { return bits(raw, 1, 1) != 0; }
  [[nodiscard]] constexpr ShutdownStatus shutdown() const noexcept {
    return static_cast<ShutdownStatus>(bits(raw, 2, 2));
  }
  constexpr ControllerStatus with_ready(bool ready) const noexcept {
    return {with_bits<std::uint32_t>(raw, 0, 1, ready ? 1 : 0)};
  }
  constexpr ControllerStatus with_fatal() const noexcept { return {raw | 2}; }
  constexpr ControllerStatus with_shutdown(ShutdownStatus shutdown) const noexcept {
    return {with_bits<std::uint32_t>(raw, 2, 2, static_cast<std::uint32_t>(shutdown))};
  }
};

/// VS, and VER of Identify: major 31:16, minor 15:8, tertiary 7:0.
struct Version {
  std::uint32_t raw = 0;
  static constexpr Version of(std::uint16_t major, std::uint8_t minor, std::uint8_t tertiary = 0) noexcept {
    return {std::uint32_t{major} << 16 | std::uint32_t{minor} << 8 | tertiary};
  }
  [[nodiscard]] constexpr unsigned major_number() const noexcept { return raw >> 16; }
  [[nodiscard]] constexpr unsigned minor_number() const noexcept { return bits(raw, 8, 8); }
  [[nodiscard]] constexpr unsigned tertiary_number() const noexcept { return bits(raw, 0, 8); }
};

}  // namespace rbt::nvme
