#pragma once
// One NVMe queue over one reliable connection, admin or I/O: command slots, capsules out, responses in, deadlines, and
// one way to end. What the commands mean is for their senders (command.cc, controller.cc).

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/log.h"
#include "common/nvme/capsule.h"
#include "common/nvme/connect_private_data.h"
#include "common/uri.h"
#include "initiator/queue_pair.h"
#include "transport/fabric.h"
#include "transport/memory/buffer_pool.h"

namespace rbt::initiator {

/// "Keep Alive": what `entry`, sent on queue `qid`, is called in messages.
[[nodiscard]] std::string command_name(Qid qid, const nvme::SubmissionQueueEntry& entry);

/// The one who waits for the answer to a command.
class ResponseHandler {
 public:
  virtual ~ResponseHandler() = default;
  /// Exactly once per sent command, never from within send(). `outcome` is success or failed (then `entry` is the answer),
  /// timed_out, disconnected or aborted (then `entry` says nothing, and the fabric has let go of all memory). The slot is
  /// free again.
  virtual void on_response(std::uint32_t slot, Outcome outcome, const nvme::CompletionQueueEntry& entry) = 0;
};

/// What a queue tells its owner besides.
class QueueOwner {
 public:
  virtual ~QueueOwner() = default;
  /// A live queue has been given up, and not by close(); on_response() of what is outstanding follows. From within any call.
  virtual void on_queue_lost() {}
  /// After the last on_response(): the queue is closed. Also if it never came to live.
  virtual void on_queue_closed(Outcome outcome) = 0;
};

/// From `idle` only forward. `connecting` is woken by the fabric or by open()'s deadline, `live` by completions and the
/// deadline timer, `closing` by on_closed().
enum class QueueState : std::uint8_t {
  idle,        ///< open() has not been called
  connecting,  ///< the fabric is at it
  live,        ///< commands may be sent
  closing,     ///< given up; waiting for the fabric to let our memory go; commands outstanding have not been told yet
  closed,      ///< everyone has been told
};
[[nodiscard]] std::string_view name(QueueState state) noexcept;

struct QueueOptions {
  Uri uri;
  Qid qid{};
  Cntlid cntlid{};           ///< of the association; 0 on the admin queue, as the Linux host has it
  std::uint32_t depth = 31;  ///< commands outstanding
  Bytes pool{2 * kMiB};      ///< registered memory for data
  QueueOwner* owner = nullptr;
};

/// Belongs to its reactor's thread.
class Queue final : transport::ConnectionHandler, transport::CompletionHandler {
 public:
  static constexpr std::uint32_t kDepthMax = 1023;  // entries 1024: CIDs keep 6 bits for their generation

  Queue(transport::Fabric& fabric, transport::Reactor& reactor, const QueueOptions& options);
  /// Closes and waits: 6 s at most.
  ~Queue() override;
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  /// Connects the reliable connection, with the private data of RDMA Transport 1.0, 3.3. Turns the reactor meanwhile.
  [[nodiscard]] Result<void> open(Instant deadline);
  /// The controller has accepted Connect: from now on SQHD is believed, and therefore checked.
  void set_created() noexcept { created_ = true; }

  /// A slot to send with; nothing if all are taken. Goes back by send() or give_back().
  [[nodiscard]] std::optional<std::uint32_t> take_slot() noexcept;
  void give_back(std::uint32_t slot) noexcept { free_slots_.push_back(slot); }
  /// Sends `entry` (its cid is set here) with `in_capsule` behind it if that has a length. False: the queue is not live;
  /// the slot is free again. `in_capsule` must stay as it is until on_closed(), not only until the response: see capsule().
  [[nodiscard]] bool send(std::uint32_t slot, nvme::SubmissionQueueEntry entry, const transport::Segment& in_capsule,
                          ResponseHandler& handler, Instant deadline);

  /// Gives the connection up, for a reason that is ours to find: a violation, a deadline, the end.
  void fail(Outcome outcome, Error error);
  /// fail() with Outcome::aborted and no log line, then turns the reactor until it is closed: 6 s at most.
  void close();

