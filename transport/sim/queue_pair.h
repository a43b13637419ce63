#pragma once
// One end of a reliable connection. Its life (queue_pair.cc) and its send queue (send_queue.cc): requests travel to the
// peer and are carried out there packet by packet, answers travel back, each way in order, in virtual time.

#include <array>
#include <string>
#include <vector>

#include "transport/connection.h"
#include "transport/sim/address.h"
#include "transport/sim/agenda.h"
#include "transport/sim/listener.h"
#include "transport/sim/machine.h"
#include "transport/sim/receive_queue.h"

namespace rbt::transport::sim {

class World;
class Group;

class QueuePair final : public Connection, public Actor {
 public:
  static constexpr std::size_t kSegmentsMax = 16;
  static constexpr std::size_t kInlineMax = 256;

  QueuePair(World& world, Group& group, Device& device, ConnectionHandler& handler, std::uint32_t send_depth);
  ~QueuePair() override;

  // Connection.
  PostResult post(std::span<const WorkRequest> requests) override;
  void close() override;
  [[nodiscard]] const ConnectionLimits& limits() const noexcept override;
  [[nodiscard]] ProtectionDomain& domain() const noexcept override;
  [[nodiscard]] const std::string& peer() const noexcept override { return peer_; }

  // Actor.
  [[nodiscard]] bool expects(const Event& event) const noexcept override;
  void on_event(const Event& event) override;

  // Connection establishment.
  void begin_connect(const RemoteAddress& remote, const ConnectOptions& options);
  void begin_accept(Request& request, const AcceptOptions& options);
  void send_reject(const Machine& from, std::span<const std::byte> private_data);
  [[nodiscard]] std::span<const std::byte> request_data() const noexcept { return {cm_data_.data(), cm_data_size_}; }
  [[nodiscard]] std::uint32_t incoming_reads() const noexcept { return incoming_reads_; }

  // From the poll group, on its reactor.
  void tell_established();
  void tell_disconnected();
  [[nodiscard]] bool told_established() const noexcept { return told_established_; }
  void reclaim(std::uint32_t slots) noexcept;
  /// The doorbell: what was posted so far may go.
  void ring();
  [[nodiscard]] ConnectionHandler& handler() noexcept { return handler_; }
  [[nodiscard]] ActorId id() const noexcept { return id_; }
  [[nodiscard]] std::uint32_t number() const noexcept { return static_cast<std::uint32_t>(id_); }
  [[nodiscard]] Machine& machine() const noexcept;
  [[nodiscard]] Device& device() const noexcept { return device_; }

  /// From the peer's receive queue: there is a buffer again.
  void receiver_ready();

  // Faults.
  /// Both directions: the peer's end too.
  void stall(Instant until) noexcept;
  void heal() noexcept { stalled_until_ = {}; }
  void lose_device(Disconnect::Reason reason);
  void die(bool farewell);

 private:
  enum class State : std::uint8_t {
    connecting,   ///< request sent; wakes: reply, reject, timeout
    accepted,     ///< reply sent, receives; wakes: ready-to-use, first message, timeout
    established,  ///< sends and receives; wakes: everything
    failed,       ///< the error state; wakes: close()
    closing,      ///< wakes: the closed event
    closed,       ///< nothing touches memory any more; goes with the next poll
    dead,         ///< its process was killed; wakes: nothing
  };
  enum class Kind : std::uint32_t {
    knock,
    reply,
    reject,
    ready_to_use,
    timeout,
    goodbye,
    closed,
    request_packet,
    response_packet,
  };
  enum class Tell : std::uint8_t { always, perhaps };

  struct Wqe {
    Opcode opcode = Opcode::send;
    bool signaled = true;
    bool inlined = false;
    bool malformed = false;  ///< more segments, bytes or inline data than allowed
    CompletionStatus outcome = CompletionStatus::success;
    std::uint32_t rkey = 0;
    std::uint32_t segment_count = 0;
    std::uint64_t length = 0;
    std::uint64_t remote_address = 0;
    std::uint64_t wr_id = 0;
    std::uint64_t digest = 0;
    Instant ready_at{};     ///< rung, or let go by a completed READ
    Instant executed_at{};  ///< carried out at the peer
    std::array<Segment, kSegmentsMax> segments;
    std::array<std::byte, kInlineMax> data;
  };
  enum class Executed : std::uint8_t { partly, whole, not_ready, refused };

  // Life (queue_pair.cc).
  void on_knock();
  void on_reply();
  void on_reject();
  void on_ready_to_use();
  void on_timeout();
  void on_goodbye();
  void schedule(Kind kind, Duration in, std::uint32_t epoch = 0);
  void become_established();
  void disconnect(Disconnect::Reason reason, ErrorKind kind, std::string message, Tell tell = Tell::always);
  void send_goodbye();
  [[nodiscard]] std::string title() const;
  [[nodiscard]] QueuePair* find(ActorId id) const noexcept;
  [[nodiscard]] bool receives() const noexcept { return state_ == State::accepted || state_ == State::established; }

