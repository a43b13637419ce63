#pragma once
// One reliable connection (a queue pair), how it comes and how it ends.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/result.h"
#include "common/units.h"
#include "transport/work.h"

namespace rbt::transport {

struct ConnectionLimits {
  std::uint32_t send_depth = 0;    ///< work requests that may be posted and not yet completed (or covered)
  std::uint32_t read_depth = 0;    ///< RDMA READs that may be outstanding; more wait in order, and all behind them
  std::uint32_t segments_max = 0;  ///< per work request
  std::uint32_t inline_max = 0;    ///< bytes, for copy_data
  std::uint32_t path_mtu = 0;      ///< bytes; 0: a message is not cut into packets
  std::uint64_t message_max = 0;   ///< bytes in one RDMA READ or WRITE
};

/// Why a connection ended, as far as it is known.
struct Disconnect {
  enum class Reason : std::uint8_t {
    refused,          ///< the peer rejected our connect; `private_data` is what it said
    unreachable,      ///< no route, nobody listens, no answer
    peer_closed,      ///< the peer disconnected in order
    lost,             ///< the peer died or stopped answering
    device_removed,   ///< the RDMA device went away
    address_changed,  ///< the local address or port the connection was bound to went away
    local,            ///< our own side failed; see `error`
  };
  Reason reason = Reason::lost;
  std::span<const std::byte> private_data{};  ///< valid during the callback
  Error error{ErrorKind::disconnected, {}};
};

class Connection;

/// The consumer's side of one connection. Must outlive on_closed().
class ConnectionHandler {
 public:
  virtual ~ConnectionHandler() = default;
  /// Once, before the first received message. `private_data` of the peer's REP (at least what it sent; may be padded
  /// with zeroes), empty on the accepting side.
  virtual void on_established(std::span<const std::byte> private_data) = 0;
  /// At most once, not after close(): the connection is of no use any more. Call close(), now or later.
  virtual void on_disconnected(const Disconnect& disconnect) = 0;
  /// The last call, always from poll(), within 5 s of close(): the fabric touches none of this connection's memory any
  /// more and the Connection is gone.
  virtual void on_closed() = 0;
};

/// One reliable connection (a queue pair). Belongs to its PollGroup; goes away with on_closed().
class Connection {
 public:
  virtual ~Connection() = default;
  /// All or nothing. Queues; PollGroup::flush() hands the batch over with one doorbell.
  virtual PostResult post(std::span<const WorkRequest> requests) = 0;
  /// Starts the end: nothing posted completes any more, but for what on_completions() has in hand at that moment; then
  /// on_closed(). Any state, any number of times.
  virtual void close() = 0;
  /// Both: of a connection made by connect(), from on_established() on; which device leads to the peer is not known
  /// before.
  [[nodiscard]] virtual const ConnectionLimits& limits() const noexcept = 0;
  [[nodiscard]] virtual ProtectionDomain& domain() const noexcept = 0;
  /// For messages: "10.0.0.2:51312", "pid 4711, uid 1000".
  [[nodiscard]] virtual const std::string& peer() const noexcept = 0;
  /// The address of our own end at which the peer reached us, without port: "10.0.0.1", "fe80::1". Empty: the fabric has
  /// no such thing. For the discovery log of a target that listens on every address.
  [[nodiscard]] virtual std::string local_host() const { return {}; }
};

struct ConnectOptions {
  std::span<const std::byte> private_data{};  ///< at most 56 bytes
  std::uint32_t send_depth = 128;
  std::uint32_t incoming_reads = 16;  ///< RDMA READs of the peer to be served at a time (responder resources)
  Duration timeout = std::chrono::seconds(5);
};

struct AcceptOptions {
  std::span<const std::byte> private_data{};  ///< at most 196 bytes
  std::uint32_t send_depth = 128;
  std::uint32_t outgoing_reads = 16;  ///< wished for; limits().read_depth says what both sides and the device allow
  Duration timeout = std::chrono::seconds(5);
};

/// A peer that knocks. Movable between threads until accepted. Destroyed unanswered, it is rejected without data.
class ConnectionRequest {
 public:
  virtual ~ConnectionRequest() = default;
  /// As received: may be longer than what the peer sent, padded with zeroes.
  [[nodiscard]] virtual std::span<const std::byte> private_data() const noexcept = 0;
  [[nodiscard]] virtual const std::string& peer() const noexcept = 0;
  /// What all requests of one host have in common, as far as the fabric knows: "10.0.0.2", "uid 1000". For limits.
  [[nodiscard]] virtual std::string peer_host() const = 0;
  /// RDMA READs that the peer will serve at a time (its responder resources); 0: it serves none.
  [[nodiscard]] virtual std::uint32_t peer_incoming_reads() const noexcept = 0;
  virtual void reject(std::span<const std::byte> private_data) = 0;
};

/// On the reactor of the poll group that listens.
class ListenerHandler {
 public:
  virtual ~ListenerHandler() = default;
  virtual void on_request(std::unique_ptr<ConnectionRequest> request) = 0;
  /// The listener hears nobody any more (device or address removed).
  virtual void on_listener_failed(const Error& error) = 0;
};

struct ListenOptions {
  int backlog = 128;                             ///< connection requests not yet answered; more are refused
  Duration half_open = std::chrono::seconds(5);  ///< a peer that knocks and then stays silent is dropped after this
};

/// Destroyed: hears nobody any more. Requests already handed out stay valid.
class Listener {
 public:
  virtual ~Listener() = default;
  /// Where it listens, with the port that was chosen if the URI said 0.
  [[nodiscard]] virtual std::string address() const = 0;
};

}  // namespace rbt::transport
