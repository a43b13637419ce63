// Compare and Write (NVM 1.0, 3.3): nobody changes the blocks between the two.

#include "target/connection.h"
#include "target/controller.h"
#include "target/io/io.h"
#include "target/io/segments.h"

namespace rbt::target {

namespace {

// progress(): what is there, or comes before execute() is called again.
enum : std::uint32_t { kNothing, kTurns, kTurn, kOldBlocks, kNewBlocks, kCommitted };

}  // namespace

Step compare_and_write(Command& command) {
  const Plan& plan = command.plan();
  std::uint32_t& step = command.progress();
  if (step == kNothing) {
    step = kTurns;
    if (const auto waits = command.await_turns()) return *waits;
  }
  if (step == kTurns) {
    step = kTurn;
    if (const auto waits = command.take_turn(plan.range)) return *waits;
  }
  if (step == kTurn) {
    step = kOldBlocks;
    if (const auto waits = command.take_blocks(plan.range, Intent::read)) return *waits;
  }
  if (step == kOldBlocks) {
    const bool equal = same(command.lease().segments, command.extra());
    command.give_back_blocks();
    if (!equal) return command.finish(nvme::Status::permanent(nvme::StatusCode::compare_failure));
    command.set_compared();
    step = kNewBlocks;
    if (const auto waits = command.take_blocks(plan.range, Intent::write)) return *waits;
  }
  if (step == kNewBlocks) {
    step = kCommitted;
    copy_in(command.lease().segments, command.buffer());
    return command.store(plan.ns->queue().commit(command.lease(), plan.durability, command));
  }
  return command.finish(nvme::Status());
}

}  // namespace rbt::target