  // Send queue (send_queue.cc).
  [[nodiscard]] Wqe& wqe(std::uint64_t index) noexcept { return wqes_[index % wqes_.size()]; }
  void take(const WorkRequest& request);
  void arm_request();
  void arm_response();
  void on_request_packet();
  void on_response_packet();
  [[nodiscard]] QueuePair* responder() const noexcept;
  [[nodiscard]] bool packet_lost() noexcept;
  [[nodiscard]] bool delayed(Kind kind, bool& armed);
  [[nodiscard]] Duration serialization(std::uint64_t bytes) const noexcept;
  [[nodiscard]] std::uint32_t chunk(const Wqe& w, std::uint64_t offset) const noexcept;
  void not_ready(QueuePair& peer);
  void retry(Kind kind, std::uint32_t& tries, bool& armed);
  void executed(CompletionStatus outcome);
  void complete();
  void fail(CompletionStatus status);
  void flush(std::uint64_t from);
  void push(const Wqe& w, CompletionStatus status, std::uint64_t index);

  // Carrying out the peer's view of a packet (execute.cc).
  [[nodiscard]] Executed execute_packet(QueuePair& peer, Wqe& w);
  [[nodiscard]] Executed execute_send(QueuePair& peer, Wqe& w, std::uint32_t bytes);
  void deliver(QueuePair& peer, Wqe& w);
  [[nodiscard]] bool local_ok(const Wqe& w) const noexcept;
  [[nodiscard]] CompletionStatus read_packet(QueuePair& peer, Wqe& w, std::uint32_t bytes);
  void gather(const Wqe& w, std::uint64_t offset, std::byte* to, std::uint32_t bytes) const noexcept;
  void scatter(const Wqe& w, std::uint64_t offset, const std::byte* from, std::uint32_t bytes) const noexcept;
  [[nodiscard]] std::uint64_t digest(const Wqe& w) const noexcept;
  void verify(const Wqe& w);
  void drop_partial_receive();
  /// This end could not carry out what the peer asked for.
  void fail_as_responder(const char* why);
  void push_receive_error(CompletionStatus status);

  World& world_;
  Group& group_;
  Device& device_;
  ConnectionHandler& handler_;
  ConnectionLimits limits_;
  ActorId id_;
  State state_ = State::connecting;
  std::string peer_;

  // Establishment and end.
  RemoteAddress remote_;
  Machine* peer_machine_ = nullptr;
  ActorId peer_id_ = kNobody;
  std::uint32_t incoming_reads_ = 0;
  Duration timeout_{};
  std::array<std::byte, kReplyDataSize> cm_data_{};  // our request; later the peer's reply or reject
  std::size_t cm_data_size_ = 0;
  bool told_established_ = false;
  bool device_known_ = false;        // to the consumer: over verbs, the route decides which device it is
  bool disconnect_pending_ = false;  // or told already
  bool severed_ = false;
  int goodbyes_ = 0;
  Disconnect::Reason reason_ = Disconnect::Reason::lost;
  Error error_{ErrorKind::disconnected, {}};

  // Send queue: reclaimed <= head <= next <= rung <= tail.
  std::vector<Wqe> wqes_;
  std::uint64_t reclaimed_ = 0;  // completions up to here have been delivered: room
  std::uint64_t covered_ = 0;    // completions up to here have been pushed
  std::uint64_t head_ = 0;       // the oldest without its answer
  std::uint64_t next_ = 0;       // the next to be carried out by the peer
  std::uint64_t rung_ = 0;
  std::uint64_t tail_ = 0;
  std::uint64_t offset_ = 0;           // bytes of next_ carried out
  std::uint64_t response_offset_ = 0;  // bytes of a READ at head_ that have come back
  std::uint32_t reads_outstanding_ = 0;
  std::uint32_t signaled_pending_ = 0;  // signaled, completion not delivered yet
  std::uint32_t epoch_ = 0;             // of packet events
  bool request_armed_ = false;
  bool response_armed_ = false;
  bool refused_ = false;  // next_ - 1 failed: nothing more goes out
  bool doorbell_due_ = false;
  std::uint32_t request_tries_ = 0;
  std::uint32_t response_tries_ = 0;
  std::uint32_t rnr_tries_ = 0;
  bool waits_for_buffer_ = false;
  Instant request_clock_{};   // when the last request packet arrived at the peer
  Instant response_clock_{};  // when the last answer arrived here
  Instant stalled_until_{};

  // Receiving side.
  std::uint32_t receiving_ = ReceiveQueue::kNone;  // buffer of the SEND that is arriving
};

}  // namespace rbt::transport::sim
