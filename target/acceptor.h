#pragma once
// Connection requests of hosts: judged, and sent to the reactor where the connection will live.

#include <memory>
#include <string>

#include "target/port.h"
#include "target/reactor_context.h"
#include "transport/fabric.h"
#include "transport/reactor/timer.h"

namespace rbt::target {

/// One listener. Belongs to the first reactor. One that fails (its address was removed, or its device) is opened again as soon
/// as that is possible: it is tried every second.
class Acceptor final : public transport::ListenerHandler {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Acceptor>> listen(Core& core, transport::Fabric& fabric,
                                                                const Uri& address);
  [[nodiscard]] std::string address() const { return listener_->address(); }
  /// With the port that was chosen; whatever becomes of the listener. Any thread.
  [[nodiscard]] bool listens_at(const Uri& address) const;
  [[nodiscard]] Port& port() noexcept { return port_; }
  /// Hears nobody any more.
  void close() noexcept;

  void on_request(std::unique_ptr<transport::ConnectionRequest> request) override;
  void on_listener_failed(const Error& error) override;

 private:
  Acceptor(Core& core, transport::Fabric& fabric, const Uri& address);
  [[nodiscard]] Result<void> open();
  void open_again();
  void refuse(transport::ConnectionRequest& request, nvme::CmReject reason, const std::string& why);
  [[nodiscard]] ReactorContext& place(Qid qid) noexcept;

  Core& core_;
  transport::Fabric& fabric_;
  Uri address_;
  Uri where_;  // as address_ was when it first listened
  Port port_;
  std::unique_ptr<transport::Listener> listener_;
  transport::Timer again_;
  std::size_t next_ = 0;  // where the search for the least loaded reactor begins
};

}  // namespace rbt::target
