#include "transport/verbs/send_queue.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/check.h"
#include "transport/verbs/work_id.h"

namespace rbt::transport::verbs {

namespace {

ibv_wr_opcode opcode_of(Opcode opcode) noexcept {
  switch (opcode) {
    case Opcode::send: return IBV_WR_SEND;
    case Opcode::send_with_invalidate: return IBV_WR_SEND_WITH_INV;
    case Opcode::rdma_read: return IBV_WR_RDMA_READ;
    case Opcode::rdma_write: return IBV_WR_RDMA_WRITE;
  }
  return IBV_WR_SEND;
}

Completion::Type type_of(Opcode opcode) noexcept {
  switch (opcode) {
    case Opcode::send:
    case Opcode::send_with_invalidate: return Completion::Type::send;
    case Opcode::rdma_read: return Completion::Type::rdma_read;
    case Opcode::rdma_write: return Completion::Type::rdma_write;
  }
  return Completion::Type::send;
}

}  // namespace

SendQueue::SendQueue(std::uint64_t connection, const Limits& limits)
    : limits_(limits),
      slack_(slack(limits.depth)),
      ring_(limits.depth + slack_),
      requests_ring_(ring_.size()),
      // Two segments per request on the average; a chain that needs more is handed over in parts.
      segments_(std::max<std::size_t>(ring_.size() * 2, limits.segments_max)),
      inline_data_(ring_.size() * limits.inline_max) {
  check(ring_.size() <= kRingMax, "a send queue is longer than a wr_id can tell");
  for (std::uint32_t i = 0; i < capacity(); ++i)
    requests_ring_[i].wr_id = send_work_id(connection, i);
}

bool SendQueue::room_for(std::span<const WorkRequest> requests) const noexcept {
  const std::size_t limit = signaled_ == 0 ? count_ + std::size_t{limits_.depth} : limits_.depth;
  if (count_ + requests.size() > std::min<std::size_t>(limit, ring_.size())) return false;
  if (queue_pair_ != nullptr) return true;
  std::size_t segments = segments_used_;
  for (const WorkRequest& request : requests)
    segments += request.segments.size();
  return segments <= segments_.size();
}

PostResult SendQueue::post(std::span<const WorkRequest> requests) {
  if (!room_for(requests)) return PostResult::full;
  for (const WorkRequest& request : requests) {
    if (segments_used_ + request.segments.size() > segments_.size()) flush();
    append(request);
  }
  counters_.requests += requests.size();
  return PostResult::posted;
}

void SendQueue::append(const WorkRequest& request) {
  check(request.segments.size() <= limits_.segments_max, "a work request has more segments than limits() allow");
  const std::uint32_t position = tail_;
  ibv_send_wr& out = requests_ring_[position];
  out.opcode = opcode_of(request.opcode);
  out.sg_list = segments_.data() + segments_used_;
  out.num_sge = 0;
  out.send_flags = 0;
  if (request.copy_data) {
    std::byte* to = inline_data_.data() + std::size_t{position} * limits_.inline_max;
    std::uint32_t copied = 0;
    for (const Segment& segment : request.segments) {
      check(segment.length <= limits_.inline_max - copied, "more copied data than limits().inline_max");
      std::memcpy(to + copied, segment.data, segment.length);
      copied += segment.length;
    }
    segments_[segments_used_++] = {.addr = reinterpret_cast<std::uintptr_t>(to), .length = copied, .lkey = 0};
    out.num_sge = 1;
    out.send_flags |= IBV_SEND_INLINE;
    counters_.bytes_copied += copied;
  } else {
    for (const Segment& segment : request.segments)
      segments_[segments_used_++] = {
          .addr = reinterpret_cast<std::uintptr_t>(segment.data), .length = segment.length, .lkey = segment.lkey};
    out.num_sge = static_cast<int>(request.segments.size());
  }
  if (request.opcode == Opcode::rdma_read || request.opcode == Opcode::rdma_write) {
    out.wr.rdma.remote_addr = request.remote_address;
    out.wr.rdma.rkey = request.rkey;
  } else if (request.opcode == Opcode::send_with_invalidate) {
    out.invalidate_rkey = request.rkey;
  }
  Slot& slot = ring_[position];
  slot.retired = {.wr_id = request.wr_id, .type = type_of(request.opcode), .wanted = request.signaled};
  slot.signaled = request.signaled || uncovered_ + 1 >= slack_;
  if (slot.signaled) {
    out.send_flags |= IBV_SEND_SIGNALED;
    uncovered_ = 0;
    ++signaled_;
  } else {
    ++uncovered_;
  }
  if (chained_ == 0) {
    chain_head_ = position;
  } else {
    requests_ring_[position == 0 ? capacity() - 1 : position - 1].next = &out;
  }
  out.next = nullptr;
  ++chained_;
  ++count_;
  tail_ = next(tail_);
}

void SendQueue::flush() noexcept {
  if (chained_ == 0 || queue_pair_ == nullptr) return;
  ibv_send_wr* refused = nullptr;
  const int error = ibv_post_send(queue_pair_, &requests_ring_[chain_head_], &refused);
  if (error_ == 0) error_ = error;
  ++counters_.doorbells;
  chained_ = 0;
  segments_used_ = 0;
}

bool SendQueue::complete(std::uint32_t index, Retired& retired) noexcept {
  if (index >= capacity()) return false;
  const std::uint32_t ahead = index >= head_ ? index - head_ : index + capacity() - head_;
  if (ahead >= count_) return false;
  for (; head_ != index; head_ = next(head_)) {
    signaled_ -= ring_[head_].signaled ? 1 : 0;
    --count_;
  }
  retired = ring_[index].retired;
  signaled_ -= ring_[index].signaled ? 1 : 0;
  if (count_ == 1) uncovered_ = 0;
  --count_;
  head_ = next(head_);
  return true;
}

}  // namespace rbt::transport::verbs
