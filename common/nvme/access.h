#pragma once
// Asymmetric Namespace Access (Base 2.0, 8.1): what can be done with namespaces by way of one controller, and the log page
// that says so (5.16.1.13).

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "common/nvme/status.h"
#include "common/units.h"

namespace rbt::nvme {

enum class AccessState : std::uint8_t {
  optimized = 0x1,
  non_optimized = 0x2,
  inaccessible = 0x3,
  persistent_loss = 0x4,
  change = 0xf,  ///< on its way from one of these to another
};
[[nodiscard]] std::string_view name(AccessState state) noexcept;
/// How I/O commands end there: success if they are carried out. Never with DNR: elsewhere they may well succeed.
[[nodiscard]] Status access_status(AccessState state) noexcept;

/// LSP of Get Log Page: groups without their namespaces.
inline constexpr std::uint8_t kAccessLogGroupsOnly = 1;
inline constexpr std::size_t kAccessLogHeaderBytes = 16;
inline constexpr std::size_t kAccessGroupBytes = 32;

/// The log of a controller with one group. `namespaces` in ascending order.
struct AccessLog {
  std::uint64_t changes = 0;
  std::uint32_t group = 0;
  AccessState state = AccessState::optimized;
  std::vector<Nsid> namespaces{};
};
[[nodiscard]] std::vector<std::byte> encode_access_log(const AccessLog& log);
/// What a log says of `group`, whatever else is in it; nothing if it is not there, or has a state that there is not. `log`
/// may end anywhere.
[[nodiscard]] std::optional<AccessState> find_access_state(std::span<const std::byte> log,
                                                           std::uint32_t group) noexcept;

}  // namespace rbt::nvme
