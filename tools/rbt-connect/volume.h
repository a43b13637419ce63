#pragma once
// A namespace of a target as one side of a copy.

#include <memory>

#include "common/uri.h"
#include "initiator/initiator.h"
#include "tools/rbt-connect/endpoint.h"

namespace rbt::tools {

struct VolumeOptions {
  initiator::SessionOptions session;
  std::uint32_t depth = 32;
};

/// Connects: a session with one queue pair, on a reactor of the calling thread.
[[nodiscard]] Result<std::unique_ptr<Endpoint>> open_volume(const initiator::Environment& environment, const Uri& uri,
                                                            const VolumeOptions& options);

}  // namespace rbt::tools
