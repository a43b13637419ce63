// Copy: no range that passes within() leaves the namespace, and what is encoded is what was decoded.

#include "common/nvme/io_command.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::nvme;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  const auto command = parse_copy(fuzz::entry(input));
  if (!command) return 0;
  check(command->ranges >= 1 && command->ranges <= kCopyRangesMax, "no more ranges than are offered");
  const auto behind = fuzz::behind_entry(input);
  const auto ranges = CopyRanges::parse(*command, behind);
  check(!ranges || ranges->size() * sizeof(CopyRangeWire) <= behind.size(), "every range was received");
  for (std::uint32_t i = 0; ranges && i < ranges->size(); ++i) {
    const CopyRange range = (*ranges)[i];
    check(range.count.value() >= 1 && range.count.value() <= 65536, "0's based");
    for (const auto capacity : {Blocks(0), Blocks(1000), Blocks(~std::uint64_t{0})}) {
      const auto within = range.within(capacity);
      check(!within || (within->first.value() <= capacity.value() &&
                        within->count.value() <= capacity.value() - within->first.value()),
            "a range lies within the namespace");
    }
    const auto wire = encode_copy_range(range);
    const auto again = CopyRanges::parse({.nsid = command->nsid, .ranges = 1}, std::as_bytes(std::span(&wire, 1)));
    check(again && (*again)[0].first == range.first && (*again)[0].count == range.count, "encoded as it was decoded");
  }
  const auto again = parse_copy(encode_copy(*command));
  check(again && again->first == command->first && again->ranges == command->ranges && again->fua == command->fua,
        "a Copy is encoded as it was decoded");
  return 0;
}
