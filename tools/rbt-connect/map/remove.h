#pragma once
// `unmap` and `gc`: volumes are taken away, by their processes or in place of these.

#include <string>

#include "tools/rbt-connect/map/state.h"
#include "tools/rbt-connect/map/world.h"

namespace rbt::tools::map {

struct UnmapOptions {
  bool force = false;  ///< whoever uses it: requests fail; within 2 s, whatever its process and its target do
  bool wait = false;   ///< until nobody uses it any more
};

/// Error: in_use, with who uses it; what could not be taken away, and what to do.
[[nodiscard]] Result<void> unmap(const World& world, const RunFolder& folder, const std::string& name,
                                 const UnmapOptions& options);

/// Of a volume whose process has ended, its name the caller's: a device that nobody was told of goes (name_device()). Error: in_use,
/// or what could not be taken away.
[[nodiscard]] Result<void> remove_untold(const RunFolder& folder, State state);

/// What ended processes have left: files without a device go; so do devices that nobody uses. One line each on standard output.
/// Returns the exit status: kInUse, something is in use and stays.
[[nodiscard]] Result<int> collect(const World& world, const RunFolder& folder);

}  // namespace rbt::tools::map
