// Connect (Base 2.0, 6.3): a queue pair becomes a queue of a controller.

#include "common/nvme/fabrics.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/fabrics/fabrics.h"
#include "target/reactor_context.h"

namespace rbt::target {
namespace {

using nvme::ConnectFailure;
using nvme::ConnectRequest;
using nvme::invalid_connect_data;
using nvme::invalid_connect_field;
using nvme::Status;
using nvme::StatusCode;

tl::unexpected<ConnectFailure> refuse_connect(StatusCode code) {
  return tl::unexpected(ConnectFailure{Status::permanent(code), 0});
}

// What the connection alone can tell.
tl::expected<const Subsystem*, ConnectFailure> check_request(const Connection& connection,
                                                             const ConnectRequest& request) {
  const Core& core = connection.reactor().core();
  // The CM request has said which queue this is, and sized it.
  if (request.qid != connection.wanted().qid)
    return tl::unexpected(invalid_connect_field(offsetof(nvme::ConnectCommand, qid)));
  if (request.queue_entries > connection.wanted().host_sends || request.queue_entries > core.limits.queue_depth_max)
    return tl::unexpected(invalid_connect_field(offsetof(nvme::ConnectCommand, sqsize)));
  const Subsystem* const subsystem = core.find(request.subsystem_nqn);
  if (subsystem == nullptr) return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, subsysnqn)));
  if (!subsystem->allows(request.host_nqn, request.host_id))
    return tl::unexpected(ConnectFailure{Status::permanent(StatusCode::connect_invalid_host),
                                         invalid_connect_data(offsetof(nvmf_connect_data, hostnqn)).dw0});
  // A host identifier of zero is accepted, as Linux does: such a host is nobody to reservations, and that is for them to
  // refuse (Base 2.0, 5.27.1.25).
  return subsystem;
}

tl::expected<Controller*, ConnectFailure> connect_admin_queue(Connection& connection, const ConnectRequest& request,
                                                              const Subsystem& subsystem) {
  // Controllers are dynamic here: a host cannot choose one (Base 2.0, 3.1.2).
  if (request.cntlid != nvme::kCntlidDynamic)
    return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, cntlid)));
  ReactorContext& reactor = connection.reactor();
  Core& core = reactor.core();
  const auto make = [&](Cntlid cntlid) {
    return std::make_unique<Controller>(
        Controller::Identity{cntlid, request.host_nqn, request.host_id}, subsystem,
        Controller::Offer{.queue_entries_max = core.limits.queue_depth_max,
                          .io_queues_max = core.limits.io_queues_max,
                          .write_cache = reactor.namespaces(subsystem).has_write_cache()},
        reactor.reactor().timers(), core.clock,
        [&connection] { connection.fail("keep alive: the host was silent for its keep-alive timeout"); });
  };
  Controller* const controller = core.controllers.create(make, {&reactor, connection.id()});
  if (controller == nullptr)  // not for good: without DNR
    return tl::unexpected(ConnectFailure{Status(StatusCode::connect_controller_busy), 0});
  controller->set_keep_alive(request.keep_alive);
  return controller;
}

tl::expected<Controller*, ConnectFailure> connect_queue(Connection& connection, const ConnectRequest& request) {
  const auto subsystem = check_request(connection, request);
  if (!subsystem) return tl::unexpected(subsystem.error());
  ReactorContext& reactor = connection.reactor();
  const Reach reach{&connection.domain(), connection.limits().path_mtu};
  if (auto prepared = reactor.namespaces(**subsystem).prepare(reach); !prepared) {
    reactor.warn(LogCause::connect_failed, "{}: Connect to {}: {}", connection.who(),
                 printable(request.subsystem_nqn.text()), prepared.error().message());
    return refuse_connect(StatusCode::internal_error);
  }
  return request.qid == Qid(0) ? connect_admin_queue(connection, request, **subsystem)
                               : reactor.core().controllers.attach(request, **subsystem, {&reactor, connection.id()});
}

}  // namespace

nvme::Expected<Plan> plan_connect(Command&) {
  return Plan{.memory = Plan::Memory::buffer, .bytes = nvme::kConnectDataBytes};
}

Step connect(Command& command) {
  Connection& connection = command.connection();
  const auto refused = [&](const ConnectFailure& failure) {
    command.set_result(failure.dw0);
    return command.finish(failure.status);
  };
  // Two Connects in flight: both were admitted, one comes second.
  if (connection.controller() != nullptr) return command.finish(Status::permanent(StatusCode::command_sequence_error));
  const auto request = nvme::parse_connect(command.sqe(), command.buffer());
  if (!request) return refused(request.error());
  const auto controller = connect_queue(connection, *request);
  if (!controller) {
    connection.reactor().warn(LogCause::connect_failed, "{}: host {} may not connect to {}: {}", connection.who(),
                              printable(request->host_nqn.text()), printable(request->subsystem_nqn.text()),
                              controller.error().dw0 != 0 ? nvme::describe_invalid_connect(controller.error().dw0)
                                                          : nvme::describe(controller.error().status));
    return refused(controller.error());
  }
  connection.join(**controller,
                  {request->qid, request->queue_entries, request->flow_control == nvme::SqFlowControl::on});
  if (request->qid == Qid(0))
    connection.reactor().core().logger.info("{}: connected to {}", connection.who(),
                                            printable(request->subsystem_nqn.text()));
  command.set_result(nvme::encode_connect_response(
      {.cntlid = (*controller)->identity().cntlid, .authentication_required = !connection.authenticated()}));
  return command.finish(Status());
}

}  // namespace rbt::target
