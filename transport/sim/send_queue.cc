// The requester: what was posted travels to the peer in order, the answers come back in order.
//
//   post -> [tail] -> ring -> [rung] -> request packets arrive at the peer -> [next] -> answers arrive -> [head]
//
// At most one event per direction is on the agenda: the arrival of the next packet. Data is copied when its packet
// arrives, straight from one consumer's memory to the other's.

#include <fmt/format.h>

#include <algorithm>

#include "common/check.h"
#include "transport/sim/poll_group.h"
#include "transport/sim/queue_pair.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

constexpr std::uint64_t kHeader = 64;       // bytes of headers per packet, about that of RoCE
constexpr std::uint64_t kReadRequest = 16;  // RETH

bool reads(Opcode opcode) noexcept {
  return opcode == Opcode::rdma_read;
}

Completion::Type type_of(Opcode opcode) noexcept {
  switch (opcode) {
    case Opcode::rdma_read: return Completion::Type::rdma_read;
    case Opcode::rdma_write: return Completion::Type::rdma_write;
    case Opcode::send:
    case Opcode::send_with_invalidate: break;
  }
  return Completion::Type::send;
}

}  // namespace

PostResult QueuePair::post(std::span<const WorkRequest> requests) {
  if (state_ != State::established || !told_established_) return PostResult::dead;
  if (world_.fails(Operation::post, machine().host())) {
    disconnect(Disconnect::Reason::local, ErrorKind::resource,
               fmt::format("{}: posting {} requests failed (simulated fault)", title(), requests.size()));
    return PostResult::dead;
  }
  if (tail_ - reclaimed_ + requests.size() > limits_.send_depth) return PostResult::full;
  if (signaled_pending_ != 0 && world_.fails(Operation::post_full, machine().host())) return PostResult::full;
  for (const WorkRequest& request : requests)
    take(request);
  group_.tally().work_requests += requests.size();
  world_.note(What::posted, id_, requests.size());
  if (!doorbell_due_ && !requests.empty()) {
    doorbell_due_ = true;
    group_.queue_doorbell(*this);
  }
  return PostResult::posted;
}

void QueuePair::take(const WorkRequest& request) {
  Wqe& w = wqe(tail_++);
  w.opcode = request.opcode;
  w.signaled = request.signaled;
  w.outcome = CompletionStatus::success;
  w.rkey = request.rkey;
  w.remote_address = request.remote_address;
  w.wr_id = request.wr_id;
  w.length = 0;
  for (const Segment& segment : request.segments)
    w.length += segment.length;
  w.inlined = request.copy_data;
  w.malformed = request.segments.size() > limits_.segments_max || w.length > limits_.message_max ||
                (w.inlined && (w.length > limits_.inline_max || reads(w.opcode))) ||
                (reads(w.opcode) && limits_.read_depth == 0);
  w.segment_count = 0;
  if (request.signaled) ++signaled_pending_;
  if (w.malformed) return;
  w.segment_count = static_cast<std::uint32_t>(request.segments.size());
  std::copy(request.segments.begin(), request.segments.end(), w.segments.begin());
  if (w.inlined) {
    w.inlined = false;  // gather from the segments, this once
    gather(w, 0, w.data.data(), static_cast<std::uint32_t>(w.length));
    w.inlined = true;
  }
  if (world_.options().check_posted_memory) w.digest = digest(w);
}

void QueuePair::reclaim(std::uint32_t slots) noexcept {
  reclaimed_ += slots;
  if (signaled_pending_ != 0) --signaled_pending_;
}

void QueuePair::ring() {
  doorbell_due_ = false;
  world_.note(What::doorbell, id_, tail_ - rung_);
  for (; rung_ != tail_; ++rung_)
    wqe(rung_).ready_at = world_.now();
  arm_request();
}

std::uint32_t QueuePair::chunk(const Wqe& w, std::uint64_t offset) const noexcept {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(limits_.path_mtu, w.length - offset));
}

Duration QueuePair::serialization(std::uint64_t bytes) const noexcept {
  const std::uint64_t rate = std::max<std::uint64_t>(1, world_.link(machine(), *peer_machine_).bytes_per_us);
  return Duration(static_cast<Duration::rep>((bytes + kHeader) * 1000 / rate));
}

