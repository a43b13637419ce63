#pragma once
// I/O commands of the NVM command set (NVM 1.0, 3). What `plan_…` and the others promise: opcodes.h.

#include "common/nvme/io_command.h"
#include "target/command.h"
#include "target/namespace_table.h"

namespace rbt::target {

/// Bytes that one command may move: MDTS of Identify Controller.
inline constexpr std::uint32_t kTransferMax = 1u << 20;
/// Bytes that one Copy may copy: with the ranges, a buffer of kTransferMax.
inline constexpr std::uint32_t kCopyMax = kTransferMax - 4096;

/// What one Copy may ask for, as Identify Namespace says it.
struct CopyLimits {
  Blocks blocks;         ///< MSSRL and MCL: of one source range, and of all
  std::uint32_t ranges;  ///< MSRC
};
[[nodiscard]] CopyLimits copy_limits(BlockShift shift) noexcept;

[[nodiscard]] nvme::Expected<Plan> plan_read(Command& command);
[[nodiscard]] Step read(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_write(Command& command);
[[nodiscard]] Step write(Command& command);

[[nodiscard]] nvme::Expected<Plan> plan_flush(Command& command);
[[nodiscard]] Step flush(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_write_zeroes(Command& command);
[[nodiscard]] Step write_zeroes(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_compare(Command& command);
[[nodiscard]] Step compare(Command& command);
/// The second half of a pair, its data as buffer(), the first one's as extra(): Write in place of write().
[[nodiscard]] Step compare_and_write(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_verify(Command& command);
[[nodiscard]] Step verify(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_copy(Command& command);
[[nodiscard]] Step copy(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_dataset_management(Command& command);
[[nodiscard]] Step dataset_management(Command& command);

[[nodiscard]] nvme::Expected<Plan> plan_reservation_register(Command& command);
[[nodiscard]] Step reservation_register(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_reservation_acquire(Command& command);
[[nodiscard]] Step reservation_acquire(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_reservation_release(Command& command);
[[nodiscard]] Step reservation_release(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_reservation_report(Command& command);
[[nodiscard]] Step reservation_report(Command& command);

/// The namespace that the command names; invalid_namespace if the subsystem has none of that NSID.
[[nodiscard]] nvme::Expected<ServedNamespace*> find_namespace(const Command& command);
/// invalid_namespace…: as above; namespace_write_protected for a read-only one.
[[nodiscard]] nvme::Expected<ServedNamespace*> find_writable(const Command& command);
/// The blocks that the command names, at most kTransferMax bytes, to be moved: where all such ranges are judged.
[[nodiscard]] nvme::Expected<Plan> plan_transfer(Command& command, const nvme::Expected<ServedNamespace*>& ns);
/// What a write must have reached before its answer: FUA, or no volatile write cache.
[[nodiscard]] Durability durability_of(const Command& command, nvme::ForceUnitAccess fua);

}  // namespace rbt::target
