#pragma once
// What the peer said about itself and its namespaces, checked: value types without any pointer into a
// session.

#include <array>
#include <cstdint>
#include <string>

#include "common/nvme/properties.h"
#include "common/nvme/uuid.h"
#include "common/units.h"

namespace rbt::initiator {

/// The largest transfer of one command that rbt asks for, whatever larger a controller offers: MDTS 0 says
/// "any size".
inline constexpr std::uint32_t kTransferMax = std::uint32_t{1} << 20;

/// Optional commands of the NVM command set (Identify Controller, ONCS).
struct Abilities {
  bool compare = false;
  bool discard = false;  ///< Dataset Management, deallocate
  bool write_zeroes = false;
};

/// Identify Controller (Base 2.0, 5.17.2.1) and properties. Texts hold printable ASCII only.
struct ControllerInfo {
  std::string model;
  std::string serial;
  std::string firmware;
  std::string subsystem_nqn;  ///< as the controller gives it
  Cntlid cntlid;
  nvme::Version version;
  Bytes transfer_max;                   ///< of one command: MDTS, at most kTransferMax
  std::uint32_t in_capsule_max = 0;     ///< bytes of write data that we send inside a capsule; 0: none
  std::uint32_t queue_entries_max = 0;  ///< CAP.MQES + 1
  std::uint32_t commands_max = 0;       ///< outstanding on one I/O queue: MAXCMD; 0: not told
  std::uint32_t namespaces_max = 0;     ///< NN: as told, trusted by nobody
  std::uint32_t async_events_max = 1;   ///< AERL + 1
  std::uint32_t async_events = 0;       ///< OAES: which notices it can send
  bool keep_alive = false;              ///< KAS is not 0
  std::uint32_t access_groups = 0;      ///< NANAGRPID; 0: it does not report asymmetric access (CMIC bit 3)
  bool volatile_write_cache = false;
  Abilities abilities;
};

/// One namespace (NVM 1.0, 4.1.5.1), as it was when it was read. Session::namespaces() live as long as their
/// session, at one address.
struct Namespace {
  Nsid nsid;
  BlockShift block_shift;
  Blocks blocks;
  nvme::Uuid uuid;                       ///< all zero: none
  std::array<std::uint8_t, 16> nguid{};  ///< all zero: none
  std::array<std::uint8_t, 8> eui64{};   ///< all zero: none
  bool read_only = false;                ///< currently write protected (NSATTR bit 0)
  bool volatile_write_cache = false;     ///< completed writes may be lost until flush() or FUA
  bool thin = false;                     ///< NSFEAT bit 0
  bool discarded_reads_zero = false;     ///< DLFEAT 001b
  Abilities abilities;
  Bytes transfer_max;              ///< of one command; longer requests are split
  std::uint32_t access_group = 0;  ///< ANAGRPID; 0: none
  Blocks optimal_io;               ///< NOWS or NPWG; 1 if not told

  [[nodiscard]] Bytes size() const noexcept {
    return Bytes(blocks.value() << block_shift.value());
  }  // cannot overflow: checked
  [[nodiscard]] std::uint32_t block_size() const noexcept { return block_shift.block_size(); }
};

/// By which the same disk is known again, whoever serves it: its UUID, else its NGUID or EUI-64 in hexadecimal; empty: it has none.
[[nodiscard]] std::string identity(const Namespace& disk);

}  // namespace rbt::initiator
