#pragma once
// A namespace of a target as one side of a copy.

#include <memory>
#include <optional>

#include "common/uri.h"
#include "initiator/initiator.h"
#include "tools/program/interrupt.h"
#include "tools/rbt-connect/endpoint.h"

namespace rbt::tools {

struct VolumeOptions {
  initiator::HostOptions host;
  Duration connect_timeout = std::chrono::seconds(10);
  std::optional<Duration> on_loss{};  ///< initiator::VolumeOptions::on_loss
};

/// Connects. Transfers wait for a path that was lost to come back, as long as `on_loss` says, or until give_up() or `interrupt`.
[[nodiscard]] Result<std::unique_ptr<Endpoint>> open_volume(const initiator::Environment& environment, const Uri& uri,
                                                            transport::Reactor& reactor, const VolumeOptions& options,
                                                            const Interrupt& interrupt);

}  // namespace rbt::tools