  [[nodiscard]] QueueState state() const noexcept { return state_; }
  [[nodiscard]] bool live() const noexcept { return state_ == QueueState::live; }
  /// Why it ended; null while connecting or live.
  [[nodiscard]] const Error* failure() const noexcept { return failure_ ? &*failure_ : nullptr; }
  [[nodiscard]] std::uint32_t depth() const noexcept { return depth_; }
  [[nodiscard]] std::uint32_t outstanding() const noexcept { return outstanding_; }
  [[nodiscard]] Qid qid() const noexcept { return options_.qid; }
  [[nodiscard]] transport::Reactor& reactor() noexcept { return reactor_; }
  [[nodiscard]] transport::BufferPool& pool() noexcept { return *pool_; }
  /// Of a queue that open() has connected.
  [[nodiscard]] transport::ProtectionDomain& domain() const noexcept { return *domain_; }
  [[nodiscard]] const transport::ConnectionLimits& limits() const noexcept { return limits_; }
  [[nodiscard]] const transport::PollGroupCounters& transport_counters() const noexcept;
  /// "I/O queue 3 of nvme+rdma://…": for messages.
  [[nodiscard]] const std::string& label() const noexcept { return label_; }

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  struct Slot {
    ResponseHandler* handler = nullptr;  // null: free
    Instant sent;
    Instant deadline = Instant::max();
    transport::Segment in_capsule;
    std::uint32_t older = kNone;  // outstanding slots are a list in order of sending
    std::uint32_t newer = kNone;
    std::uint8_t generation = 0;
    bool expired = false;
    bool posted = false;
  };

  void on_established(std::span<const std::byte> private_data) override;
  void on_disconnected(const transport::Disconnect& disconnect) override;
  void on_closed() override;
  void on_completions(std::span<const transport::Completion> batch) override;

  [[nodiscard]] Result<void> prepare_memory();
  [[nodiscard]] Result<void> begin_connecting(Instant deadline);
  [[nodiscard]] Result<void> register_memory();
  void advance(QueueState to) noexcept;
  void handle_response(const transport::ReceivedMessage& message);
  void violate(std::string what);
  [[nodiscard]] transport::PostResult post(std::uint32_t slot);
  void post_waiting();
  void check_deadlines();
  void arm_deadline(Instant deadline);
  void link_newest(std::uint32_t slot) noexcept;
  void unlink(std::uint32_t slot) noexcept;
  void finish(std::uint32_t slot, Outcome outcome, const nvme::CompletionQueueEntry& entry);
  [[nodiscard]] std::byte* capsule(std::uint32_t slot) const noexcept;
  [[nodiscard]] Error not_answered(std::uint32_t oldest_expired, std::uint32_t expired) const;

  transport::Fabric& fabric_;
  transport::Reactor& reactor_;
  QueueOptions options_;
  std::string label_;
  QueueState state_ = QueueState::idle;
  bool created_ = false;
  std::uint32_t entries_ = 0;  // queue entries that were asked for: one more than commands outstanding
  std::uint32_t depth_ = 0;
  std::uint32_t outstanding_ = 0;
  std::uint32_t signal_interval_ = 1;
  std::uint32_t unsignaled_ = 0;
  std::uint32_t waiting_to_post_ = 0;
  std::uint32_t oldest_ = kNone;
  std::uint32_t newest_ = kNone;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  transport::SharedMemory arena_;
  std::optional<transport::RegisteredMemory> registered_arena_;
  std::uint32_t arena_lkey_ = 0;
  std::unique_ptr<transport::BufferPool> pool_;
  std::unique_ptr<transport::PollGroup> group_;
  transport::Connection* connection_ = nullptr;
  transport::ProtectionDomain* domain_ = nullptr;
  transport::ConnectionLimits limits_;
  transport::Timer deadline_timer_;
  Instant timer_at_ = Instant::max();
  bool last_look_ = false;  // commands have expired; the timer runs once more before it counts
  Outcome outcome_ = Outcome::pending;
  std::optional<Error> failure_;
};

}  // namespace rbt::initiator
