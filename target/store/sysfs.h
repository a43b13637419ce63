#pragma once
// What the kernel tells about a block device.

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace rbt::target {

/// /sys/dev/block/MAJOR:MINOR/`attribute`, without spaces around it; nothing if it is not there or empty.
[[nodiscard]] std::optional<std::string> device_attribute(dev_t device, std::string_view attribute);
/// /sys/dev/char/MAJOR:MINOR/`attribute`, likewise.
[[nodiscard]] std::optional<std::string> character_device_attribute(dev_t device, std::string_view attribute);
/// As device_attribute(), of the whole disk, for partitions, which lack queue/ and most names of their own.
[[nodiscard]] std::optional<std::string> disk_attribute(dev_t device, std::string_view attribute);
[[nodiscard]] std::optional<std::uint64_t> disk_number(dev_t device, std::string_view attribute);
/// Who else has the device, as far as it can be seen: "mounted on /srv", "part of dm-0".
[[nodiscard]] std::vector<std::string> device_users(dev_t device);

}  // namespace rbt::target
