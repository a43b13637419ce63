#include "common/nvme/io_command.h"

#include "common/check.h"

namespace rbt::nvme {
namespace {

// DW12 of the block commands
constexpr unsigned kDeallocateBit = 25;
constexpr unsigned kProtectionBit = 26;
constexpr unsigned kFuaBit = 30;
// DW12 of Copy
constexpr unsigned kCopyFormatBit = 8;
// DW11 of Dataset Management
constexpr unsigned kAttributeDeallocateBit = 2;

Expected<BlockRange> checked_range(Lba first, Blocks count, Blocks capacity) noexcept {
  const auto range = BlockRange::checked(first, count, capacity);
  if (!range) return refuse(StatusCode::lba_out_of_range);
  return *range;
}

}  // namespace

Expected<BlockRange> BlockCommand::within(Blocks capacity) const noexcept {
  return checked_range(first, count, capacity);
}

BlockCommand parse_block_command(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw12 = sqe.cdw12.get();
  return {
      .nsid = sqe.namespace_id(),
      .first = Lba(std::uint64_t{sqe.cdw11.get()} << 32 | sqe.cdw10.get()),
      .count = Blocks(std::uint64_t{bits(dw12, 0, 16)} + 1),
      .fua = bits(dw12, kFuaBit, 1) != 0 ? ForceUnitAccess::yes : ForceUnitAccess::no,
      .deallocate = bits(dw12, kDeallocateBit, 1) != 0 ? Deallocate::yes : Deallocate::no,
      .protection = static_cast<std::uint8_t>(bits(dw12, kProtectionBit, 4)),
  };
}

SubmissionQueueEntry encode_block_command(IoOpcode opcode, const BlockCommand& command) noexcept {
  const std::uint64_t count = command.count.value();
  check(count >= 1 && count <= 0x10000, "a block command moves 1 to 65536 blocks");
  SubmissionQueueEntry sqe;
  sqe.opcode = static_cast<std::uint8_t>(opcode);
  sqe.nsid = command.nsid.value();
  sqe.cdw10 = static_cast<std::uint32_t>(command.first.value() & 0xffffffff);
  sqe.cdw11 = static_cast<std::uint32_t>(command.first.value() >> 32);
  sqe.cdw12 =
      static_cast<std::uint32_t>(count - 1) | (command.deallocate == Deallocate::yes ? 1u << kDeallocateBit : 0u) |
      (command.protection & 0xfu) << kProtectionBit | (command.fua == ForceUnitAccess::yes ? 1u << kFuaBit : 0u);
  return sqe;
}

SubmissionQueueEntry encode_flush(Nsid nsid) noexcept {
  SubmissionQueueEntry sqe;
  sqe.opcode = static_cast<std::uint8_t>(IoOpcode::flush);
  sqe.nsid = nsid.value();
  return sqe;
}

Expected<BlockRange> DatasetRange::within(Blocks capacity) const noexcept {
  return checked_range(first, count, capacity);
}

DatasetManagement parse_dataset_management(const SubmissionQueueEntry& sqe) noexcept {
  return {
      .nsid = sqe.namespace_id(),
      .ranges = bits(sqe.cdw10.get(), 0, 8) + 1,
      .deallocate = bits(sqe.cdw11.get(), kAttributeDeallocateBit, 1) != 0 ? Deallocate::yes : Deallocate::no,
  };
}

SubmissionQueueEntry encode_dataset_management(const DatasetManagement& command) noexcept {
  check(command.ranges >= 1 && command.ranges <= 256, "Dataset Management carries 1 to 256 ranges");
  SubmissionQueueEntry sqe;
  sqe.opcode = static_cast<std::uint8_t>(IoOpcode::dataset_management);
  sqe.nsid = command.nsid.value();
  sqe.cdw10 = command.ranges - 1;
  sqe.cdw11 = command.deallocate == Deallocate::yes ? 1u << kAttributeDeallocateBit : 0u;
  return sqe;
}

Expected<DatasetRanges> DatasetRanges::parse(const DatasetManagement& command,
                                             std::span<const std::byte> data) noexcept {
  if (command.data_bytes() > data.size()) return refuse(StatusCode::sgl_invalid_length);
  return DatasetRanges(data, command.ranges);
}

DatasetRange DatasetRanges::operator[](std::uint32_t index) const noexcept {
  check(index < count_, "range index beyond the command's");
  const auto range = read_wire<DatasetRangeWire>(data_.subspan(index * sizeof(DatasetRangeWire)));
  return {Lba(range->first.get()), Blocks(range->blocks.get())};
}

Expected<BlockRange> CopyRange::within(Blocks capacity) const noexcept {
  return checked_range(first, count, capacity);
}

Expected<CopyCommand> parse_copy(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw12 = sqe.cdw12.get();
  const std::uint32_t ranges = bits(dw12, 0, 8) + 1;
  if (bits(dw12, kCopyFormatBit, 4) != 0) return refuse(StatusCode::invalid_field);
  if (ranges > kCopyRangesMax) return refuse(kCommandSizeLimitExceeded);
  return CopyCommand{.nsid = sqe.namespace_id(),
                     .first = Lba(std::uint64_t{sqe.cdw11.get()} << 32 | sqe.cdw10.get()),
                     .ranges = ranges,
                     .fua = bits(dw12, kFuaBit, 1) != 0 ? ForceUnitAccess::yes : ForceUnitAccess::no};
}

SubmissionQueueEntry encode_copy(const CopyCommand& command) noexcept {
  check(command.ranges >= 1 && command.ranges <= kCopyRangesMax, "Copy carries 1 to 128 ranges");
  SubmissionQueueEntry sqe;
  sqe.opcode = static_cast<std::uint8_t>(IoOpcode::copy);
  sqe.nsid = command.nsid.value();
  sqe.cdw10 = static_cast<std::uint32_t>(command.first.value() & 0xffffffff);
  sqe.cdw11 = static_cast<std::uint32_t>(command.first.value() >> 32);
  sqe.cdw12 = (command.ranges - 1) | (command.fua == ForceUnitAccess::yes ? 1u << kFuaBit : 0u);
  return sqe;
}

Expected<CopyRanges> CopyRanges::parse(const CopyCommand& command, std::span<const std::byte> data) noexcept {
  if (command.data_bytes() > data.size()) return refuse(StatusCode::sgl_invalid_length);
  return CopyRanges(data, command.ranges);
}

CopyRange CopyRanges::operator[](std::uint32_t index) const noexcept {
  check(index < count_, "range index beyond the command's");
  const auto range = read_wire<CopyRangeWire>(data_.subspan(index * sizeof(CopyRangeWire)));
  return {Lba(range->first.get()), Blocks(std::uint64_t{range->blocks.get()} + 1)};
}

CopyRangeWire encode_copy_range(const CopyRange& range) noexcept {
  check(range.count.value() >= 1 && range.count.value() <= 0x10000, "a Copy range holds 1 to 65536 blocks");
  CopyRangeWire wire;
  wire.first = range.first.value();
  wire.blocks = static_cast<std::uint16_t>(range.count.value() - 1);
  return wire;
}

DatasetRangeWire encode_dataset_range(const DatasetRange& range) noexcept {
  check(range.count.value() <= 0xffffffff, "a Dataset Management range holds at most 2^32 - 1 blocks");
  DatasetRangeWire wire;
  wire.blocks = static_cast<std::uint32_t>(range.count.value());
  wire.first = range.first.value();
  return wire;
}

}  // namespace rbt::nvme