QueuePair* QueuePair::responder() const noexcept {
  if (severed_ || !world_.reachable(machine(), *peer_machine_)) return nullptr;
  QueuePair* const peer = find(peer_id_);
  return peer != nullptr && peer->receives() ? peer : nullptr;
}

void QueuePair::arm_request() {
  if (request_armed_ || refused_ || waits_for_buffer_ || state_ != State::established || next_ == rung_) return;
  const Wqe& w = wqe(next_);
  const bool reading = reads(w.opcode) && !w.malformed;
  if (reading && reads_outstanding_ >= limits_.read_depth) return;  // complete() goes on
  Instant at = request_clock_;
  if (offset_ == 0) at = std::max(at, w.ready_at + world_.travel(machine(), *peer_machine_));
  request_clock_ = std::max(at, world_.now()) + serialization(reading ? kReadRequest : chunk(w, offset_));
  request_armed_ = true;
  schedule(Kind::request_packet, request_clock_ - world_.now(), epoch_);
}

void QueuePair::arm_response() {
  if (response_armed_ || state_ != State::established || head_ == next_) return;
  const Wqe& w = wqe(head_);
  Instant at = response_clock_;
  if (response_offset_ == 0 && w.outcome != CompletionStatus::local_error)
    at = std::max(at, w.executed_at + world_.travel(*peer_machine_, machine()));
  const bool data = reads(w.opcode) && w.outcome == CompletionStatus::success;
  response_clock_ = std::max(at, world_.now()) + serialization(data ? chunk(w, response_offset_) : 0);
  response_armed_ = true;
  schedule(Kind::response_packet, response_clock_ - world_.now(), epoch_);
}

bool QueuePair::delayed(Kind kind, bool& armed) {
  const FaultPlan& plan = world_.plan();
  if (plan.stalled != 0 && world_.chance().once_in(plan.stalled)) {
    const auto most = static_cast<std::uint64_t>(plan.stall_max.count());
    stalled_until_ = world_.now() + Duration(static_cast<Duration::rep>(1 + world_.chance().below(most + 1)));
  }
  if (world_.now() >= stalled_until_) return false;
  armed = true;
  schedule(kind, stalled_until_ - world_.now(), epoch_);
  return true;
}

bool QueuePair::packet_lost() noexcept {
  const FaultPlan& plan = world_.plan();
  if (plan.connection_lost != 0 && world_.chance().once_in(plan.connection_lost)) {
    severed_ = true;
    if (QueuePair* peer = find(peer_id_); peer != nullptr) peer->severed_ = true;
    return true;
  }
  return plan.packet_lost != 0 && world_.chance().once_in(plan.packet_lost);
}

void QueuePair::retry(Kind kind, std::uint32_t& tries, bool& armed) {
  world_.note(What::lost, id_, tries);
  if (++tries > world_.options().retries) return fail(CompletionStatus::retry_exceeded);
  armed = true;
  schedule(kind, world_.options().ack_timeout, epoch_);
}

void QueuePair::on_request_packet() {
  request_armed_ = false;
  if (delayed(Kind::request_packet, request_armed_)) return;
  Wqe& w = wqe(next_);
  if (w.malformed || !local_ok(w)) return executed(CompletionStatus::local_error);
  QueuePair* const peer = responder();
  if (peer == nullptr || packet_lost()) return retry(Kind::request_packet, request_tries_, request_armed_);
  request_tries_ = 0;
  world_.note(What::request_packet, id_, next_, offset_);
  switch (execute_packet(*peer, w)) {
    case Executed::partly: return arm_request();
    case Executed::whole: return executed(CompletionStatus::success);
    case Executed::not_ready: return not_ready(*peer);
    case Executed::refused: return executed(w.outcome);
  }
}

void QueuePair::not_ready(QueuePair& peer) {
  const NetworkOptions& options = world_.options();
  if (rnr_tries_++ == 0) ++peer.group_.tally().receives_stalled;
  world_.note(What::not_ready, id_, next_, rnr_tries_);
  const bool for_ever = options.rnr_retries >= NetworkOptions::kRetryForever;
  if (!for_ever && rnr_tries_ > options.rnr_retries) return executed(CompletionStatus::rnr_retry_exceeded);
  ReceiveQueue& queue = peer.group_.receive_queue(peer.device_);
  if (for_ever && !queue.any_free()) {  // asking again and again would keep an idle world busy
    waits_for_buffer_ = true;
    return queue.park(id_);
  }
  request_armed_ = true;
  schedule(Kind::request_packet, options.rnr_timer, epoch_);
}

