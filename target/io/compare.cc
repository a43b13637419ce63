// Compare and Verify (NVM 1.0, 3.2.1 and 3.2.7): blocks are read, and the host hears how that went.

#include <utility>

#include "target/connection.h"
#include "target/controller.h"
#include "target/io/io.h"
#include "target/io/segments.h"

namespace rbt::target {

using nvme::Expected;
using nvme::Status;
using nvme::StatusCode;

// The host's data is fetched first: nobody waits for a host with blocks in hand that others want to write.
Expected<Plan> plan_compare(Command& command) {
  auto plan = plan_transfer(command, find_namespace(command));
  if (plan) plan->memory = Plan::Memory::side_buffer;
  return plan;
}

// Writes of these blocks wait, or come to nothing here: the store's lease is what a Read would be answered with.
Step compare(Command& command) {
  const bool asked = std::exchange(command.progress(), 1) != 0;
  if (!asked)
    if (const auto step = command.take_blocks(command.plan().range, Intent::read)) return *step;
  const bool equal = same(command.lease().segments, command.buffer());
  command.give_back_blocks();
  return command.finish(equal ? Status() : Status::permanent(StatusCode::compare_failure));
}

// VSL is MDTS.
Expected<Plan> plan_verify(Command& command) {
  auto plan = plan_transfer(command, find_namespace(command));
  if (!plan) return plan;
  plan->memory = Plan::Memory::none;
  plan->bytes = 0;
  return plan;
}

Step verify(Command& command) {
  const bool asked = std::exchange(command.progress(), 1) != 0;
  if (!asked)
    if (const auto step = command.take_blocks(command.plan().range, Intent::read)) return *step;
  command.give_back_blocks();
  return command.finish(Status());
}

}  // namespace rbt::target
