// Reservation Register, Acquire, Release and Report (Base 2.0, 7.2 to 7.5). Who is allowed what: target/reservation.

#include "common/nvme/reservation.h"

#include <algorithm>
#include <utility>

#include "target/connection.h"
#include "target/core.h"
#include "target/io/io.h"
#include "target/reactor_context.h"
#include "target/reservation/reservations.h"

namespace rbt::target {

using nvme::Expected;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

namespace {

Expected<Plan> plan_change(Command& command, std::uint32_t bytes) {
  const auto ns = find_namespace(command);
  if (!ns) return tl::unexpected(ns.error());
  // Nobody can tell one such host from another.
  if (command.controller().identity().host_id.is_zero()) return refuse(StatusCode::operation_denied);
  return Plan{.memory = Plan::Memory::buffer, .bytes = bytes, .ns = *ns};
}

template <typename Parsed>
Expected<Plan> plan_parsed(Command& command, const Expected<Parsed>& parsed, std::uint32_t bytes) {
  if (!parsed) return command.blame(40), tl::unexpected(parsed.error());
  return plan_change(command, bytes);
}

// The answer comes as a message, when every reactor knows.
Step submit(Command& command, Reservations::Change change) {
  ReactorContext& here = command.connection().reactor();
  command.plan().ns->shared().reservations().submit(command.controller().identity().host_id, std::move(change),
                                                    here.later_answer(command));
  return Step::held;
}

}  // namespace

Expected<Plan> plan_reservation_register(Command& command) {
  return plan_parsed(command, nvme::parse_reservation_register(command.sqe()), nvme::kReservationKeysBytes);
}

Step reservation_register(Command& command) {
  auto wanted = *nvme::parse_reservation_register(command.sqe());
  const auto [current, other] = nvme::parse_reservation_keys(command.buffer());
  wanted.current_key = current;
  wanted.new_key = other;
  return submit(command, wanted);
}

Expected<Plan> plan_reservation_acquire(Command& command) {
  return plan_parsed(command, nvme::parse_reservation_acquire(command.sqe()), nvme::kReservationKeysBytes);
}

Step reservation_acquire(Command& command) {
  auto wanted = *nvme::parse_reservation_acquire(command.sqe());
  const auto [current, other] = nvme::parse_reservation_keys(command.buffer());
  wanted.current_key = current;
  wanted.preempt_key = other;
  return submit(command, wanted);
}

Expected<Plan> plan_reservation_release(Command& command) {
  return plan_parsed(command, nvme::parse_reservation_release(command.sqe()), nvme::kReservationKeyBytes);
}

Step reservation_release(Command& command) {
  auto wanted = *nvme::parse_reservation_release(command.sqe());
  wanted.current_key = nvme::parse_reservation_key(command.buffer());
  return submit(command, wanted);
}

Expected<Plan> plan_reservation_report(Command& command) {
  const auto wanted = nvme::parse_reservation_report(command.sqe());
  // Over fabrics all host identifiers have 128 bits.
  if (!wanted.extended) return command.blame(44), refuse(StatusCode::host_id_inconsistent);
  if (wanted.bytes > kTransferMax) return command.blame(40), refuse(StatusCode::invalid_field);
  const auto ns = find_namespace(command);
  if (!ns) return tl::unexpected(ns.error());
  return Plan{.memory = Plan::Memory::buffer, .bytes = static_cast<std::uint32_t>(wanted.bytes), .ns = *ns};
}

Step reservation_report(Command& command) {
  const ReservationState state = command.plan().ns->shared().reservations().state();
  const ControllerTable& controllers = command.connection().reactor().core().controllers;
  nvme::ReservationStatus status{.generation = state.generation, .type = state.type, .persists = state.persists};
  for (const auto& each : state.registrants) {
    nvme::ReservationStatus::Entry entry{.holds = state.holds(each.host), .key = each.key, .host = each.host};
    auto ids = controllers.of_host(each.host, command.controller().subsystem());
    if (ids.empty()) ids.push_back(nvme::kCntlidDynamic);
    for (const Cntlid cntlid : ids) {
      entry.cntlid = cntlid.value();
      status.entries.push_back(entry);
    }
  }
  const auto bytes = nvme::encode_reservation_status(status);
  const auto to = command.buffer();
  const std::size_t fitting = std::min(bytes.size(), to.size());
  std::fill(std::copy_n(bytes.begin(), fitting, to.begin()), to.end(), std::byte{0});
  return command.finish(Status());
}

}  // namespace rbt::target
