#pragma once
// What a Volume has to tell about itself, in numbers.

#include <cstdint>

#include "common/histogram.h"
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

/// Requests of one kind that are done, however they ended.
struct VolumeTraffic {
  std::uint64_t requests = 0;
  std::uint64_t bytes = 0;   ///< that they named
  std::uint64_t errors = 0;  ///< of `requests`: with another outcome than success
  CoarseHistogram latency;   ///< from submit() to done: with everything that happened to the path meanwhile
};

/// Since open(), of all lanes.
struct VolumeStatistics {
  std::uint64_t losses = 0;     ///< of a live path
  std::uint64_t attempts = 0;   ///< to connect again
  std::uint64_t reissued = 0;   ///< requests sent again, each time counted
  std::uint64_t rewritten = 0;  ///< kept writes written again to a new incarnation
  std::uint64_t flushes = 0;    ///< of the volume's own
  /// Bytes kept now; of a lane that has not written since, also what another one's flush has made durable.
  std::uint64_t unflushed = 0;
  Duration longest_loss{};  ///< from loss to live
  FenceKind fence = FenceKind::off;
  MemoryKind memory = MemoryKind::off;
  VolumeTraffic read;  ///< and compare
  VolumeTraffic write;
  VolumeTraffic flush;
  VolumeTraffic discard;  ///< and write zeroes
};

}  // namespace rbt::initiator
