// The responder: one packet carried out in the peer's memory, with the checks that an HCA makes.

#include <algorithm>
#include <cstring>

#include "transport/sim/poll_group.h"
#include "transport/sim/queue_pair.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

// Calls visit(memory, bytes) for the pieces of [offset, offset + bytes) of what `segments` name.
template <typename Visit>
void for_each_piece(std::span<const Segment> segments, std::uint64_t offset, std::uint64_t bytes, Visit visit) {
  for (const Segment& segment : segments) {
    if (bytes == 0) return;
    if (offset >= segment.length) {
      offset -= segment.length;
      continue;
    }
    const std::uint64_t piece = std::min<std::uint64_t>(bytes, segment.length - offset);
    visit(segment.data + offset, piece);
    offset = 0;
    bytes -= piece;
  }
}

}  // namespace

void QueuePair::gather(const Wqe& w, std::uint64_t offset, std::byte* to, std::uint32_t bytes) const noexcept {
  if (bytes == 0) return;
  if (w.inlined) {
    std::memcpy(to, w.data.data() + offset, bytes);
    return;
  }
  for_each_piece(std::span(w.segments.data(), w.segment_count), offset, bytes,
                 [&to](const std::byte* piece, auto size) {
                   std::memmove(to, piece, size);  // both ends may be the same memory
                   to += size;
                 });
}

void QueuePair::scatter(const Wqe& w, std::uint64_t offset, const std::byte* from, std::uint32_t bytes) const noexcept {
  for_each_piece(std::span(w.segments.data(), w.segment_count), offset, bytes, [&from](std::byte* piece, auto size) {
    std::memmove(piece, from, size);
    from += size;
  });
}

bool QueuePair::local_ok(const Wqe& w) const noexcept {
  if (w.inlined) return true;
  const std::span segments(w.segments.data(), w.segment_count);
  return std::all_of(segments.begin(), segments.end(), [this](const Segment& segment) {
    return segment.length == 0 || world_.keys().local(device_.domain, segment);
  });
}

std::uint64_t QueuePair::digest(const Wqe& w) const noexcept {
  if (w.inlined || w.opcode == Opcode::rdma_read || !local_ok(w)) return 0;
  std::uint64_t sum = 1;
  for_each_piece(std::span(w.segments.data(), w.segment_count), 0, w.length, [&sum](const std::byte* piece, auto size) {
    std::uint64_t word = 0;
    for (std::uint64_t i = 0; i < size; i += sizeof word) {
      word = 0;
      std::memcpy(&word, piece + i, std::min<std::uint64_t>(sizeof word, size - i));
      sum = (sum ^ word) * 0x9e3779b97f4a7c15ULL;
      sum ^= sum >> 29;
    }
  });
  return sum;
}

void QueuePair::verify(const Wqe& w) {
  if (!world_.options().check_posted_memory || digest(w) == w.digest) return;
  ++world_.violations;
  world_.logger().error(
      "{}: {} bytes posted as request {} were changed before their completion; posted memory belongs "
      "to the fabric until then",
      title(), w.length, w.wr_id);
}

QueuePair::Executed QueuePair::execute_packet(QueuePair& peer, Wqe& w) {
  const std::uint32_t bytes = chunk(w, offset_);
  if (w.opcode == Opcode::send || w.opcode == Opcode::send_with_invalidate) return execute_send(peer, w, bytes);
  const bool reading = w.opcode == Opcode::rdma_read;
  // The first packet names the whole range, so all of it is checked; an empty one needs no key (IBA 9.7.4.1.5).
  const std::uint64_t checked = offset_ == 0 ? w.length : bytes;
  std::byte* target = nullptr;
  if (w.length != 0) {
    target = world_.keys().remote(peer.device_.domain, w.rkey, w.remote_address + offset_, checked,
                                  reading ? RemoteAccess::read : RemoteAccess::write);
    if (target == nullptr) {
      w.outcome = CompletionStatus::remote_access_error;
      peer.fail_as_responder("the peer used a key, a range or a right that it does not have");
      return Executed::refused;
    }
  }
  if (reading) return Executed::whole;  // the data travels with the answer
  gather(w, offset_, target, bytes);
  offset_ += bytes;
  return offset_ < w.length ? Executed::partly : Executed::whole;
}

