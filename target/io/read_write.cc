// Read and Write (NVM 1.0, 3.2.4 and 3.2.6).

#include "target/connection.h"
#include "target/controller.h"
#include "target/io/io.h"

namespace rbt::target {

using nvme::Expected;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

Expected<ServedNamespace*> find_namespace(const Command& command) {
  ServedNamespace* const ns = command.namespaces().find(command.sqe().namespace_id());
  if (ns == nullptr) return refuse(StatusCode::invalid_namespace);
  return ns;
}

Expected<ServedNamespace*> find_writable(const Command& command) {
  auto ns = find_namespace(command);
  if (ns && (*ns)->geometry().read_only) return refuse(StatusCode::namespace_write_protected);
  return ns;
}

Durability durability_of(const Command& command, nvme::ForceUnitAccess fua) {
  const bool durable = fua == nvme::ForceUnitAccess::yes || !command.controller().write_cache_enabled();
  return durable ? Durability::durable : Durability::cached;
}

Expected<Plan> plan_transfer(Command& command, const Expected<ServedNamespace*>& ns) {
  if (!ns) return tl::unexpected(ns.error());
  const Geometry& geometry = (*ns)->geometry();
  const auto block = nvme::parse_block_command(command.sqe());
  const auto range = block.within(geometry.blocks);
  if (!range) return tl::unexpected(range.error());
  // At most 65536 blocks: no overflow. More than MDTS is Invalid Field (Base 2.0, 5.17.2.1).
  const std::uint64_t bytes = block.count.value() << geometry.block_shift.value();
  if (bytes > kTransferMax) return command.blame(48), refuse(StatusCode::invalid_field);
  return Plan{.memory = Plan::Memory::blocks,
              .bytes = static_cast<std::uint32_t>(bytes),
              .ns = *ns,
              .range = *range,
              .durability = durability_of(command, block.fua)};
}

Expected<Plan> plan_read(Command& command) {
  return plan_transfer(command, find_namespace(command));
}

// acquire() has read it.
Step read(Command& command) {
  return command.finish(Status());
}

Expected<Plan> plan_write(Command& command) {
  auto plan = plan_transfer(command, find_writable(command));
  if (plan) plan->changes = Plan::Changes::range;
  return plan;
}

Step write(Command& command) {
  const Plan& plan = command.plan();
  return command.store(plan.ns->queue().commit(command.lease(), plan.durability, command));
}

}  // namespace rbt::target
