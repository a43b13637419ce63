// What lets a host replace a path that it has lost (docs/recovery.md): who this target and this association are, what may
// have become of unflushed writes, and the end of an earlier association.

#include "common/nvme/recovery.h"

#include "target/admin/admin.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/reactor_context.h"

namespace rbt::target {

using nvme::Status;
using nvme::StatusCode;

namespace {

// A store that knows nothing better vouches for no more than this opening of it by this process.
nvme::Incarnation incarnation_of(const Core& core, const Namespace& ns) {
  const Endurance endurance = ns.store().endurance();
  if (endurance.medium) return {.medium = *endurance.medium, .losses = endurance.losses};
  return {.medium = core.instance, .losses = (ns.opening() << 32) + endurance.losses};
}

}  // namespace

Step recovery_log(Command& command, const nvme::GetLogPage& wanted) {
  const Core& core = command.connection().reactor().core();
  nvme::RecoveryInfo info;
  info.association = {.instance = core.instance, .number = core.controllers.association(command.controller())};
  if (wanted.nsid != Nsid(0) && wanted.nsid != nvme::kNsidAll) {
    const ServedNamespace* const ns = command.namespaces().find(wanted.nsid);
    if (ns == nullptr)  // it has gone since the command came
      return command.finish(Status::permanent(StatusCode::invalid_namespace));
    info.incarnation = incarnation_of(core, ns->shared());
  }
  const auto log = nvme::encode_recovery_log(info);
  const bool inside = nvme::copy_log_page(nvme::wire_bytes(log), wanted.offset, command.buffer());
  return command.finish(inside ? Status() : Status::permanent(StatusCode::invalid_field));
}

// The controller leaves the table when the last of its connections is closed and every command that it had accepted has
// come back from its store: then nothing is left that could write.
Step fence(Command& command) {
  Core& core = command.connection().reactor().core();
  const nvme::AssociationId wanted = nvme::parse_fence(command.sqe());
  nvme::FenceResult result = nvme::FenceResult::gone;
  if (wanted.instance == core.instance) {
    const auto queues = core.controllers.fence(wanted.number, command.controller());
    if (!queues) return command.finish(Status::permanent(StatusCode::invalid_field));
    for (const ConnectionRef& queue : *queues)
      queue.reactor->close_connection(queue.id, "its host has a new association and has fenced this one off");
    if (!queues->empty()) result = nvme::FenceResult::ending;
  }
  command.set_result(static_cast<std::uint32_t>(result));
  return command.finish(Status());
}

}  // namespace rbt::target
