#pragma once
// What a Volume has to tell about itself, in numbers.

#include <cstdint>

#include "common/units.h"

namespace rbt::initiator {

/// How old associations are made harmless.
enum class FenceKind : std::uint8_t {
  target,      ///< the target ends them and says when it is done
  keep_alive,  ///< foreign targets: by waiting for twice the keep-alive timeout
  off,
};
/// Whether acknowledged, unflushed writes are kept.
enum class MemoryKind : std::uint8_t {
  on,
  not_needed,  ///< the namespace has no volatile write cache
  foreign,     ///< the target does not tell whether it has lost any
  off,         ///< VolumeOptions::unflushed is 0
};

/// Since open().
struct VolumeStatistics {
  std::uint64_t losses = 0;     ///< of a live path
  std::uint64_t attempts = 0;   ///< to connect again
  std::uint64_t reissued = 0;   ///< requests sent again, each time counted
  std::uint64_t rewritten = 0;  ///< kept writes written again to a new incarnation
  std::uint64_t flushes = 0;    ///< of the volume's own
  std::uint64_t unflushed = 0;  ///< bytes kept now
  Duration longest_loss{};      ///< from loss to live
  FenceKind fence = FenceKind::off;
  MemoryKind memory = MemoryKind::off;
};

}  // namespace rbt::initiator
