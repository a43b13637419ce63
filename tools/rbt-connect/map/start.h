#pragma once
// `map` and `recover`: a volume's process is started, or is this one.

#include <string>
#include <vector>

#include "initiator/succession.h"
#include "tools/rbt-connect/map/options.h"
#include "tools/rbt-connect/map/state.h"
#include "tools/rbt-connect/map/world.h"

namespace rbt::tools::map {

/// What the command line says about the process.
struct Start {
  std::vector<std::string> words{};  ///< of the command line, with the verb: what a process of its own is started with
  bool foreground = false;
  int detached = -1;  ///< this is that process
};

/// `map URI...`, or, where `named`, what rbttab says of options.name: then a device that is left is taken over. Prints the
/// device's path when it is usable. Returns the exit status.
[[nodiscard]] Result<int> map_volume(const World& world, const RunFolder& folder, MapOptions options, bool named,
                                     const Start& start);

/// Takes over the device of a process that has ended. Prints its path.
[[nodiscard]] Result<int> recover(const World& world, const RunFolder& folder, const std::string& name,
                                  initiator::AcceptLoss accept_loss, const Start& start);
/// All there are, one after the other; what cannot be recovered is said, and the first such error is the exit status.
[[nodiscard]] Result<int> recover_all(const RunFolder& folder, initiator::AcceptLoss accept_loss, const Start& start);

}  // namespace rbt::tools::map
