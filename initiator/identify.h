#pragma once
// Identify data into checked values: pure functions over what the peer sent. Every field is a possible lie; none is an
// index, a size or a shift before it has been bounded here.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/nvme/nqn.h"
#include "common/nvme/properties.h"
#include "common/nvme/types.h"
#include "common/result.h"
#include "common/uri.h"
#include "initiator/namespace.h"

namespace rbt::initiator {

enum class ControllerKind : std::uint8_t { io, discovery };

/// What is known before Identify, and what we wish for.
struct IdentifyContext {
  ControllerKind kind = ControllerKind::io;
  nvme::Capabilities capabilities;
  nvme::Version version;
  Cntlid cntlid;              ///< of Connect
  std::string subsystem_nqn;  ///< that we connected to
  bool keep_alive_wanted = false;
  std::uint32_t in_capsule_preferred = 0;  ///< Fabric::in_capsule_data_preferred()
};

/// Limits of single commands that MDTS does not speak of (NVM 1.0, 4.1.5.4, Identify CNS 06h).
struct CommandLimits {
  Bytes write_zeroes_max{0};               ///< 0: 65536 blocks
  std::uint32_t discard_ranges_max = 256;  ///< 1 to 256
  std::uint32_t discard_range_blocks_max = 0xffffffff;
  std::uint64_t discard_blocks_max = ~std::uint64_t{0};  ///< of all ranges of one command
};

/// CNS 01h. Error: protocol or unsupported, with the field, what it says and what is allowed.
[[nodiscard]] Result<ControllerInfo> parse_identify_controller(const nvme_id_ctrl& data,
                                                               const IdentifyContext& context);

/// CNS 06h. Cannot fail: nonsense is taken for "no limit".
[[nodiscard]] CommandLimits parse_command_limits(const nvme_id_ctrl_nvm& data,
                                                 nvme::Capabilities capabilities) noexcept;

/// CNS 02h: appends the ascending NSIDs above `after`. True: the list was full, ask again after its last. Error: protocol,
/// if it does not ascend.
[[nodiscard]] Result<bool> parse_namespace_list(const nvme_ns_list& data, Nsid after, std::vector<Nsid>& out);

/// CNS 00h. Error: unsupported, if rbt cannot use it: metadata, protection information, block size.
[[nodiscard]] Result<Namespace> parse_identify_namespace(const nvme_id_ns& data, Nsid nsid,
                                                         const ControllerInfo& controller);

/// CNS 03h: fills in UUID, NGUID and EUI-64. False: another command set than NVM, or a list that contradicts itself.
[[nodiscard]] bool parse_namespace_descriptors(std::span<const std::byte> list, Namespace& out) noexcept;

}  // namespace rbt::initiator
