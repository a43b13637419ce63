#pragma once
// What lies at a path, as far as serving it without a copy goes. What can be registered for writing was measured:
// memfd, tmpfs, hugetlbfs and devdax can; pages of a page cache that is written back, and fs-dax, cannot (docs/stores.md).

#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"

namespace rbt::target {

enum class MapKind : std::uint8_t {
  memfd,      ///< memory of some process, by descriptor: sealed
  tmpfs,      ///< a file in memory: under a lease
  hugetlbfs,  ///< the same, of huge pages; cannot be written with write(2)
  devdax,     ///< persistent memory as a character device
  fsdax,      ///< a file that is persistent memory: mapped, never registered
  other,      ///< served as file: does
};

struct MapFound {
  MapKind kind = MapKind::other;
  std::string is;  ///< "a file on tmpfs", "a file on ext4"
};

/// Looks at what is there; a link is followed. Errors: as stat(2); `unsupported` for what is no disk at all.
[[nodiscard]] Result<MapFound> look_at(const std::string& path);

}  // namespace rbt::target
