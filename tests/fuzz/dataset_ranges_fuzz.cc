// Dataset Management and the block commands: no range that passes within() leaves the namespace.

#include "common/nvme/io_command.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::nvme;

namespace {

void check_range(const Expected<BlockRange>& range, Blocks capacity) {
  if (!range) return;
  check(range->first.value() <= capacity.value(), "a range begins within the namespace");
  check(range->count.value() <= capacity.value() - range->first.value(), "and ends there");
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  const auto sqe = fuzz::entry(input);
  const auto command = parse_dataset_management(sqe);
  const auto behind = fuzz::behind_entry(input);
  const auto ranges = DatasetRanges::parse(command, behind);
  check(!ranges || ranges->size() * sizeof(DatasetRangeWire) <= behind.size(), "every range was received");
  const auto block = parse_block_command(sqe);
  check(block.count.value() >= 1 && block.count.value() <= 65536, "0's based");
  for (const auto capacity : {Blocks(0), Blocks(1000), Blocks(~std::uint64_t{0})}) {
    check_range(block.within(capacity), capacity);
    for (std::uint32_t i = 0; ranges && i < ranges->size(); ++i)
      check_range((*ranges)[i].within(capacity), capacity);
  }
  const auto again = parse_block_command(encode_block_command(IoOpcode::write_zeroes, block));
  check(again.first == block.first && again.count == block.count && again.fua == block.fua &&
            again.deallocate == block.deallocate && again.protection == block.protection && again.nsid == block.nsid,
        "a block command is encoded as it was decoded");
  return 0;
}
