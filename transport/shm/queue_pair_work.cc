// The data path of one connection: what was posted is carried out, what has come is handed on.

#include <fmt/format.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "transport/shm/group.h"
#include "transport/shm/queue_pair.h"

namespace rbt::transport::shm {

namespace {

// Bytes that one connection moves per turn (some 30 µs): a large transfer of one must not be felt by the others, nor hold
// up a peer that wants its memory back.
constexpr std::size_t kCopyBudget = 256 * 1024;
// A landing takes twice its bytes and this out of the budget: it is a system call, and a slower copy. So eight of 4 KiB fill a turn,
// and the peer has their answers while the next are carried out. With all 32 of a queue in one turn each side slept while the other
// worked: 253,000 writes per second in place of 474,000.
constexpr std::size_t kLandingCost = 24 * 1024;
// Messages taken from one connection per turn.
constexpr std::size_t kMessagesPerTurn = 64;
constexpr std::uint32_t kAsleep = 1;
constexpr std::uint32_t kWantsSpace = 2;
// A peer that has counted a revocation in shared memory and does not send the message.
constexpr Duration kBehindTimeout = std::chrono::seconds(5);
// What an honest peer may have in its socket at once, and to spare: everything announced and revoked twice.
constexpr std::size_t kPacketsMax = 4 * kRegionsMax;

// Of `length` bytes at `data` those in front of the last boundary between units of a landing.
std::size_t whole_units(const std::byte* data, std::size_t length) noexcept {
  return length - std::min(length, (reinterpret_cast<std::uintptr_t>(data) + length) % Landing::kUnit);
}

}  // namespace

PostResult QueuePair::post(std::span<const WorkRequest> requests) {
  if (state_ > State::established) return PostResult::dead;
  if (requests.size() > limits_.send_depth - outstanding_) return PostResult::full;
  for (const WorkRequest& request : requests) {
    QueuedRequest& queued = requests_.push();
    queued.assign(request, limits_.message_max);
    if (queued.copied && !queued.malformed) group_.count().bytes_copied += queued.length;
  }
  outstanding_ += static_cast<std::uint32_t>(requests.size());
  group_.count().work_requests += requests.size();
  group_.queue_work(*this);
  return PostResult::posted;
}

std::size_t QueuePair::receive() {
  if (state_ != State::established && state_ != State::ending) return 0;
  if (wants_space_ && room_again()) group_.queue_work(*this);
  if (link_.waiting() && !watch(EPOLLIN | EPOLLOUT)) on_peer_gone();
  std::size_t count = 0;
  for (; count < kMessagesPerTurn; ++count) {
    Consumer::Message message;
    const auto seen = consumer_.peek(message);
    if (seen == Consumer::Peek::nothing) break;
    if (seen == Consumer::Peek::violation) {
      violate("a slot of its ring holds a message that cannot be");
      break;
    }
    if (group_.receives().empty()) {
      if (!std::exchange(stalled_, true)) ++group_.count().receives_stalled;
      break;
    }
    stalled_ = false;
    if (message.invalidates && !group_.domain().announced(message.key)) {
      violate("it invalidated a key that is none of ours");
      break;
    }
    Completion completion;
    completion.handler = &handler_;
    completion.type = Completion::Type::receive;
    completion.message = group_.receives().take(message.length);
    if (message.invalidates) completion.invalidated_rkey = message.key;
    consumer_.take(message, completion.message.bytes.data());
    group_.count().bytes_copied += message.length;
    group_.complete(*this, completion, 0);
  }
  if (count == 0) return 0;
  consumer_.publish();
  consumed_ = true;
  group_.queue_work(*this);  // the peer may sleep until there is room
  return count;
}

std::size_t QueuePair::work() {
  if (state_ != State::established) return 0;
  std::size_t moved = 0;
  // What waits on the socket are announcements of keys that the next capsule may carry: they go first.
  if (!link_.waiting() || link_.flush()) {
    std::size_t budget = kCopyBudget;
    wants_space_ = false;
    while (!requests_.empty() && budget != 0) {
      const Step step = carry_out(requests_.front(), budget);
      if (step == Step::dead) return moved + 1;
      if (step == Step::later) break;
      finish(requests_.front(), CompletionStatus::success);
      requests_.pop();
      ++moved;
    }
    copies_.leave();
  }
  ring_doorbell();
  return moved;
}

bool QueuePair::runnable() const noexcept {
  return state_ == State::established && !requests_.empty() && !wants_space_ && !behind_ && !link_.waiting();
}

QueuePair::Step QueuePair::carry_out(QueuedRequest& request, std::size_t& budget) {
  if (request.malformed)
    return fail_request(CompletionStatus::local_error, "a request is larger than the connection's limits allow");
  if (!request.copied && request.done == 0 && !segments_ours(request))
    return fail_request(CompletionStatus::local_error, "a segment does not lie in the region of its lkey");
  switch (request.opcode) {
    case Opcode::send:
    case Opcode::send_with_invalidate: return send_capsule(request);
    case Opcode::rdma_read:
      if (limits_.read_depth == 0)
        return fail_request(CompletionStatus::local_error, "an RDMA READ was posted and the peer serves none");
      return move_data(request, budget);
    case Opcode::rdma_write: return move_data(request, budget);
  }
  return Step::done;
}

bool QueuePair::segments_ours(const QueuedRequest& request) {
  LocalKeys& keys = group_.local_keys();
  for (std::uint32_t i = 0; i < request.segment_count; ++i) {
    const Segment& segment = request.segments[i];
    if (segment.length == 0) continue;
    const LocalRegion* const region = keys.find(segment.lkey);
    if (region == nullptr || !region->contains(segment.data, segment.length)) return false;
  }
  return true;
}

QueuePair::Step QueuePair::send_capsule(const QueuedRequest& request) {
  const std::uint32_t slots = slots_for(request.length);
  if (request.length > peer_receive_size_ || slots > producer_.slot_count())
    return fail_request(CompletionStatus::remote_error, fmt::format("a SEND of {} bytes: the peer takes at most {}",
                                                                    request.length, peer_receive_size_));
  switch (producer_.reserve(slots)) {
    case Producer::Room::enough: break;
    case Producer::Room::full: wants_space_ = true; return Step::later;
    case Producer::Room::violation: violate("it took more messages than it was sent"); return Step::dead;
  }
  SlotKind kind = SlotKind::send;
  if (request.opcode == Opcode::send_with_invalidate) {
    if (!remote_.known(request.rkey)) read_socket(kPacketsMax);
    if (state_ != State::established) return Step::dead;
    if (!remote_.known(request.rkey))
      return fail_request(CompletionStatus::remote_access_error,
                          fmt::format("SEND with invalidate of key {:#x}: the peer has no such region", request.rkey));
    remote_.invalidate(request.rkey);
    kind = SlotKind::send_with_invalidate;
  }
  producer_.begin(kind, request.length, request.rkey);
  if (request.copied) {
    producer_.append(request.data.data(), request.length);
  } else {
    for (std::uint32_t i = 0; i < request.segment_count; ++i)
      producer_.append(request.segments[i].data, request.segments[i].length);
  }
  producer_.publish();
  published_ = true;
  group_.count().bytes_copied += request.length;
  return Step::done;
}

QueuePair::Step QueuePair::enter_copy_section() {
  using Entry = CopySection::Entry;
  Entry entry = copies_.enter(revocations_read_);
  if (entry == Entry::behind) {
    read_socket(kPacketsMax);
    if (state_ != State::established) return Step::dead;
    entry = copies_.enter(revocations_read_);
  }
  if (entry == Entry::open) {
    if (std::exchange(behind_, false)) timer_.cancel();
    return Step::done;
  }
  if (entry == Entry::closed) {
    fail(Disconnect::Reason::peer_closed,
         Error(ErrorKind::disconnected, fmt::format("{} has closed the connection", peer_)), State::ending);
    return Step::dead;
  }
  if (!std::exchange(behind_, true)) timer_.arm(group_.reactor().now() + kBehindTimeout);
  return Step::later;
}

RemoteMemory::Found QueuePair::find_remote(const QueuedRequest& request, RemoteMemory::Use use) {
  const auto look = [&] { return remote_.find(request.rkey, request.remote_address, request.length, use); };
  auto found = look();
  if (found.verdict == RemoteMemory::Found::Verdict::unknown_key) {
    // Announced on the socket before the capsule that named it was published, and not read yet.
    read_socket(kPacketsMax);
    if (state_ == State::established) found = look();
  }
  return found;
}

QueuePair::Step QueuePair::move_data(QueuedRequest& request, std::size_t& budget) {
  if (request.length == 0) return Step::done;  // like an adapter: no data, no key looked at
  if (const Step step = enter_copy_section(); step != Step::done) return step;
  const bool reads = request.opcode == Opcode::rdma_read;
  const auto found = find_remote(request, reads ? RemoteMemory::Use::read : RemoteMemory::Use::write);
  if (state_ != State::established) return Step::dead;
  if (found.verdict != RemoteMemory::Found::Verdict::granted)
    return fail_request(
        CompletionStatus::remote_access_error,
        fmt::format("RDMA {} of {} bytes at {:#x} with key {:#x}: the peer {}", reads ? "READ" : "WRITE",
                    request.length, request.remote_address, request.rkey,
                    found.verdict == RemoteMemory::Found::Verdict::unknown_key ? "has no such region"
                                                                               : "does not allow it there"));
  const std::size_t part = std::min<std::size_t>(request.length - request.done, budget);
  std::byte* const remote = found.data + request.done;
  std::size_t left = part;
  if (request.copied) {
    std::memcpy(remote, request.data.data() + request.done, part);
    left = 0;
  }
  std::size_t skip = request.done;
  for (std::uint32_t i = 0; left != 0; ++i) {
    const Segment& segment = request.segments[i];
    if (skip >= segment.length) {
      skip -= segment.length;
      continue;
    }
    Segment piece{segment.data + skip, segment.length - static_cast<std::uint32_t>(skip), segment.lkey};
    const bool cut = piece.length > left;
    if (cut) piece.length = static_cast<std::uint32_t>(reads ? whole_units(piece.data, left) : left);
    std::byte* const there = remote + (part - left);
    if (!reads)
      std::memcpy(there, piece.data, piece.length);
    else if (piece.length != 0)
      if (const Step step = take_in(request, piece, there, budget); step != Step::done) return step;
    left -= piece.length;
    skip = 0;
    if (cut) break;
  }
  const std::size_t moved = part - left;
  request.done += static_cast<std::uint32_t>(moved);
  budget -= std::min(budget, moved);
  group_.count().bytes_copied += moved;
  return request.done == request.length ? Step::done : Step::later;
}

// Its region is looked for again: turns ago the key may have stood for another, or none.
QueuePair::Step QueuePair::take_in(const QueuedRequest& request, const Segment& piece, const std::byte* there,
                                   std::size_t& budget) {
  const LocalRegion* const region = group_.local_keys().find(piece.lkey);
  if (region == nullptr || !region->contains(piece.data, piece.length))
    return fail_request(CompletionStatus::local_error, "the region of a segment was deregistered in the middle of it");
  if (region->landing == nullptr) {
    std::memcpy(piece.data, there, piece.length);
    return Step::done;
  }
  const std::size_t copied = region->landing->land(piece.data, {there, piece.length});
  if (copied == 0)
    return fail_request(CompletionStatus::remote_access_error,
                        fmt::format("RDMA READ of {} bytes at {:#x} with key {:#x}: they cannot be read any more",
                                    request.length, request.remote_address, request.rkey));
  group_.count().bytes_copied += copied - piece.length;
  budget -= std::min<std::size_t>(budget, kLandingCost + piece.length);
  return Step::done;
}

void QueuePair::finish(const QueuedRequest& request, CompletionStatus status) {
  if (status == CompletionStatus::success && !request.signaled) {
    ++uncovered_;
    return;
  }
  Completion completion;
  completion.handler = &handler_;
  completion.status = status;
  completion.wr_id = request.wr_id;
  completion.type = request.opcode == Opcode::rdma_read    ? Completion::Type::rdma_read
                    : request.opcode == Opcode::rdma_write ? Completion::Type::rdma_write
                                                           : Completion::Type::send;
  group_.complete(*this, completion, std::exchange(uncovered_, 0) + 1);
}

// The first request cannot be carried out: it says so, the others are flushed, the connection is dead.
QueuePair::Step QueuePair::fail_request(CompletionStatus status, std::string_view why) {
  copies_.leave();
  finish(requests_.front(), status);
  requests_.pop();
  const bool ours = status == CompletionStatus::local_error;
  say_goodbye(false, why);
  fail(Disconnect::Reason::local,
       Error(ours ? ErrorKind::internal : ErrorKind::protocol, fmt::format("{} (connection with {})", why, peer_)),
       State::failed);
  return Step::dead;
}

// Tells a sleeping peer that there is something for it. One full fence per turn with news, no system call while it is
// awake, and one per sleep: as long as it has not been to sleep again, the doorbell that it got will do.
void QueuePair::ring_doorbell() {
  if (!published_ && !consumed_) return;
  if (published_) ++group_.count().doorbells;
  // Partner: arm(). Either the peer sees what we have published before it sleeps, or we see that it sleeps.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint32_t word = ring_.control(1 - side_).sleep.load(std::memory_order_relaxed);
  const bool wanted = (word & kAsleep) != 0 && (published_ || (word & kWantsSpace) != 0);
  if (wanted && word != rung_for_) {
    rung_for_ = word;
    ++group_.count().wake_ups;
    // Full: there is something to read on the peer's socket already, which wakes it just as well.
    [[maybe_unused]] const Sent sent = send(socket_.get(), DoorbellMessage{});
  }
  published_ = false;
  consumed_ = false;
}

void QueuePair::arm() {
  if (state_ != State::established) return;
  armed_ = true;
  sleep_count_ += 4;
  ring_.control(side_).sleep.store(sleep_count_ | kAsleep | (wants_space_ ? kWantsSpace : 0),
                                   std::memory_order_relaxed);
}

bool QueuePair::woken() {
  if (state_ == State::closed) return true;
  if (state_ != State::established) return false;
  if (runnable()) return true;
  // Without a free buffer there is nothing to do about messages, until one is released on this very thread.
  if (consumer_.pending() && !group_.receives().empty()) return true;
  return wants_space_ && room_again();
}

bool QueuePair::room_again() noexcept {
  return requests_.empty() || producer_.reserve(slots_for(requests_.front().length)) != Producer::Room::full;
}

void QueuePair::disarm() noexcept {
  if (!armed_) return;
  armed_ = false;
  ring_.control(side_).sleep.store(sleep_count_, std::memory_order_relaxed);
}

}  // namespace rbt::transport::shm
