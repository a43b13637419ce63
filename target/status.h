#pragma once
// From the target's own causes to what a host is told: the one place where that is decided.

#include "common/nvme/status.h"
#include "target/store/store.h"

namespace rbt::target {

/// The status of a command whose store operation ended with `status`.
[[nodiscard]] nvme::Status status_of(StoreStatus status) noexcept;

}  // namespace rbt::target
