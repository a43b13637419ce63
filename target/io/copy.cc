// Copy (NVM 1.0, 3.2.2): blocks of a namespace to another place of it.
//
// All sources are read before anything is written, and that is one write of the store: whatever overlaps, the destination
// gets what the sources held before. It costs a buffer, which bounds how much one command copies (MCL).

#include <utility>

#include "target/connection.h"
#include "target/controller.h"
#include "target/io/io.h"
#include "target/io/segments.h"

namespace rbt::target {

using nvme::Expected;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

CopyLimits copy_limits(BlockShift shift) noexcept {
  return {shift.blocks(Bytes(kCopyMax)), nvme::kCopyRangesMax};
}

Expected<Plan> plan_copy(Command& command) {
  const auto ns = find_writable(command);
  if (!ns) return tl::unexpected(ns.error());
  const auto wanted = nvme::parse_copy(command.sqe());
  if (!wanted) {
    wanted.error().code() == StatusCode::invalid_field ? command.blame(49) : command.blame(48);
    return tl::unexpected(wanted.error());
  }
  static_assert(nvme::kCopyRangesMax * sizeof(nvme::CopyRangeWire) + kCopyMax == kTransferMax);
  // The blocks lie behind the ranges.
  return Plan{.memory = Plan::Memory::side_buffer,
              .more_tolerated = true,
              .bytes = wanted->data_bytes(),
              .extra_bytes = kCopyMax,
              .ns = *ns,
              .range = {wanted->first, Blocks(0)},
              .durability = durability_of(command, wanted->fua),
              .changes = Plan::Changes::pieces};
}

namespace {

// How much is to be copied, or why not: all is judged before any of it is done.
Expected<BlockRange> judge(const Command& command, const nvme::CopyRanges& ranges) {
  const Geometry& geometry = command.plan().ns->geometry();
  const std::uint64_t most = copy_limits(geometry.block_shift).blocks.value();  // MSSRL and MCL
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < ranges.size(); ++i) {
    const auto range = ranges[i].within(geometry.blocks);
    if (!range) return tl::unexpected(range.error());
    if (range->count.value() > most - sum) return refuse(nvme::kCommandSizeLimitExceeded);
    sum += range->count.value();
  }
  const auto to = BlockRange::checked(command.plan().range.first, Blocks(sum), geometry.blocks);
  if (!to) return refuse(StatusCode::lba_out_of_range);
  return *to;
}

}  // namespace

// progress(): twice the number of sources that are read, one more while the next is asked for; then its turn, then the write.
Step copy(Command& command) {
  const auto wanted = nvme::parse_copy(command.sqe());
  const auto ranges = nvme::CopyRanges::parse(*wanted, command.buffer());
  if (!ranges) return command.finish(ranges.error());
  std::uint32_t& step = command.progress();
  if (step == 0) {
    const auto to = judge(command, *ranges);
    if (!to) return command.finish(to.error());
    command.set_range(*to);
  }
  const BlockShift shift = command.plan().ns->geometry().block_shift;
  std::size_t at = 0;
  for (std::uint32_t i = 0; i < ranges->size(); ++i) {
    const BlockRange from{(*ranges)[i].first, (*ranges)[i].count};
    const auto place = command.extra().subspan(at, static_cast<std::size_t>(from.count.value()) << shift.value());
    at += place.size();
    if (step > 2 * i + 1) continue;
    if (std::exchange(step, 2 * i + 1) == 2 * i)
      if (const auto waits = command.take_blocks(from, Intent::read)) return *waits;
    copy_out(command.lease().segments, place);
    command.give_back_blocks();
    step = 2 * i + 2;
  }
  const std::uint32_t turn = 2 * ranges->size(), blocks = turn + 1, written = turn + 2;
  if (step > written) return command.finish(Status());
  if (step == turn) {
    step = blocks;
    if (const auto waits = command.take_turn(command.plan().range)) return *waits;
  }
  if (std::exchange(step, written) == blocks)
    if (const auto waits = command.take_blocks(command.plan().range, Intent::write)) return *waits;
  step = written + 1;
  copy_in(command.lease().segments, command.extra().first(at));
  return command.store(command.plan().ns->queue().commit(command.lease(), command.plan().durability, command));
}

}  // namespace rbt::target
