#pragma once
// The discovery log (Base 2.0, 5.16.1.23): what this host can connect to, through the fabric it came by.

#include <cstddef>
#include <vector>

#include "target/controller.h"

namespace rbt::target {

class Connection;

/// Header and entries for `host`. It changes only with the configuration, so that every piece a host reads is of the same
/// generation.
[[nodiscard]] std::vector<std::byte> build_discovery_log(const Connection& connection,
                                                         const Controller::Identity& host);

}  // namespace rbt::target
