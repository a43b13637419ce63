#pragma once
// One connection of the shm fabric.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "transport/connection.h"
#include "transport/reactor/timer.h"
#include "transport/shm/copy_section.h"
#include "transport/shm/link.h"
#include "transport/shm/remote_memory.h"
#include "transport/shm/ring.h"
#include "transport/shm/send_queue.h"

namespace rbt::transport::shm {

class Group;

/// Where a connection stands. The word in parentheses is what moves it on.
enum class State : std::uint8_t {
  connecting,   ///< the listener's backlog is full; tries again (timer)
  greeted,      ///< connector: `hello` is sent, `accept` or `refuse` will come (socket, timer)
  accepted,     ///< acceptor: `accept` is sent, `ready` will come (socket, timer)
  established,  ///< requests are carried out
  ending,       ///< the peer is gone; what it sent before is still delivered (poll)
  failed,       ///< nothing works any more; the consumer is told, and will close (consumer)
  closing,      ///< the consumer has closed; the peer may be in the middle of a copy (timer, poll)
  closed,       ///< nobody touches our memory: on_closed() is next (poll)
};
[[nodiscard]] std::string_view name(State state) noexcept;

/// What it takes to begin one, on either side.
struct QueuePairOptions {
  Descriptor socket;
  std::shared_ptr<RingMemory> ring;
  unsigned side = kConnector;
  std::uint32_t send_depth = 128;
  std::uint32_t read_depth = 0;
  std::uint32_t peer_receive_size = 0;  ///< acceptor only; the connector learns it
  RemoteLimits remote;
  std::string peer;
  Duration timeout{};
};

/// One thread: its group's reactor.
class QueuePair final : public transport::Connection {
 public:
  QueuePair(Group& group, ConnectionHandler& handler, QueuePairOptions options);
  ~QueuePair() override;

  PostResult post(std::span<const WorkRequest> requests) override;
  void close() override;
  [[nodiscard]] const ConnectionLimits& limits() const noexcept override { return limits_; }
  [[nodiscard]] ProtectionDomain& domain() const noexcept override;
  [[nodiscard]] const std::string& peer() const noexcept override { return peer_; }

  // For the group, in the order of its poll().
  /// Connector: keeps the hello for as long as the listener is busy; says it as soon as it can.
  [[nodiscard]] Result<void> begin_connect(const std::string& path, const HelloMessage& hello, Descriptor ring_fd);
  /// Acceptor.
  [[nodiscard]] Result<void> begin_accept(const AcceptMessage& message);
  void report_established();
  /// Takes messages out of the ring, and looks whether what held requests back is over.
  std::size_t receive();
  void report_disconnected();
  /// Carries out what was posted, within the budget of one turn. Returns how many requests moved.
  std::size_t work();
  /// work() would do something now.
  [[nodiscard]] bool runnable() const noexcept;
  void arm();
  /// After arm() and a full fence: something came meanwhile.
  [[nodiscard]] bool woken();
  void disarm() noexcept;
  /// The last call before the destructor.
  [[nodiscard]] ConnectionHandler& handler() const noexcept { return handler_; }
  [[nodiscard]] State state() const noexcept { return state_; }
  /// `count` requests have been completed, or covered, for the consumer.
  void retire(std::uint32_t count) noexcept { outstanding_ -= count; }

  bool queued_for_work = false;  ///< the group's: it is on its list

 private:
  enum class Step : std::uint8_t { done, later, dead };
  void advance(State next) noexcept;
  [[nodiscard]] Result<void> watch(std::uint32_t events);
  void unwatch();
  // The socket.
  void on_socket(std::uint32_t events);
  void read_socket(std::size_t packets_max);
  void on_packet(Packet& packet);
  void on_handshake_packet(const Packet& packet, MessageType type);
  void on_peer_gone();
  void on_timer();
  bool try_connect();
  void establish();
  // The data path.
  Step carry_out(QueuedRequest& request, std::size_t& budget);
  Step send_capsule(const QueuedRequest& request);
  Step move_data(QueuedRequest& request, std::size_t& budget);
  Step take_in(const QueuedRequest& request, const Segment& piece, const std::byte* there, std::size_t& budget);
  Step enter_copy_section();
  RemoteMemory::Found find_remote(const QueuedRequest& request, RemoteMemory::Use use);
  [[nodiscard]] bool room_again() noexcept;
  bool segments_ours(const QueuedRequest& request);
  Step fail_request(CompletionStatus status, std::string_view why);
  void finish(const QueuedRequest& request, CompletionStatus status);
  void ring_doorbell();
  // The end.
  void flush_requests();
  void fail(Disconnect::Reason reason, Error error, State next);
  void violate(std::string_view what);
  void say_goodbye(bool in_order, std::string_view text) noexcept;
  void finish_close();

  Group& group_;
  ConnectionHandler& handler_;
  const unsigned side_;
  State state_;
  Descriptor socket_;
  std::uint32_t watched_events_ = 0;
  Link link_;
  const RingMemory& ring_;
  Producer producer_;
  Consumer consumer_;
  CopySection copies_;
  SendQueue requests_;
  RemoteMemory remote_;
  ConnectionLimits limits_;
  std::string peer_;
  Timer timer_;
  Instant deadline_;

  std::uint32_t outstanding_ = 0;  // posted and not retired
  std::uint32_t uncovered_ = 0;    // carried out unsignaled since the last completion
  std::uint32_t peer_receive_size_;
  std::uint32_t revocations_read_ = 0;
  std::uint32_t sleep_count_ = 0;
  std::uint32_t rung_for_ = 0;  // the peer's sleep word that we have answered
  bool attached_ = false;       // the domain announces regions to link_
  bool armed_ = false;
  bool published_ = false;  // since the last look at the peer's sleep word
  bool consumed_ = false;
  bool wants_space_ = false;  // the first request waits for the peer to take messages out
  bool behind_ = false;       // the first request waits for `revoke` messages
  bool stalled_ = false;      // a message waits for a receive buffer
  bool established_reported_ = false;
  bool said_goodbye_ = false;

  std::string path_;    // while connecting
  Descriptor ring_fd_;  // until the hello is sent
  std::unique_ptr<HelloMessage> hello_;
  std::array<std::byte, kTextMax> peer_data_{};  // of `accept` or `refuse`
  std::size_t peer_data_size_ = 0;
  std::unique_ptr<Disconnect> disconnect_;  // to be reported
};

}  // namespace rbt::transport::shm
