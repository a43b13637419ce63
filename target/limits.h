#pragma once
// What a target lets its peers make it hold.

#include <cstdint>
#include <optional>

#include "common/clock.h"
#include "common/units.h"

namespace rbt::target {

/// Bounds on everything that a peer can make the target hold.
struct TargetLimits {
  std::uint32_t queue_depth_max = 1024;  ///< entries of an I/O queue, 2 to 1024 (CAP.MQES, MAXCMD)
  std::uint32_t io_queues_max = 64;      ///< per controller, 1 to 1024
  // Of connections, one more is refused with "no resources". A host is an address over verbs, a user over shared memory. Half
  // open are those without a successful Connect: Linux's host opens all its queues before it connects the first.
  std::uint32_t connections_max = 1024;  ///< of all hosts
  std::uint32_t connections_per_host = 512;
  std::uint32_t half_open_max = 512;  ///< of all hosts
  std::uint32_t half_open_per_host = 128;
  std::uint32_t reads_max = 128;  ///< RDMA READs outstanding per connection, as far as device and peer allow
  /// In-capsule data offered to hosts, bytes, 0 to 16 KiB, a multiple of 16; none: what the fabric prefers (4 KiB over
  /// verbs, nothing over shared memory).
  std::optional<std::uint32_t> in_capsule_bytes = {};
  /// Registered buffers per reactor: transfers of disk stores, admin data. An eighth as much again (2 MiB at least) for
  /// commands that need a buffer besides the store's memory.
  Bytes buffers = Bytes(64 * kMiB);
  std::uint32_t receive_depth = 1024;            ///< receive buffers per reactor and device
  Duration half_open = std::chrono::seconds(5);  ///< a connection without a successful Connect is closed after this
  /// A connection that for so long takes nothing of what is sent to it, and gives nothing that is fetched, is closed: what its
  /// commands hold is others', too. Long ones are no substitute for a keep-alive: an idle connection is never judged.
  Duration stalled = std::chrono::seconds(10);
};

}  // namespace rbt::target
