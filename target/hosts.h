#pragma once
// Which hosts may come in, and what each of them sees.

#include <optional>
#include <vector>

#include "common/nvme/nqn.h"
#include "common/units.h"

namespace rbt::target {

/// A host that may connect to a subsystem. Several of one NQN are told apart by their identifiers: the first that fits counts.
struct AllowedHost {
  nvme::Nqn nqn;
  std::optional<nvme::HostId> id = {};  ///< none: any
  /// The namespaces that exist for it, those that come later included; to it there are no others: not in lists, not in logs,
  /// not in commands. None: all. Target::show_namespaces() changes it.
  std::optional<std::vector<Nsid>> namespaces = {};
};

}  // namespace rbt::target
