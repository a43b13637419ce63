// Property Get and Set (Base 2.0, 6.5 and 6.6): the controller's registers over fabrics.

#include "common/nvme/fabrics.h"
#include "target/admin/admin.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/fabrics/fabrics.h"
#include "target/reactor_context.h"

namespace rbt::target {

using nvme::Property;
using nvme::Status;

nvme::Expected<Plan> plan_property(Command&) {
  return Plan{};
}

Step property_get(Command& command) {
  Controller& controller = command.controller();
  const auto access = nvme::parse_property(command.sqe());
  if (!access) return command.finish(access.error());
  // A reset is over when the last I/O queue has gone: CSTS.RDY says so to the host that polls it.
  if (controller.registers().resetting() &&
      command.connection().reactor().core().controllers.io_queue_count(controller) == 0)
    controller.finish_reset();
  const auto value = controller.registers().get(*access);
  if (!value) return command.finish(value.error());
  command.set_result(*value);
  return command.finish(Status());
}

Step property_set(Command& command) {
  Controller& controller = command.controller();
  const auto access = nvme::parse_property(command.sqe());
  if (!access) return command.finish(access.error());
  const auto effect = controller.set_property(*access);
  if (!effect) return command.finish(effect.error());
  if (*effect == Registers::Effect::reset) {
    complete_held_events(controller, nvme::StatusCode::aborted_queue_deleted);
    for (const ConnectionRef& queue : command.connection().reactor().core().controllers.io_queues(controller))
      queue.reactor->close_connection(queue.id, "its controller was reset by the host");
  }
  return command.finish(Status());
}

}  // namespace rbt::target
