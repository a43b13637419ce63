#include "transport/verbs/queue_pair.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "transport/verbs/errors.h"
#include "transport/verbs/work_id.h"

namespace rbt::transport::verbs {

namespace {

constexpr std::uint32_t kSegmentsMax = 16;  // buffers are contiguous up to 2 MiB; more would only lengthen every entry
constexpr std::uint8_t kRetriesMax = 6;     // rxe takes 7 for "for ever"
constexpr std::uint8_t kReceiverNotReadyRetries = 7;  // for ever, as the specification says: a full target is not dead
// 5.12 ms (IBA Vol. 1, table 45). The CM's choice, 0, is 655 ms; much less than this, and a peer over rxe, which sends its
// whole window again at each try, keeps its machine busy with nothing else.
constexpr std::uint8_t kReceiverNotReadyTimer = 18;
constexpr std::uint8_t kTimeoutDefault = 17;  // 4.096 us * 2^17 = 0.5 s per try
constexpr std::uint8_t kTimeoutMax = 19;      // with six retries: 15 s until a dead peer is noticed

std::uint32_t mtu_bytes(ibv_mtu mtu) noexcept {
  return 128U << static_cast<unsigned>(mtu);
}

}  // namespace

Result<std::unique_ptr<QueuePair>> QueuePair::create(rdma_cm_id* id, SharedQueues& queues, const QueuePairOwner& owner,
                                                     std::uint32_t send_depth, std::uint32_t inline_wish,
                                                     Logger& logger) {
  const DeviceLimits& device = queues.device.limits();
  ConnectionLimits limits;
  limits.send_depth = std::clamp<std::uint32_t>(send_depth, 1, kRingMax / 2);
  while (limits.send_depth > 1 && limits.send_depth + SendQueue::slack(limits.send_depth) > device.work_requests_max)
    limits.send_depth = std::min(limits.send_depth - 1, device.work_requests_max);
  limits.segments_max = std::min(kSegmentsMax, device.segments_max);
  limits.inline_max = inline_wish;
  ibv_port_attr port{};
  if (const int error = ibv_query_port(id->verbs, id->port_num, &port); error != 0)
    return failure(call_failed(error, "ibv_query_port", queues.device.name()));
  limits.path_mtu = mtu_bytes(port.active_mtu);
  limits.message_max = port.max_msg_sz;

  std::unique_ptr<QueuePair> pair(new QueuePair(queues, owner, limits, logger));
  if (auto made = pair->make(inline_wish); !made) return failure(std::move(made.error()));
  ibv_qp_attr attributes{};
  int mask = 0;
  attributes.qp_state = IBV_QPS_INIT;
  if (rdma_init_qp_attr(id, &attributes, &mask) != 0)
    return failure(call_failed(errno, "rdma_init_qp_attr for INIT", queues.device.name()));
  attributes.qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  if (const int error = ibv_modify_qp(pair->handle_, &attributes, mask | IBV_QP_ACCESS_FLAGS); error != 0)
    return failure(call_failed(error, "ibv_modify_qp to INIT", queues.device.name()));
  return pair;
}

QueuePair::QueuePair(SharedQueues& queues, const QueuePairOwner& owner, const ConnectionLimits& limits, Logger& logger)
    : queues_(queues),
      owner_(owner),
      limits_(limits),
      logger_(logger),
      sends_(owner.connection,
             {.depth = limits.send_depth, .segments_max = limits.segments_max, .inline_max = limits.inline_max}) {
  ++queues_.queue_pairs;
}

Result<void> QueuePair::make(std::uint32_t inline_wish) {
  auto reserved = queues_.completions->reserve(sends_.capacity());
  if (!reserved) return failure(std::move(reserved.error()));
  completions_ = *reserved;
  ibv_qp_init_attr attributes{};
  for (std::uint32_t inline_bytes : {inline_wish, 0U}) {
    attributes = {};
    attributes.qp_context = &owner_;
    attributes.send_cq = attributes.recv_cq = completions_;
    attributes.srq = queues_.receives->handle();
    attributes.qp_type = IBV_QPT_RC;
    attributes.sq_sig_all = 0;
    attributes.cap.max_send_wr = sends_.capacity();
    attributes.cap.max_send_sge = limits_.segments_max;
    attributes.cap.max_inline_data = inline_bytes;
    handle_ = ibv_create_qp(queues_.device.domain(), &attributes);
    if (handle_ != nullptr || inline_bytes == 0) break;
  }
  if (handle_ == nullptr)
    return failure(call_failed(
        errno,
        fmt::format("ibv_create_qp with {} send requests of {} segments", sends_.capacity(), limits_.segments_max),
        queues_.device.name()));
  limits_.inline_max = std::min(limits_.inline_max, attributes.cap.max_inline_data);
  return {};
}

QueuePair::~QueuePair() {
  if (handle_ != nullptr)
    if (const int error = ibv_destroy_qp(handle_); error != 0)
      logger_.error("{}", call_failed(error, "ibv_destroy_qp", queues_.device.name()).message());
  if (completions_ != nullptr) queues_.completions->unreserve(completions_, sends_.capacity());
  --queues_.queue_pairs;
}

Result<void> QueuePair::attributes_for(rdma_cm_id* id, ibv_qp_attr& attributes, int& mask, ibv_qp_state state) {
  attributes = {};
  attributes.qp_state = state;
  if (rdma_init_qp_attr(id, &attributes, &mask) != 0)
    return failure(call_failed(errno, "rdma_init_qp_attr", queues_.device.name()));
  return {};
}

Result<void> QueuePair::ready(rdma_cm_id* id, std::uint32_t reads_in, std::uint32_t reads_out) {
  ibv_qp_attr attributes{};
  int mask = 0;
  if (auto filled = attributes_for(id, attributes, mask, IBV_QPS_RTR); !filled) return filled;
  attributes.min_rnr_timer = kReceiverNotReadyTimer;
  if (reads_in != kNegotiated) attributes.max_dest_rd_atomic = static_cast<std::uint8_t>(reads_in);
  limits_.path_mtu = mtu_bytes(attributes.path_mtu);
  if (const int error = ibv_modify_qp(handle_, &attributes, mask); error != 0)
    return failure(call_failed(error, "ibv_modify_qp to RTR", queues_.device.name()));
  was_ready_ = true;

  if (auto filled = attributes_for(id, attributes, mask, IBV_QPS_RTS); !filled) return filled;
  if (reads_out != kNegotiated) attributes.max_rd_atomic = static_cast<std::uint8_t>(reads_out);
  attributes.retry_cnt = std::min(attributes.retry_cnt, kRetriesMax);
  attributes.rnr_retry = kReceiverNotReadyRetries;
  attributes.timeout = attributes.timeout == 0 ? kTimeoutDefault : std::min(attributes.timeout, kTimeoutMax);
  limits_.read_depth = attributes.max_rd_atomic;
  if (const int error = ibv_modify_qp(handle_, &attributes, mask); error != 0)
    return failure(call_failed(error, "ibv_modify_qp to RTS", queues_.device.name()));
  return {};
}

void QueuePair::fail() noexcept {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  if (const int error = ibv_modify_qp(handle_, &attributes, IBV_QP_STATE); error != 0)
    logger_.warning("{}", call_failed(error, "ibv_modify_qp to ERR", queues_.device.name()).message());
}

}  // namespace rbt::transport::verbs
