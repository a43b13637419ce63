#pragma once
// Bringing up an association: from nothing to an enabled, identified controller, and down again. The procedure reads top
// to bottom and blocks its caller; connect() in controller.cc is the list of its steps.

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/nvme/admin_command.h"
#include "common/nvme/fabrics.h"
#include "initiator/call.h"
#include "initiator/identify.h"
#include "initiator/initiator.h"
#include "initiator/queue.h"

namespace rbt::initiator {

/// Who connects to what: the same for every queue of an association.
struct Association {
  Uri uri;
  nvme::Nqn subsystem;
  nvme::Nqn host_nqn;
  nvme::HostId host_id;
  auth::SharedSecret secret{};
  auth::SharedSecret controller_secret{};
  Cntlid cntlid = nvme::kCntlidDynamic;  ///< until Connect has answered
};
/// Host NQN and identifier: the URI's, else the options', else a random identifier. Error: invalid_argument.
[[nodiscard]] Result<Association> make_association(const Uri& uri, nvme::Nqn subsystem, const HostOptions& host,
                                                   Random& random);

/// Authenticates on a queue that is connected, for the first time or again.
[[nodiscard]] Result<void> authenticate_queue(Queue& queue, const Association& association, Instant deadline);

/// Sends Connect (Base 2.0, 6.3) on an open queue, admin or I/O, and authenticates if the target or we want that. Errors say what
/// the target objects to.
[[nodiscard]] Result<nvme::ConnectResponse> connect_queue(Queue& queue, const Association& association,
                                                          Duration keep_alive, Instant deadline);

struct ControllerOptions {
  ControllerKind kind = ControllerKind::io;
  Duration keep_alive{0};
  Duration command_timeout = std::chrono::seconds(30);
  Duration reach_timeout{0};    ///< 0: until the deadline of connect()
  QueueOwner* owner = nullptr;  ///< of the admin queue
};

/// The admin queue and what it told us. Belongs to its reactor's thread. Destroyed: disconnects, 6 s at most.
class Controller {
 public:
  /// Turns `reactor` until the controller is enabled and identified.
  [[nodiscard]] static Result<std::unique_ptr<Controller>> connect(transport::Fabric& fabric,
                                                                   transport::Reactor& reactor,
                                                                   const Association& association,
                                                                   const ControllerOptions& options, Instant deadline);

  [[nodiscard]] Queue& admin() noexcept { return admin_; }
  [[nodiscard]] const Association& association() const noexcept { return association_; }
  [[nodiscard]] const ControllerInfo& info() const noexcept { return info_; }
  [[nodiscard]] const CommandLimits& limits() const noexcept { return limits_; }

  /// Feature 07h: how many I/O queues of `wished` (1 to 65535) the controller grants.
  [[nodiscard]] Result<std::uint32_t> request_queues(std::uint32_t wished, Instant deadline);
  /// namespace_list.h
  [[nodiscard]] Result<std::vector<Namespace>> list_namespaces(Instant deadline);
  /// `length` bytes of a log page from `offset` on, both multiples of 4.
  [[nodiscard]] Result<void> read_log(std::uint8_t lid, Bytes offset, std::span<std::byte> out, Instant deadline);
  /// CC.SHN = normal and wait for CSTS.SHST. Failing is not worth more than a line in the log: we leave anyway.
  void shut_down(Instant deadline);

 private:
  Controller(transport::Fabric& fabric, transport::Reactor& reactor, const Association& association,
             const ControllerOptions& options);
  [[nodiscard]] Result<void> read_capabilities(Instant deadline);
  [[nodiscard]] Result<void> enable(Instant deadline);
  [[nodiscard]] Result<void> identify(Instant deadline);
  [[nodiscard]] Result<std::uint64_t> property(nvme::Property which, std::string_view what, Instant deadline);
  [[nodiscard]] Result<void> set_configuration(nvme::Configuration configuration, std::string_view what,
                                               Instant deadline);
  /// Turns the reactor for `pause`, or until the queue is gone.
  void pause(Duration pause);

  transport::Fabric& fabric_;
  Association association_;
  ControllerOptions options_;
  nvme::Capabilities capabilities_;
  nvme::Version version_;
  nvme::Configuration configuration_;
  ControllerInfo info_;
  CommandLimits limits_;
  Queue admin_;
};

}  // namespace rbt::initiator
