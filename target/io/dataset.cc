// Flush, Write Zeroes and Dataset Management (Base 2.0, 7.1; NVM 1.0, 3.2.3 and 3.2.8): commands about blocks that move
// none of them.

#include <algorithm>
#include <memory>
#include <new>
#include <span>

#include "target/connection.h"
#include "target/controller.h"
#include "target/io/io.h"

namespace rbt::target {

using nvme::Expected;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

Expected<Plan> plan_flush(Command& command) {
  if (command.sqe().namespace_id() == nvme::kNsidAll) return Plan{};
  const auto ns = find_namespace(command);
  if (!ns) return tl::unexpected(ns.error());
  return Plan{.ns = *ns};
}

// One namespace, or all of them one after the other: progress() is the NSID of the last one that was started. They may come
// and go between two: who comes then had nothing to be flushed when the command came.
Step flush(Command& command) {
  std::uint32_t& last = command.progress();
  ServedNamespace* const one = command.plan().ns;
  const auto next = [&] { return one == nullptr ? command.namespaces().after(Nsid(last)) : last == 0 ? one : nullptr; };
  while (ServedNamespace* const ns = next()) {
    last = ns->nsid().value();
    command.hold(ns);
    const Progress progress = ns->queue().flush(command);
    if (progress.pending || progress.status != StoreStatus::ok) return command.store(progress);
  }
  return command.finish(Status());
}

Expected<Plan> plan_write_zeroes(Command& command) {
  const auto ns = find_writable(command);
  if (!ns) return tl::unexpected(ns.error());
  if ((*ns)->geometry().write_zeroes == Ability::none) return refuse(StatusCode::invalid_opcode);
  const auto block = nvme::parse_block_command(command.sqe());
  const auto range = block.within((*ns)->geometry().blocks);
  if (!range) return tl::unexpected(range.error());
  // No data, so MDTS does not bound it: 65536 blocks do.
  return Plan{
      .ns = *ns, .range = *range, .durability = durability_of(command, block.fua), .changes = Plan::Changes::range};
}

Step write_zeroes(Command& command) {
  const Plan& plan = command.plan();
  const auto deallocate = nvme::parse_block_command(command.sqe()).deallocate == nvme::Deallocate::yes
                              ? StoreQueue::Deallocate::yes
                              : StoreQueue::Deallocate::no;
  return command.store(plan.ns->queue().write_zeroes(plan.range, deallocate, plan.durability, command));
}

Expected<Plan> plan_dataset_management(Command& command) {
  const auto ns = find_writable(command);
  if (!ns) return tl::unexpected(ns.error());
  const auto wanted = nvme::parse_dataset_management(command.sqe());
  return Plan{.memory = Plan::Memory::side_buffer,
              .more_tolerated = true,
              .bytes = wanted.data_bytes(),
              .extra_bytes = static_cast<std::uint32_t>((wanted.ranges + 1) * sizeof(BlockRange)),
              .ns = *ns,
              .changes = Plan::Changes::pieces};
}

namespace {

// Behind the data: the ranges as the store wants them, valid until it is done.
std::span<BlockRange> ranges_place(Command& command, std::uint32_t count) {
  std::size_t space = command.extra().size();
  void* place = command.extra().data();
  return {static_cast<BlockRange*>(std::align(alignof(BlockRange), sizeof(BlockRange), place, space)), count};
}

// progress(): 0 nothing is judged yet; else by range, one more than three times its number, and what comes back next.
enum : std::uint32_t { kWanted, kHasTurn, kDiscarded };
constexpr std::uint32_t step_of(std::size_t range, std::uint32_t step) {
  return static_cast<std::uint32_t>(1 + 3 * range + step);
}

// Piece by piece, each in its turn. What is left of a range is kept where it lies.
Step discard_by_turns(Command& command, std::span<BlockRange> ranges) {
  std::uint32_t& step = command.progress();
  for (std::size_t i = (step - 1) / 3; i < ranges.size();) {
    BlockRange& left = ranges[i];
    if (step == step_of(i, kWanted)) {
      if (left.count == Blocks(0)) {
        step = step_of(++i, kWanted);
        continue;
      }
      step = step_of(i, kHasTurn);
      const BlockRange piece{left.first, std::min(left.count, Blocks(RangeLock::kBlocksMax))};
      if (const auto waits = command.take_turn(piece)) return *waits;
    }
    if (step == step_of(i, kHasTurn)) {
      step = step_of(i, kDiscarded);
      const Progress progress = command.plan().ns->queue().discard({&command.turn(), 1}, command);
      if (progress.pending || progress.status != StoreStatus::ok) return command.store(progress);
    }
    left = {command.turn().end(), left.count - command.turn().count};
    command.end_turn();
    step = step_of(i, kWanted);
  }
  return command.finish(Status());
}

}  // namespace

Step dataset_management(Command& command) {
  const auto wanted = nvme::parse_dataset_management(command.sqe());
  const ServedNamespace& ns = *command.plan().ns;
  const std::span<BlockRange> place = ranges_place(command, wanted.ranges);
  if (command.progress() == 0) {
    const auto ranges = nvme::DatasetRanges::parse(wanted, command.buffer());
    if (!ranges) return command.finish(ranges.error());
    for (std::uint32_t i = 0; i < ranges->size(); ++i) {
      const auto range = (*ranges)[i].within(ns.geometry().blocks);
      if (!range) return command.finish(range.error());  // all or nothing: none has been deallocated yet
      new (&place[i]) BlockRange(*range);
    }
    // Without AD there is nothing to do, and hints may be ignored, as may be deallocation where the medium has none.
    if (wanted.deallocate == nvme::Deallocate::no || ns.geometry().discard == Ability::none)
      return command.finish(Status());
    command.progress() = step_of(0, kWanted);
    if (command.goes_freely()) {
      command.progress() = step_of(place.size(), kWanted);
      return command.store(ns.queue().discard(place, command));
    }
  }
  return discard_by_turns(command, place);
}

}  // namespace rbt::target
