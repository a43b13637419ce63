#pragma once
// What rbt's target tells rbt's initiator beyond the specification, so that a lost path can be replaced (docs/recovery.md):
// one log page and one admin command, both in the ranges that NVMe leaves to vendors. Nobody else needs to know them.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "common/nvme/capsule.h"

namespace rbt::nvme {

/// The log page of Get Log Page; with the NSID of a namespace, or 0 or FFFFFFFFh for the association alone.
inline constexpr std::uint8_t kRecoveryLogId = 0xc0;
/// Ends an earlier association of the same host; no data. Result DW0: FenceResult.
inline constexpr AdminOpcode kFenceOpcode{0xc0};

/// A running target: drawn anew by every process.
using InstanceId = std::array<std::uint8_t, 16>;

/// Equal values, read before and after a write was acknowledged: it has not been lost in between, flushed or not.
struct Incarnation {
  std::array<std::uint8_t, 16> medium{};  ///< the machine's boot, or the target's instance, as the store knows
  std::uint64_t losses = 0;
  friend bool operator==(const Incarnation&, const Incarnation&) noexcept = default;
};

/// One association with a target: what a fence names.
struct AssociationId {
  InstanceId instance{};
  std::uint64_t number = 0;  ///< counted by the instance, never used twice; 0: none
  friend bool operator==(const AssociationId&, const AssociationId&) noexcept = default;
};

struct RecoveryInfo {
  AssociationId association;  ///< the one that asks
  Incarnation incarnation;    ///< of the namespace asked about; else all zero
};

struct RecoveryLog {
  std::array<char, 16> signature{};
  Le16 version;
  std::array<std::byte, 6> reserved18{};
  InstanceId instance{};
  Le64 association;
  std::array<std::uint8_t, 16> medium{};
  Le64 losses;
  std::array<std::byte, 56> reserved72{};
};
static_assert(sizeof(RecoveryLog) == 128 && WireType<RecoveryLog>);
static_assert(offsetof(RecoveryLog, version) == 16 && offsetof(RecoveryLog, instance) == 24);
static_assert(offsetof(RecoveryLog, association) == 40 && offsetof(RecoveryLog, medium) == 48);
static_assert(offsetof(RecoveryLog, losses) == 64 && offsetof(RecoveryLog, reserved72) == 72);

[[nodiscard]] RecoveryLog encode_recovery_log(const RecoveryInfo& info) noexcept;
/// Nothing if these are not 128 bytes of rbt's page, version 1: another vendor has another page in its place.
[[nodiscard]] std::optional<RecoveryInfo> parse_recovery_log(std::span<const std::byte> page) noexcept;

/// What became of the association that a fence names.
enum class FenceResult : std::uint32_t {
  gone = 0,    ///< nothing that it was asked for can happen any more
  ending = 1,  ///< its connections are closed; commands it had accepted are still in the store: ask again
};
/// Association in CDW10 and 11, instance in CDW12 to 15. Another instance's association cannot be here: gone.
[[nodiscard]] SubmissionQueueEntry encode_fence(const AssociationId& association) noexcept;
[[nodiscard]] AssociationId parse_fence(const SubmissionQueueEntry& sqe) noexcept;

}  // namespace rbt::nvme
