#pragma once
// I/O commands of the NVM command set (NVM 1.0, 3.2): fields of the entry into values, and back for the
// initiator. What needs the namespace (capacity, MDTS, block size) is for the target to check, with
// BlockCommand::within().

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/nvme/capsule.h"
#include "common/units.h"

namespace rbt::nvme {

enum class ForceUnitAccess : std::uint8_t { no, yes };
/// Write Zeroes: whether the blocks may also be deallocated (DEAC).
enum class Deallocate : std::uint8_t { no, yes };

/// Read, Write, Compare, Verify, Write Zeroes (NVM 1.0, 3.2.1 to 3.2.8): they share a layout.
struct BlockCommand {
  Nsid nsid{};
  Lba first{};
  Blocks count;  ///< 1 to 65536: NLB is 0's based
  ForceUnitAccess fua = ForceUnitAccess::no;
  Deallocate deallocate = Deallocate::no;  ///< Write Zeroes only
  std::uint8_t protection = 0;             ///< PRINFO, 4 bits: not 0 only for namespaces with protection information

  /// The range if the namespace has it; else lba_out_of_range.
  [[nodiscard]] Expected<BlockRange> within(Blocks capacity) const noexcept;
};
/// Every value of every field is representable: cannot fail.
[[nodiscard]] BlockCommand parse_block_command(const SubmissionQueueEntry& sqe) noexcept;
/// Without cid and data pointer. `count` outside 1 to 65536 is a bug of the caller's.
[[nodiscard]] SubmissionQueueEntry encode_block_command(IoOpcode opcode, const BlockCommand& command) noexcept;

/// Flush (Base 2.0, 7.1): its NSID is all there is. kNsidAll flushes every namespace.
[[nodiscard]] SubmissionQueueEntry encode_flush(Nsid nsid) noexcept;

/// NVM 1.0, 3.2.3.1: one range of Dataset Management, 16 bytes.
struct DatasetRangeWire {
  Le32 context_attributes;
  Le32 blocks;  ///< not 0's based
  Le64 first;
};
static_assert(sizeof(DatasetRangeWire) == 16 && WireType<DatasetRangeWire>);
static_assert(offsetof(DatasetRangeWire, blocks) == 4 && offsetof(DatasetRangeWire, first) == 8);

/// One range as the host gave it: unchecked against the namespace.
struct DatasetRange {
  Lba first{};
  Blocks count;  ///< 0 is allowed and means nothing
  /// The range if the namespace has it; else lba_out_of_range.
  [[nodiscard]] Expected<BlockRange> within(Blocks capacity) const noexcept;
};

/// Dataset Management (NVM 1.0, 3.2.3), the entry.
struct DatasetManagement {
  Nsid nsid{};
  std::uint32_t ranges = 1;                ///< 1 to 256: NR is 0's based
  Deallocate deallocate = Deallocate::no;  ///< AD; the hints IDR and IDW are not decoded: nothing acts on them
  [[nodiscard]] std::uint32_t data_bytes() const noexcept {
    return ranges * static_cast<std::uint32_t>(sizeof(DatasetRangeWire));
  }
};
[[nodiscard]] DatasetManagement parse_dataset_management(const SubmissionQueueEntry& sqe) noexcept;
/// Without cid and data pointer. `ranges` outside 1 to 256 is a bug of the caller's.
[[nodiscard]] SubmissionQueueEntry encode_dataset_management(const DatasetManagement& command) noexcept;

/// The ranges of one command: a view of the bytes it was made from, no copy.
class DatasetRanges {
 public:
  /// sgl_invalid_length if `data` is shorter than the command's ranges; more is tolerated (peers send whole
  /// pages).
  static Expected<DatasetRanges> parse(const DatasetManagement& command, std::span<const std::byte> data) noexcept;

  [[nodiscard]] std::uint32_t size() const noexcept { return count_; }
  /// `index` < size(), else a bug of the caller's.
  [[nodiscard]] DatasetRange operator[](std::uint32_t index) const noexcept;

 private:
  DatasetRanges(std::span<const std::byte> data, std::uint32_t count) noexcept : data_(data), count_(count) {}
  std::span<const std::byte> data_;
  std::uint32_t count_ = 0;
};

/// Of Copy: more ranges, or more blocks, than Identify Namespace allows. Its number is Connect's, too.
inline constexpr StatusCode kCommandSizeLimitExceeded = StatusCode::connect_restart_discovery;

/// NVM 1.0, 3.2.2: one source range of Copy, descriptor format 0, 32 bytes.
struct CopyRangeWire {
  Le64 reserved;
  Le64 first;
  Le16 blocks;  ///< 0's based
  std::array<std::uint8_t, 6> reserved2{};
  Le32 reference_tag;
  Le16 application_tag;
  Le16 application_tag_mask;
};
static_assert(sizeof(CopyRangeWire) == 32 && WireType<CopyRangeWire>);
static_assert(offsetof(CopyRangeWire, first) == 8 && offsetof(CopyRangeWire, blocks) == 16);
static_assert(offsetof(CopyRangeWire, reference_tag) == 24 && offsetof(CopyRangeWire, application_tag) == 28);

/// Source ranges that one Copy may name here; its field could hold 256.
inline constexpr std::uint32_t kCopyRangesMax = 128;

/// One source range as the host gave it: unchecked against the namespace.
struct CopyRange {
  Lba first{};
  Blocks count;  ///< 1 to 65536
  /// The range if the namespace has it; else lba_out_of_range.
  [[nodiscard]] Expected<BlockRange> within(Blocks capacity) const noexcept;
};

/// Copy (NVM 1.0, 3.2.2), the entry.
struct CopyCommand {
  Nsid nsid{};
  Lba first{};               ///< of the destination
  std::uint32_t ranges = 1;  ///< 1 to kCopyRangesMax: NR is 0's based
  ForceUnitAccess fua = ForceUnitAccess::no;
  [[nodiscard]] std::uint32_t data_bytes() const noexcept {
    return ranges * static_cast<std::uint32_t>(sizeof(CopyRangeWire));
  }
};
/// invalid_field: a descriptor format besides 0; kCommandSizeLimitExceeded: more than kCopyRangesMax ranges.
[[nodiscard]] Expected<CopyCommand> parse_copy(const SubmissionQueueEntry& sqe) noexcept;
/// Without cid and data pointer. `ranges` outside 1 to kCopyRangesMax is a bug of the caller's.
[[nodiscard]] SubmissionQueueEntry encode_copy(const CopyCommand& command) noexcept;

/// The source ranges of one command: a view of the bytes it was made from, no copy.
class CopyRanges {
 public:
  /// sgl_invalid_length if `data` is shorter than the command's ranges; more is tolerated.
  static Expected<CopyRanges> parse(const CopyCommand& command, std::span<const std::byte> data) noexcept;

  [[nodiscard]] std::uint32_t size() const noexcept { return count_; }
  /// `index` < size(), else a bug of the caller's.
  [[nodiscard]] CopyRange operator[](std::uint32_t index) const noexcept;

 private:
  CopyRanges(std::span<const std::byte> data, std::uint32_t count) noexcept : data_(data), count_(count) {}
  std::span<const std::byte> data_;
  std::uint32_t count_ = 0;
};

/// `count` outside 1 to 65536 is a bug of the caller's.
[[nodiscard]] CopyRangeWire encode_copy_range(const CopyRange& range) noexcept;

/// For the initiator. `count` above 2^32 - 1 blocks is a bug of the caller's.
[[nodiscard]] DatasetRangeWire encode_dataset_range(const DatasetRange& range) noexcept;

}  // namespace rbt::nvme
