#pragma once
// I/O commands of the NVM command set (NVM 1.0, 3). What `plan_…` and the others promise: opcodes.h.

#include "common/nvme/io_command.h"
#include "target/command.h"
#include "target/namespace_table.h"

namespace rbt::target {

/// Bytes that one command may move: MDTS of Identify Controller.
inline constexpr std::uint32_t kTransferMax = 1u << 20;

[[nodiscard]] nvme::Expected<Plan> plan_read(Command& command);
[[nodiscard]] Step read(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_write(Command& command);
[[nodiscard]] Step write(Command& command);

[[nodiscard]] nvme::Expected<Plan> plan_flush(Command& command);
[[nodiscard]] Step flush(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_write_zeroes(Command& command);
[[nodiscard]] Step write_zeroes(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_dataset_management(Command& command);
[[nodiscard]] Step dataset_management(Command& command);

/// The namespace that the command names; invalid_namespace if the subsystem has none of that NSID.
[[nodiscard]] nvme::Expected<ServedNamespace*> find_namespace(const Command& command);
/// invalid_namespace…: as above; namespace_write_protected for a read-only one.
[[nodiscard]] nvme::Expected<ServedNamespace*> find_writable(const Command& command);
/// What a write must have reached before its answer: FUA, or no volatile write cache.
[[nodiscard]] Durability durability_of(const Command& command, const nvme::BlockCommand& block);

}  // namespace rbt::target
