#pragma once
// One connection of the verbs fabric, from the first event to the last.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transport/connection.h"
#include "transport/reactor/timer.h"
#include "transport/verbs/cm.h"
#include "transport/verbs/listener.h"
#include "transport/verbs/queue_pair.h"

namespace rbt::transport::verbs {

class Group;

enum class ConnectionState : std::uint8_t {
  resolving_address,  ///< which device leads to the peer? Woken by the connection manager
  resolving_route,    ///< which path? Woken by the connection manager
  connecting,         ///< our request is out. Woken by the peer's answer
  accepted,           ///< our answer is out. Woken by the peer's ready-to-use, or by its first message
  established,        ///< in use
  broken,             ///< the consumer was told that it is of no use. Woken by close()
  closing,            ///< the queue pair is in the error state; its last receives drain. Woken by last_receive_reached
};
[[nodiscard]] std::string_view name(ConnectionState state) noexcept;

/// Belongs to its Group, on its reactor's thread.
class VerbsConnection final : public Connection, public CmEndpoint {
 public:
  VerbsConnection(Group& group, std::uint64_t number, ConnectionHandler& handler);
  ~VerbsConnection() override;

  /// Active side.
  [[nodiscard]] Result<void> connect(const SocketAddress& to, const ConnectOptions& options);
  /// Passive side. On error the request still is the caller's.
  [[nodiscard]] Result<void> accept(Request& request, const AcceptOptions& options);

  PostResult post(std::span<const WorkRequest> requests) override;
  void close() override;
  [[nodiscard]] const ConnectionLimits& limits() const noexcept override;
  [[nodiscard]] ProtectionDomain& domain() const noexcept override;
  [[nodiscard]] const std::string& peer() const noexcept override { return peer_; }
  [[nodiscard]] std::string local_host() const override;

  void on_cm_event(const CmEvent& event) override;
  void on_device_event(DeviceEvent event, const Device* device);
  /// A message or a completion proves that the peer has accepted, before the connection manager says so.
  void on_first_message();
  /// A completion with an error was delivered; tells the consumer that this was the end.
  void on_completion_error(CompletionStatus status, std::uint32_t vendor_error);
  /// An ibv_post_send failed.
  void on_post_error(int error_number);

  /// True while completions are the consumer's business.
  [[nodiscard]] bool open() const noexcept { return state_ != ConnectionState::closing; }
  [[nodiscard]] bool awaits_first_message() const noexcept { return state_ == ConnectionState::accepted; }
  /// In state `closing`: nothing more will come, the queue pair can go.
  [[nodiscard]] bool quiet() const noexcept { return quiet_; }
  /// Destroys the queue pair: the fence. Gives up the identifier if the peer still has to hear that this is the end.
  void dismantle();
  [[nodiscard]] CmId take_id_to_linger() noexcept;
  /// After a failed accept().
  void reject() noexcept;

  [[nodiscard]] std::uint64_t number() const noexcept { return number_; }
  [[nodiscard]] ConnectionHandler& handler() const noexcept { return handler_; }
  [[nodiscard]] QueuePair* queue_pair() const noexcept { return queue_pair_.get(); }

  bool dirty = false;  ///< in the group's list of connections to flush

 private:
  void advance(ConnectionState to);
  void on_address_resolved();
  void on_route_resolved();
  void on_response(const CmEvent& event);
  void on_rejected(const CmEvent& event);
  void establish(std::span<const std::byte> private_data);
  void fail(Disconnect::Reason reason, Error error, std::span<const std::byte> private_data = {});
  void on_timer();
  [[nodiscard]] Result<void> make_queue_pair(std::uint32_t send_depth);

  Group& group_;
  const std::uint64_t number_;
  ConnectionHandler& handler_;
  ConnectionState state_ = ConnectionState::resolving_address;
  CmId id_;
  std::unique_ptr<QueuePair> queue_pair_;
  std::string peer_;
  std::vector<std::byte> private_data_;  // ours, until it is sent
  ConnectOptions connect_options_;
  Timer timer_;
  Duration timeout_{};
  ConnectionLimits no_limits_;  // before the device is known
  bool last_receive_reached_ = false;
  bool asked_to_leave_ = false;  // a disconnect request is out
  bool peer_left_ = false;       // the peer sent its own, or answered ours
  bool quiet_ = false;
};

}  // namespace rbt::transport::verbs
