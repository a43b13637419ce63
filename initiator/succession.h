#pragma once
// What a process has to know to go on where another one has ended: whose commands may still come, which disk it was, and
// what was lost with its memory. Plain values, to be written down by one process and read by the next.

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "common/nvme/nqn.h"
#include "common/nvme/recovery.h"
#include "common/nvme/uuid.h"
#include "common/units.h"
#include "initiator/volume_statistics.h"

namespace rbt::initiator {

/// By which a namespace is known again. Identifiers that are all zero: none.
struct DiskIdentity {
  nvme::Uuid uuid;
  std::array<std::uint8_t, 16> nguid{};
  std::array<std::uint8_t, 8> eui64{};
  std::uint32_t block_size = 0;
  Blocks blocks;
  friend bool operator==(const DiskIdentity&, const DiskIdentity&) noexcept = default;
};

/// A volume's association as it is to be known to whoever comes after its process. docs/recovery.md.
struct Succession {
  /// A target fences off associations of the same host only. Valid NQN (Nqn::parse()), identifier not zero.
  std::string host_nqn;
  nvme::HostId host_id;
  std::string uri;                  ///< of the path, as Uri::to_string() has it
  nvme::AssociationId association;  ///< number 0: the target cannot say (a foreign one)
  Duration keep_alive{};            ///< of the association; 0: none
  DiskIdentity disk;
  MemoryKind memory =
      MemoryKind::off;  ///< `on`: the process kept what was not flushed, so it can be lost with the process
  /// Every write that was acknowledged and not flushed was acknowledged by this incarnation. None: not known.
  std::optional<nvme::Incarnation> incarnation{};
  friend bool operator==(const Succession&, const Succession&) noexcept = default;
};

/// Whether a volume goes on when writes that its predecessor had acknowledged may be lost.
enum class AcceptLoss : std::uint8_t { no, yes };

}  // namespace rbt::initiator
