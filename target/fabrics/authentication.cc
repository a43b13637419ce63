// Authentication Send and Receive (Base 2.0, 6.2 and 6.1): how the messages of authentication.h come and go.

#include "target/authentication.h"

#include <algorithm>
#include <cstddef>
#include <memory>

#include "common/nvme/fabrics.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/fabrics/fabrics.h"
#include "target/reactor_context.h"

namespace rbt::target {

using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

nvme::Expected<Plan> plan_authentication(Command& command) {
  if (command.connection().authentication() == nullptr) return refuse(StatusCode::invalid_opcode);
  const auto length = nvme::parse_auth_command(command.sqe());
  if (!length) return command.blame(length.error()), refuse(StatusCode::invalid_field);
  return Plan{.memory = Plan::Memory::buffer, .bytes = *length};
}

Step authentication_send(Command& command) {
  Connection& connection = command.connection();
  auto job = connection.authentication()->take(command.buffer());
  if (job == nullptr) {
    connection.note_authentication();
    return command.finish(Status());
  }
  Core& core = connection.reactor().core();
  core.gate.enter();
  core.authenticating.submit([&core, &reactor = connection.reactor(), id = connection.id(), slot = command.index(),
                              ticket = command.ticket(), job = std::shared_ptr<DhJob>(std::move(job))] {
    // Of those who wait in a target that ends nobody gets in any more.
    core.draining.load(std::memory_order_relaxed) ? static_cast<void>(job->failed = true) : job->run();
    reactor.post([&reactor, id, slot, ticket, job] { reactor.finish_authentication(id, slot, ticket, *job); });
    core.gate.leave();
  });
  return Step::held;
}

Step authentication_receive(Command& command) {
  Connection& connection = command.connection();
  Authentication& authentication = *connection.authentication();
  // It did not wait for the end of its Send.
  if (!authentication.due()) return command.finish(Status::permanent(StatusCode::command_sequence_error));
  std::fill(command.buffer().begin(), command.buffer().end(), std::byte{0});
  const std::size_t size = authentication.give(command.buffer());
  connection.note_authentication();
  if (size != 0) return command.finish(Status());
  command.blame(offsetof(nvme::AuthCommand, length));
  return command.finish(Status::permanent(StatusCode::invalid_field));
}

}  // namespace rbt::target
