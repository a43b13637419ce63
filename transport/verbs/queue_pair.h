#pragma once
// One queue pair: made, brought to the states that its connection's negotiation asks for, broken, destroyed.

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cstdint>
#include <memory>

#include "common/log.h"
#include "common/result.h"
#include "transport/connection.h"
#include "transport/verbs/completion_queue.h"
#include "transport/verbs/device.h"
#include "transport/verbs/receive_queue.h"
#include "transport/verbs/send_queue.h"

namespace rbt::transport::verbs {

/// What the queue pairs of one poll group share on one device.
struct SharedQueues {
  Device& device;
  std::uint32_t position = 0;  // in the group's list
  std::unique_ptr<ReceiveQueue> receives;
  std::unique_ptr<CompletionQueues> completions;
  int event_descriptor = -1;  // ours: a duplicate of the device's, so that each group can watch it
  std::uint32_t queue_pairs = 0;
  std::uint64_t audit_turn = ~std::uint64_t{0};  // when this turn is completed, look for kept receive buffers
};

/// One thread. librdmacm does not know of it (rdma_cm_id::qp stays null): it would set the peer's retry count, and 7
/// means for ever on rxe, and a receiver-not-ready wait of 655 ms.
class QueuePair {
 public:
  /// In state INIT. `queues` must outlive it.
  [[nodiscard]] static Result<std::unique_ptr<QueuePair>> create(rdma_cm_id* id, SharedQueues& queues,
                                                                 const QueuePairOwner& owner, std::uint32_t send_depth,
                                                                 std::uint32_t inline_wish, Logger& logger);
  /// Nothing of it touches memory any more when this has returned: the fence.
  ~QueuePair();
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  /// READs at a time: served for the peer, and outstanding with it. kNegotiated: as the connection manager says.
  static constexpr std::uint32_t kNegotiated = ~std::uint32_t{0};
  /// To RTR and RTS. Requests still wait for open_sends().
  [[nodiscard]] Result<void> ready(rdma_cm_id* id, std::uint32_t reads_in, std::uint32_t reads_out);
  /// The peer is ready to receive.
  void open_sends() noexcept { sends_.connect(handle_); }
  /// To the error state: everything posted is flushed. Any number of times.
  void fail() noexcept;

  [[nodiscard]] SendQueue& sends() noexcept { return sends_; }
  [[nodiscard]] SharedQueues& queues() const noexcept { return queues_; }
  [[nodiscard]] std::uint32_t number() const noexcept { return handle_->qp_num; }
  [[nodiscard]] const ConnectionLimits& limits() const noexcept { return limits_; }
  /// The turn (ReceiveQueue) of the last receive buffer that it cannot still hold.
  [[nodiscard]] std::uint64_t last_turn() const noexcept { return last_turn_; }
  void received(std::uint64_t turn) noexcept { last_turn_ = turn; }
  /// True once it could have taken a receive buffer.
  [[nodiscard]] bool was_ready() const noexcept { return was_ready_; }

 private:
  QueuePair(SharedQueues& queues, const QueuePairOwner& owner, const ConnectionLimits& limits, Logger& logger);
  [[nodiscard]] Result<void> make(std::uint32_t inline_wish);
  [[nodiscard]] Result<void> attributes_for(rdma_cm_id* id, ibv_qp_attr& attributes, int& mask, ibv_qp_state state);

  SharedQueues& queues_;
  QueuePairOwner owner_;
  ConnectionLimits limits_;
  Logger& logger_;
  SendQueue sends_;
  ibv_cq* completions_ = nullptr;
  ibv_qp* handle_ = nullptr;
  std::uint64_t last_turn_;
  bool was_ready_ = false;
};

}  // namespace rbt::transport::verbs
