// Asynchronous Event Request, Abort and Keep Alive (Base 2.0, 5.1, 5.2, 5.18): commands about time.

#include <algorithm>
#include <optional>

#include "common/nvme/admin_command.h"
#include "common/nvme/types.h"
#include "target/admin/admin.h"
#include "target/connection.h"
#include "target/controller.h"
#include "target/core.h"
#include "target/reactor_context.h"

namespace rbt::target {

using nvme::Status;
using nvme::StatusCode;

namespace {

// The events there are (Base 2.0, figure 146).
constexpr nvme::AsyncEvent kNamespaceChanged{
    .type = NVME_AER_NOTICE, .info = NVME_AER_NOTICE_NS_CHANGED, .lid = NVME_LOG_LID_CHANGED_NS};
constexpr nvme::AsyncEvent kAccessChanged{
    .type = NVME_AER_NOTICE, .info = NVME_AER_NOTICE_ANA, .lid = NVME_LOG_LID_ANA};
constexpr nvme::AsyncEvent kReservationNotice{
    .type = NVME_AER_CSS, .info = NVME_AER_CSS_NVM_RESERVATION, .lid = NVME_LOG_LID_RESERVATION};

// One that is due and that the host wants; it is told by this.
std::optional<nvme::AsyncEvent> take_event(Controller& controller) noexcept {
  const std::uint32_t wanted = controller.features().async_events;
  if (controller.changed_namespaces().event_due() && (wanted & NVME_FEATURE_AENCFG_NOTICE_NAMESPACE_ATTRIBUTES) != 0) {
    controller.changed_namespaces().set_told();
    return kNamespaceChanged;
  }
  if (controller.access_notice().due() && (wanted & NVME_FEATURE_AENCFG_NOTICE_ANA_CHANGE) != 0) {
    controller.access_notice().set_told();
    return kAccessChanged;
  }
  if (controller.reservation_notices().event_due()) {  // feature 82h has had its say
    controller.reservation_notices().set_told();
    return kReservationNotice;
  }
  return std::nullopt;
}

}  // namespace

nvme::Expected<Plan> plan_nothing(Command&) {
  return Plan{};
}

Step async_event_request(Command& command) {
  Controller& controller = command.controller();
  if (const auto event = take_event(controller)) {
    command.set_result(nvme::encode_async_event(*event));
    return command.finish(Status());
  }
  auto& held = controller.held_events();
  if (held.size() >= Controller::kHeldEventsMax)
    return command.finish(Status::permanent(StatusCode::async_event_limit_exceeded));
  held.push_back(&command);
  return Step::held;
}

void send_due_events(Controller& controller) {
  auto& held = controller.held_events();
  while (!held.empty()) {
    const auto event = take_event(controller);
    if (!event) return;
    Command* const request = held.front();
    held.erase(held.begin());
    request->complete_held(Status(), nvme::encode_async_event(*event));
  }
}

void complete_held_events(Controller& controller, Status status) {
  // Completing one may let the next command in: the list is emptied first.
  const std::vector<Command*> held(controller.held_events());
  controller.held_events().clear();
  for (Command* const each : held)
    each->complete_held(status, 0);
}

// What waits for something and has changed nothing is stopped; whatever else there is ends by itself, and DW0 says so.
Step abort_command(Command& command) {
  const auto wanted = nvme::parse_abort(command.sqe());
  Controller& controller = command.controller();
  ReactorContext& here = command.connection().reactor();
  const auto answer = [&](bool aborted) {
    command.set_result(abort_result(aborted));
    return command.finish(Status());
  };
  auto& held = controller.held_events();
  const auto event = std::find_if(held.begin(), held.end(), [&](const Command* each) {
    return wanted.qid == Qid(0) && each->sqe().command_id() == wanted.cid;
  });
  if (event != held.end()) {
    Command* const aborted = *event;
    held.erase(event);
    aborted->complete_held(StatusCode::abort_requested, 0);
    return answer(true);
  }
  const auto queue = here.core().controllers.queue(controller, wanted.qid);
  if (!queue) return answer(false);
  if (queue->reactor == &here) return answer(here.abort(queue->id, wanted.cid));
  if (controller.aborts() >= Controller::kAbortsMax) return command.finish(Status(StatusCode::abort_limit_exceeded));
  ++controller.aborts();
  queue->reactor->post([queue = *queue, cid = wanted.cid, &here, id = command.connection().id(), slot = command.index(),
                        ticket = command.ticket()] {
    const bool aborted = queue.reactor->abort(queue.id, cid);
    here.post([&here, id, slot, ticket, aborted] { here.answer_abort(id, slot, ticket, aborted); });
  });
  return Step::held;
}

Step keep_alive(Command& command) {
  // decode() has noted the traffic already.
  if (command.controller().keep_alive().count() == 0)
    return command.finish(Status::permanent(StatusCode::keep_alive_invalid));
  return command.finish(Status());
}

}  // namespace rbt::target
