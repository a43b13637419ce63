#pragma once
// What /sys says of /dev/nbdN.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace rbt::initiator::nbd {

/// The first line of /sys/block/nbdN/`name`; nothing: not there.
[[nodiscard]] std::optional<std::string> read_attribute(std::uint32_t number, std::string_view name);
/// Whether the kernel took it.
[[nodiscard]] bool write_attribute(std::uint32_t number, std::string_view name, std::string_view value);
/// It is connected, or somebody has it open still.
[[nodiscard]] bool in_use(std::uint32_t number);
/// Hardware queues, which are connections; 0: not told.
[[nodiscard]] std::uint32_t queues(std::uint32_t number);

}  // namespace rbt::initiator::nbd
