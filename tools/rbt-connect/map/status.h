#pragma once
// What a volume's process says of itself.

#include <string>

#include "initiator/present/device.h"
#include "initiator/volume.h"
#include "tools/rbt-connect/map/control.h"

namespace rbt::tools::map {

struct Standing {
  initiator::VolumeState state = initiator::VolumeState::live;
  std::string reason{};  ///< why it is not live
  std::string note{};    ///< what somebody should do: "the disk has grown: unmap and map again"
  Duration since_change{};
  Duration uptime{};
};

/// For `ls` and `stats`: "state", "reason", "note", "path", and the numbers.
[[nodiscard]] Json status_of(const Standing& standing, const initiator::Volume& volume);

}  // namespace rbt::tools::map
