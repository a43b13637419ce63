#include "initiator/queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"

namespace rbt::initiator {

namespace {

constexpr unsigned kSlotBits =
    10;  // of a CID; the six above count the slot's uses, so that a late answer is recognised
constexpr std::uint16_t kSlotMask = (1u << kSlotBits) - 1;
static_assert(Queue::kDepthMax <= kSlotMask);
constexpr std::size_t kCapsuleBytes = sizeof(nvme::SubmissionQueueEntry);
// The fabric promises on_closed() within 5 s of close().
constexpr Duration kCloseBound = std::chrono::seconds(6);
constexpr std::uint64_t kCloseTurnsMax = 20'000'000;  // ends it where the clock stands still, too
// A response capsule is 16 bytes; room for a peer that pads.
constexpr std::uint32_t kReceiveBytes = 64;
// Sends between two signaled ones: rare enough to cost nothing, often enough that the send queue never fills.
constexpr std::uint32_t kSignalInterval = 32;

constexpr bool may_follow(QueueState from, QueueState to) noexcept {
  switch (to) {
    case QueueState::idle: return false;
    case QueueState::connecting: return from == QueueState::idle;
    case QueueState::live: return from == QueueState::connecting;
    case QueueState::closing: return from == QueueState::connecting || from == QueueState::live;
    case QueueState::closed: return from == QueueState::closing || from == QueueState::idle;
  }
  return false;
}

ErrorKind kind_of(transport::Disconnect::Reason reason, bool connecting) noexcept {
  using Reason = transport::Disconnect::Reason;
  switch (reason) {
    case Reason::refused: return ErrorKind::unreachable;
    case Reason::unreachable: return ErrorKind::unreachable;
    case Reason::peer_closed:
    case Reason::lost:
    case Reason::device_removed:
    case Reason::address_changed: return connecting ? ErrorKind::unreachable : ErrorKind::disconnected;
    case Reason::local: return ErrorKind::resource;
  }
  return ErrorKind::disconnected;
}

std::string_view words(transport::Disconnect::Reason reason) noexcept {
  using Reason = transport::Disconnect::Reason;
  switch (reason) {
    case Reason::refused: return "the target refused the connection";
    case Reason::unreachable: return "nobody answers there";
    case Reason::peer_closed: return "the target closed the connection";
    case Reason::lost: return "the target stopped answering";
    case Reason::device_removed: return "the RDMA device was removed";
    case Reason::address_changed: return "the local address went away";
    case Reason::local: return "the connection failed on this side";
  }
  return "the connection ended";
}

Error explain(const transport::Disconnect& disconnect, bool connecting) {
  std::string text(words(disconnect.reason));
  ErrorKind kind = kind_of(disconnect.reason, connecting);
  if (disconnect.reason == transport::Disconnect::Reason::refused) {
    if (const auto reject = nvme::parse_cm_reject(disconnect.private_data)) {
      text += fmt::format(": {} ({})", name(*reject), static_cast<unsigned>(*reject));
      if (*reject == nvme::CmReject::no_resources) kind = ErrorKind::resource;
      if (*reject == nvme::CmReject::invalid_host_send_queue_size ||
          *reject == nvme::CmReject::invalid_host_receive_queue_size)
        text += "; ask for a smaller queue depth";
    }
  }
  if (!disconnect.error.message().empty()) {
    text += fmt::format(": {}", disconnect.error.message());
    if (disconnect.reason == transport::Disconnect::Reason::local ||
        disconnect.reason == transport::Disconnect::Reason::unreachable)
      kind = disconnect.error.kind();
  }
  return {kind, std::move(text)};
}

}  // namespace

std::string_view name(QueueState state) noexcept {
  switch (state) {
    case QueueState::idle: return "idle";
    case QueueState::connecting: return "connecting";
    case QueueState::live: return "live";
    case QueueState::closing: return "closing";
    case QueueState::closed: return "closed";
  }
  return "unknown";
}

std::string command_name(Qid qid, const nvme::SubmissionQueueEntry& entry) {
  std::string_view name = qid == Qid(0) ? nvme::name(static_cast<nvme::AdminOpcode>(entry.opcode))
                                        : nvme::name(static_cast<nvme::IoOpcode>(entry.opcode));
  if (entry.is_fabrics()) name = nvme::name(static_cast<nvme::FabricsType>(entry.nsid.get() & 0xff));
  return name.empty() ? fmt::format("a command with opcode {:#04x}", entry.opcode) : std::string(name);
}

Queue::Queue(transport::Fabric& fabric, transport::Reactor& reactor, const QueueOptions& options)
    : fabric_(fabric),
      reactor_(reactor),
      options_(options),
      label_(options.qid == Qid(0) ? fmt::format("admin queue of {}", options.uri.to_string())
                                   : fmt::format("I/O queue {} of {}", options.qid.value(), options.uri.to_string())),
      deadline_timer_(reactor.timers(), [this] { check_deadlines(); }) {
  check(options.depth >= 1 && options.depth <= kDepthMax, "a queue has 1 to kDepthMax commands outstanding");
}

Queue::~Queue() {
  close();
}

void Queue::advance(QueueState to) noexcept {
  check(may_follow(state_, to), "a queue's state only moves forward");
  state_ = to;
}

// ---- coming up

Result<void> Queue::open(Instant deadline) {
  auto begun = prepare_memory().and_then([&] { return begin_connecting(deadline); });
  if (!begun) return rbt::failure(std::move(begun.error()).within(fmt::format("connecting {}", label_)));
  if (!reactor_.run_until([this] { return state_ != QueueState::connecting; }, deadline))
    fail(Outcome::timed_out, Error(ErrorKind::timed_out,
                                   "no answer to the connection request in time; is the target "
                                   "running, and does a firewall let its port through?"));
  if (live()) {
    auto registered = register_memory();
    if (!registered) fail(Outcome::disconnected, std::move(registered.error()));
  }
  if (live()) return {};
  close();
  return rbt::failure(Error(*failure_).within(fmt::format("connecting {}", label_)));
}

Result<void> Queue::prepare_memory() {
  entries_ = options_.depth + 1;
  depth_ = options_.depth;
  slots_.resize(depth_);
  free_slots_.reserve(depth_);
  for (std::uint32_t slot = depth_; slot > 0; --slot)
    free_slots_.push_back(slot - 1);
  auto arena = transport::SharedMemory::create(Bytes(depth_ * kCapsuleBytes), {.name = "rbt-capsules"});
  if (!arena) return rbt::failure(std::move(arena.error()));
  arena_ = std::move(*arena);
  registered_arena_.emplace(arena_.span(), transport::RemoteAccess::none);
  auto pool =
      transport::BufferPool::create(options_.pool, transport::RemoteAccess::read_write, {.name = "rbt-initiator-data"});
  if (!pool) return rbt::failure(std::move(pool.error()));
  pool_ = std::move(*pool);
  return {};
}

Result<void> Queue::begin_connecting(Instant deadline) {
  // As many receives as commands can be outstanding, and one: a response always finds a buffer.
  auto group = fabric_.open_poll_group(reactor_, {.receive_depth = entries_, .receive_size = kReceiveBytes}, *this);
  if (!group) return rbt::failure(std::move(group.error()));
  group_ = std::move(*group);
  const nvme::CmRequestData request = nvme::encode_cm_request(
      {.qid = options_.qid, .host_receives = entries_, .host_sends = entries_, .cntlid = options_.cntlid});
  advance(QueueState::connecting);
  // A little less than there is: the fabric knows more about why nobody answers, and should be the one to say so. All of
  // the rest, because a request that is lost is repeated only after 4.3 s (the Linux connection manager's timeout).
  const Duration timeout =
      std::max<Duration>((deadline - reactor_.clock().now()) * 9 / 10, std::chrono::milliseconds(1));
  auto connection = group_->connect(
      options_.uri,
      {.private_data = nvme::wire_bytes(request), .send_depth = entries_ + 2 * kSignalInterval, .timeout = timeout},
      *this);
  if (connection) {
    connection_ = *connection;
    return {};
  }
  failure_ = connection.error();
  outcome_ = Outcome::disconnected;
  advance(QueueState::closing);
  advance(QueueState::closed);
  return rbt::failure(std::move(connection.error()));
}

void Queue::on_established(std::span<const std::byte> private_data) {
  if (state_ != QueueState::connecting) return;
  limits_ = connection_->limits();
  domain_ = &connection_->domain();
  signal_interval_ = std::clamp(limits_.send_depth / 4, std::uint32_t{1}, kSignalInterval);
  // CRQSIZE: no more commands than the controller has receives. 0 or nothing: not told (padding looks like that).
  if (const auto receives = nvme::parse_cm_accept(private_data); receives && *receives != 0 && *receives < depth_) {
    depth_ = *receives;
    entries_ = depth_ + 1;
    std::erase_if(free_slots_, [this](std::uint32_t slot) { return slot >= depth_; });
  }
  advance(QueueState::live);
}

Result<void> Queue::register_memory() {
  for (transport::RegisteredMemory* memory : {&*registered_arena_, &pool_->memory()}) {
    auto registered = memory->ensure(*domain_);
    if (!registered) return registered;
  }
  arena_lkey_ = registered_arena_->in(*domain_)->lkey();
  return {};
}

// ---- commands out

std::byte* Queue::capsule(std::uint32_t slot) const noexcept {
  return arena_.data() + slot * kCapsuleBytes;
}

std::optional<std::uint32_t> Queue::take_slot() noexcept {
  if (free_slots_.empty()) return std::nullopt;
  const std::uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

bool Queue::send(std::uint32_t index, nvme::SubmissionQueueEntry entry, const transport::Segment& in_capsule,
                 ResponseHandler& handler, Instant deadline) {
  if (!live()) {
    give_back(index);
    return false;
  }
  Slot& slot = slots_[index];
  slot.generation = static_cast<std::uint8_t>((slot.generation + 1) & 0x3f);
  entry.cid = static_cast<std::uint16_t>(index | unsigned{slot.generation} << kSlotBits);
  // The slot's former SEND may still be unacknowledged although its response is here: acknowledgements are lost, responses
  // are not. Writing over its capsule is safe all the same: the responder has the message, so what the adapter might
  // send again from here is a duplicate by its PSN, which the responder acknowledges and drops unread (IBA 9.7.5.1.4).
  // Only the memory must stay registered, which it does until the connection is closed.
  (void)nvme::write_wire(std::span(capsule(index), kCapsuleBytes), entry);
  slot.handler = &handler;
  slot.in_capsule = in_capsule;
  slot.sent = reactor_.now();
  slot.deadline = deadline;
  slot.expired = false;
  slot.posted = false;
  link_newest(index);
  ++outstanding_;
  if (deadline < timer_at_) arm_deadline(deadline);
  if (waiting_to_post_ != 0 || post(index) != transport::PostResult::posted)
    ++waiting_to_post_;  // dead: on_closed tells
  return true;
}

transport::PostResult Queue::post(std::uint32_t index) {
  Slot& slot = slots_[index];
  const std::array<transport::Segment, 2> segments = {
      transport::Segment{capsule(index), static_cast<std::uint32_t>(kCapsuleBytes), arena_lkey_}, slot.in_capsule};
  transport::WorkRequest request;
  request.opcode = transport::Opcode::send;
  request.signaled = unsignaled_ + 1 >= signal_interval_;
  request.wr_id = index;
  request.segments = std::span(segments).first(slot.in_capsule.length != 0 ? 2 : 1);
  const transport::PostResult result = connection_->post(std::span(&request, 1));
  if (result != transport::PostResult::posted) return result;
  slot.posted = true;
  unsignaled_ = request.signaled ? 0 : unsignaled_ + 1;
  return result;
}

// The send queue was full: posts, in order of sending, what had to wait. Something signaled is in the queue then, because
// the interval is shorter than the queue; its completion leads here.
void Queue::post_waiting() {
  for (std::uint32_t slot = oldest_; slot != kNone && waiting_to_post_ != 0 && live(); slot = slots_[slot].newer) {
    if (slots_[slot].posted) continue;
    if (post(slot) != transport::PostResult::posted) return;
    --waiting_to_post_;
  }
}

// ---- responses in

void Queue::on_completions(std::span<const transport::Completion> batch) {
  for (const transport::Completion& completion : batch) {
    if (completion.type == transport::Completion::Type::receive &&
        completion.status == transport::CompletionStatus::success) {
      if (completion.invalidated_rkey)
        violate(fmt::format("a response invalidated memory key {:#x}, which no command asked for",
                            *completion.invalidated_rkey));
      else
        handle_response(completion.message);
      group_->release(completion.message.buffer_id);
    } else if (completion.status == transport::CompletionStatus::success) {
      if (waiting_to_post_ != 0) post_waiting();
    } else if (completion.status != transport::CompletionStatus::flushed) {
      fail(Outcome::disconnected,
           Error(ErrorKind::disconnected, fmt::format("sending a command failed: {}", name(completion.status))));
    } else {
      // Flushed: the connection has failed; on_disconnected() says why, or has. If it does not, this is all there is.
      fail(Outcome::disconnected, Error(ErrorKind::disconnected, "the connection went to the error state"));
    }
  }
}

void Queue::handle_response(const transport::ReceivedMessage& message) {
  if (!live()) return;
  const auto entry = nvme::parse_response_capsule(message.bytes);
  if (!entry) return violate(fmt::format("a response of {} bytes; 16 are needed", message.bytes.size()));
  const std::uint16_t cid = entry->cid.get();
  const std::uint32_t index = cid & kSlotMask;
  if (index >= slots_.size() || slots_[index].handler == nullptr || !slots_[index].posted ||
      slots_[index].generation != cid >> kSlotBits)
    return violate(fmt::format("a response with CID {:#06x}, which no outstanding command has ({} outstanding)", cid,
                               outstanding_));
  if (created_ && entry->sqhd.get() >= entries_)
    return violate(fmt::format("a response with SQHD {}, beyond the queue's {} entries", entry->sqhd.get(), entries_));
  // Status bit 0, the phase tag, means nothing over fabrics (Base 2.0, 3.3.3.2): from_completion() drops it.
  finish(index, entry->status().ok() ? Outcome::success : Outcome::failed, *entry);
}

void Queue::finish(std::uint32_t index, Outcome outcome, const nvme::CompletionQueueEntry& entry) {
  Slot& slot = slots_[index];
  ResponseHandler* const handler = std::exchange(slot.handler, nullptr);
  if (!slot.posted) --waiting_to_post_;
  unlink(index);
  --outstanding_;
  if (index < depth_) free_slots_.push_back(index);
  handler->on_response(index, outcome, entry);
}

void Queue::link_newest(std::uint32_t index) noexcept {
  slots_[index].older = newest_;
  slots_[index].newer = kNone;
  (newest_ == kNone ? oldest_ : slots_[newest_].newer) = index;
  newest_ = index;
}

void Queue::unlink(std::uint32_t index) noexcept {
  const Slot& slot = slots_[index];
  (slot.older == kNone ? oldest_ : slots_[slot.older].newer) = slot.newer;
  (slot.newer == kNone ? newest_ : slots_[slot.newer].older) = slot.older;
}

// ---- deadlines: one timer for all, at the earliest deadline that was ever seen since it last ran

void Queue::arm_deadline(Instant deadline) {
  timer_at_ = deadline;
  deadline_timer_.arm(deadline);
}

void Queue::check_deadlines() {
  timer_at_ = Instant::max();
  if (!live()) return;
  const Instant now = reactor_.now();
  Instant next = Instant::max();
  std::uint32_t expired = 0;
  std::uint32_t oldest_expired = kNone;
  for (std::uint32_t index = oldest_; index != kNone; index = slots_[index].newer) {
    Slot& slot = slots_[index];
    slot.expired = slot.deadline <= now;
    if (slot.expired) {
      if (expired++ == 0) oldest_expired = index;
    } else {
      next = std::min(next, slot.deadline);
    }
  }
  // A caller that has not turned its reactor for a while finds timers due before the answers that came meanwhile: they
  // get one more turn to be seen.
  if (expired != 0 && !std::exchange(last_look_, true)) return arm_deadline(now);
  last_look_ = false;
  if (expired != 0) return fail(Outcome::disconnected, not_answered(oldest_expired, expired));
  if (next != Instant::max()) arm_deadline(next);
}

Error Queue::not_answered(std::uint32_t oldest_expired, std::uint32_t expired) const {
  const Slot& slot = slots_[oldest_expired];
  nvme::SubmissionQueueEntry entry;
  std::memcpy(&entry, capsule(oldest_expired), sizeof entry);  // as send() wrote it
  std::string what = fmt::format("{} was not answered within {}", command_name(options_.qid, entry),
                                 format_duration(slot.deadline - slot.sent));
  if (expired > 1) what += fmt::format(", nor were {} other commands in their time", expired - 1);
  return {ErrorKind::timed_out, what + "; the connection is closed for it"};
}

// ---- the end

void Queue::violate(std::string what) {
  fail(Outcome::disconnected, Error(ErrorKind::protocol, "the target sent " + std::move(what)));
}

void Queue::fail(Outcome outcome, Error error) {
  if (state_ != QueueState::connecting && state_ != QueueState::live) return;
  const bool lost = live() && outcome != Outcome::aborted;
  if (lost) {
    error = std::move(error).within(label_);
    reactor_.logger().warning("{}", error.message());
  }
  outcome_ = outcome;
  failure_ = std::move(error);
  advance(QueueState::closing);
  deadline_timer_.cancel();
  connection_->close();
  if (lost && options_.owner != nullptr) options_.owner->on_queue_lost();
}

void Queue::on_disconnected(const transport::Disconnect& disconnect) {
  fail(Outcome::disconnected, explain(disconnect, state_ == QueueState::connecting));
}

void Queue::on_closed() {
  if (state_ == QueueState::connecting ||
      state_ == QueueState::live)  // without on_disconnected(): cannot be, costs nothing
    fail(Outcome::disconnected, Error(ErrorKind::disconnected, "the connection ended"));
  connection_ = nullptr;
  advance(QueueState::closed);
  while (oldest_ != kNone)
    finish(oldest_, slots_[oldest_].expired ? Outcome::timed_out : outcome_, {});
  if (options_.owner != nullptr) options_.owner->on_queue_closed(outcome_);
}

void Queue::close() {
  if (state_ == QueueState::idle || state_ == QueueState::closed) return;
  fail(Outcome::aborted, Error(ErrorKind::disconnected, fmt::format("{} was closed", label_)));
  const auto closed = [this] { return state_ == QueueState::closed; };
  const Instant deadline = reactor_.clock().now() + kCloseBound;
  // A reactor that was told to stop does not wait any more: then it is turned until the time is up.
  if (!reactor_.run_until(closed, deadline))
    for (std::uint64_t turns = 0; !closed() && turns < kCloseTurnsMax && reactor_.clock().now() < deadline; ++turns)
      if (!reactor_.turn()) std::this_thread::yield();
  // Going on would hand memory back that an adapter may still write to.
  check(closed(), "the fabric lets a closed connection's memory go within 5 s");
}

const transport::PollGroupCounters& Queue::transport_counters() const noexcept {
  return group_->counters();
}

}  // namespace rbt::initiator