void QueuePair::receiver_ready() {
  if (!waits_for_buffer_ || state_ != State::established) return;
  waits_for_buffer_ = false;
  request_armed_ = true;
  const auto most = static_cast<std::uint64_t>(world_.options().rnr_timer.count());
  schedule(Kind::request_packet, Duration(static_cast<Duration::rep>(world_.chance().below(most + 1))), epoch_);
}

void QueuePair::executed(CompletionStatus outcome) {
  Wqe& w = wqe(next_);
  w.outcome = outcome;
  w.executed_at = world_.now();
  refused_ = outcome != CompletionStatus::success;
  if (!refused_ && reads(w.opcode)) ++reads_outstanding_;
  ++next_;
  offset_ = 0;
  rnr_tries_ = 0;
  arm_response();
  arm_request();
}

void QueuePair::on_response_packet() {
  response_armed_ = false;
  if (delayed(Kind::response_packet, response_armed_)) return;
  Wqe& w = wqe(head_);
  if (w.outcome != CompletionStatus::local_error) {
    const bool data = reads(w.opcode) && w.outcome == CompletionStatus::success;
    // An acknowledgement is on its way whatever became of its sender; data has to be fetched from the peer's memory.
    QueuePair* const peer = data ? responder() : nullptr;
    const bool arrives = data ? peer != nullptr : !severed_ && world_.reachable(machine(), *peer_machine_);
    if (!arrives || packet_lost()) return retry(Kind::response_packet, response_tries_, response_armed_);
    world_.note(What::response_packet, id_, head_, response_offset_);
    if (data) {
      const std::uint32_t bytes = chunk(w, response_offset_);
      w.outcome = read_packet(*peer, w, bytes);
      response_offset_ += bytes;
      if (w.outcome == CompletionStatus::success && response_offset_ < w.length) return arm_response();
    }
  }
  response_tries_ = 0;
  complete();
}

void QueuePair::complete() {
  Wqe& w = wqe(head_);
  if (w.outcome != CompletionStatus::success) return fail(w.outcome);
  if (w.signaled && world_.fails(Operation::completion, machine().host())) return fail(CompletionStatus::remote_error);
  verify(w);
  world_.note(What::completed, id_, head_, w.length);
  if (reads(w.opcode)) --reads_outstanding_;
  const std::uint64_t index = head_++;
  response_offset_ = 0;
  if (w.signaled) push(w, CompletionStatus::success, index);
  if (!request_armed_ && offset_ == 0 && next_ != rung_ && reads(wqe(next_).opcode))
    wqe(next_).ready_at = world_.now();  // it may have waited for this one
  arm_request();
  arm_response();
}

void QueuePair::push(const Wqe& w, CompletionStatus status, std::uint64_t index) {
  Completion completion;
  completion.handler = &handler_;
  completion.type = type_of(w.opcode);
  completion.status = status;
  completion.wr_id = w.wr_id;
  group_.push_completion(*this, completion, static_cast<std::uint32_t>(index + 1 - covered_));
  covered_ = index + 1;
}

void QueuePair::fail(CompletionStatus status) {
  world_.note(What::failed, id_, head_, static_cast<std::uint64_t>(status));
  push(wqe(head_), status, head_);
  ++head_;
  const bool silent = status == CompletionStatus::retry_exceeded;
  disconnect(silent ? Disconnect::Reason::lost : Disconnect::Reason::local, ErrorKind::disconnected,
             silent ? fmt::format("{}: not acknowledged after {} retries", title(), world_.options().retries)
                    : fmt::format("{}: a request failed: {}", title(), name(status)),
             Tell::perhaps);
}

void QueuePair::flush(std::uint64_t from) {
  for (std::uint64_t index = from; index != tail_; ++index)
    push(wqe(index), CompletionStatus::flushed, index);
  head_ = next_ = rung_ = tail_;
  offset_ = response_offset_ = 0;
  waits_for_buffer_ = false;
}

}  // namespace rbt::transport::sim