QueuePair::Executed QueuePair::execute_send(QueuePair& peer, Wqe& w, std::uint32_t bytes) {
  ReceiveQueue& queue = peer.group_.receive_queue(peer.device_);
  if (offset_ == 0) {
    const FaultPlan& plan = world_.plan();
    const bool withheld =
        peer.machine().exhausted(world_.now()) || (plan.not_ready != 0 && world_.chance().once_in(plan.not_ready));
    if (!withheld) peer.receiving_ = queue.take();
    if (peer.receiving_ == ReceiveQueue::kNone) return Executed::not_ready;
    if (w.length > queue.size()) {
      w.outcome = CompletionStatus::remote_error;
      peer.push_receive_error(CompletionStatus::local_error);
      peer.fail_as_responder("the peer sent a message larger than a receive buffer");
      return Executed::refused;
    }
  }
  gather(w, offset_, queue.data(peer.receiving_) + offset_, bytes);
  offset_ += bytes;
  if (offset_ < w.length) return Executed::partly;
  deliver(peer, w);
  return Executed::whole;
}

void QueuePair::deliver(QueuePair& peer, Wqe& w) {
  if (peer.state_ == State::accepted) peer.become_established();  // the message overtook the ready-to-use
  Completion completion;
  completion.handler = &peer.handler_;
  completion.type = Completion::Type::receive;
  if (w.opcode == Opcode::send_with_invalidate) {
    if (!world_.keys().invalidate(peer.device_.domain, w.rkey)) {
      // As on rxe: the sender has its success, the receiver its end.
      peer.push_receive_error(CompletionStatus::remote_access_error);
      return peer.fail_as_responder("the peer invalidated a key that is not its to invalidate");
    }
    completion.invalidated_rkey = w.rkey;
  }
  const std::uint32_t buffer = std::exchange(peer.receiving_, ReceiveQueue::kNone);
  completion.message =
      peer.group_.receive_queue(peer.device_)
          .lend(buffer, static_cast<std::uint32_t>(w.length), peer.group_.buffer_id(peer.device_, buffer));
  world_.note(What::delivered, peer.id_, w.length);
  peer.group_.push_completion(peer, completion, 0);
}

CompletionStatus QueuePair::read_packet(QueuePair& peer, Wqe& w, std::uint32_t bytes) {
  if (bytes == 0) return CompletionStatus::success;
  const std::byte* from =
      world_.keys().remote(peer.device_.domain, w.rkey, w.remote_address + response_offset_, bytes, RemoteAccess::read);
  if (from == nullptr) {
    peer.fail_as_responder("the peer was reading memory that was deregistered meanwhile");
    return CompletionStatus::remote_access_error;
  }
  if (!local_ok(w)) return CompletionStatus::local_error;
  scatter(w, response_offset_, from, bytes);
  return CompletionStatus::success;
}

void QueuePair::drop_partial_receive() {
  const std::uint32_t buffer = std::exchange(receiving_, ReceiveQueue::kNone);
  if (buffer != ReceiveQueue::kNone) group_.receive_queue(device_).give_back(buffer);
}

void QueuePair::push_receive_error(CompletionStatus status) {
  Completion completion;
  completion.handler = &handler_;
  completion.type = Completion::Type::receive;
  completion.status = status;
  group_.push_completion(*this, completion, 0);
}

void QueuePair::fail_as_responder(const char* why) {
  disconnect(Disconnect::Reason::local, ErrorKind::protocol, title() + ": " + why, Tell::perhaps);
}

}  // namespace rbt::transport::sim
