#include "transport/sim/queue_pair.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/check.h"
#include "transport/sim/poll_group.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

// How long the connection manager waits before it says the same again, and how often a goodbye is said.
constexpr Duration kCmRetry = std::chrono::milliseconds(200);
constexpr int kGoodbyesMax = 3;

void keep(std::array<std::byte, kReplyDataSize>& to, std::size_t& size, std::span<const std::byte> data,
          std::size_t padded) noexcept {
  to.fill(std::byte{0});
  std::copy_n(data.begin(), std::min(data.size(), padded), to.begin());
  size = padded;
}

}  // namespace

QueuePair::QueuePair(World& world, Group& group, Device& device, ConnectionHandler& handler, std::uint32_t send_depth)
    : world_(world), group_(group), device_(device), handler_(handler), id_(world.agenda().enroll(*this)) {
  const NetworkOptions& options = world.options();
  limits_.send_depth = std::clamp<std::uint32_t>(send_depth, 1, options.send_depth_max);
  limits_.segments_max = std::min<std::uint32_t>(options.segments_max, kSegmentsMax);
  limits_.inline_max = std::min<std::uint32_t>(options.inline_max, kInlineMax);
  limits_.path_mtu = options.path_mtu;
  limits_.message_max = options.message_max;
  wqes_.resize(limits_.send_depth);
  (void)group.receive_queue(device);  // there from the first connection on
}

QueuePair::~QueuePair() {
  if (state_ != State::dead) drop_partial_receive();
  world_.agenda().leave(id_);
}

const ConnectionLimits& QueuePair::limits() const noexcept {
  check(device_known_, "limits() of a connection made by connect(), from on_established() on");
  return limits_;
}

ProtectionDomain& QueuePair::domain() const noexcept {
  check(device_known_, "domain() of a connection made by connect(), from on_established() on");
  return device_.domain;
}

Machine& QueuePair::machine() const noexcept {
  return group_.machine();
}

QueuePair* QueuePair::find(ActorId id) const noexcept {
  return static_cast<QueuePair*>(world_.agenda().find(id));
}

std::string QueuePair::title() const {
  return fmt::format("connection {}:{} to {}", machine().host(), number(), peer_);
}

void QueuePair::schedule(Kind kind, Duration in, std::uint32_t epoch) {
  world_.agenda().schedule(world_.now() + in, id_, static_cast<std::uint32_t>(kind), epoch);
}

bool QueuePair::expects(const Event& event) const noexcept {
  switch (static_cast<Kind>(event.kind)) {
    case Kind::knock:
    case Kind::reply:
    case Kind::reject: return state_ == State::connecting && !disconnect_pending_;
    case Kind::ready_to_use: return state_ == State::accepted;
    case Kind::timeout: return (state_ == State::connecting || state_ == State::accepted) && !disconnect_pending_;
    case Kind::goodbye: return state_ != State::closing && state_ != State::closed && state_ != State::dead;
    case Kind::closed: return state_ == State::closing;
    case Kind::request_packet: return event.epoch == epoch_ && request_armed_;
    case Kind::response_packet: return event.epoch == epoch_ && response_armed_;
  }
  return false;
}

void QueuePair::on_event(const Event& event) {
  switch (static_cast<Kind>(event.kind)) {
    case Kind::knock: return on_knock();
    case Kind::reply: return on_reply();
    case Kind::reject: return on_reject();
    case Kind::ready_to_use: return on_ready_to_use();
    case Kind::timeout: return on_timeout();
    case Kind::goodbye: return on_goodbye();
    case Kind::closed: state_ = State::closed; return group_.push_closed(*this);
    case Kind::request_packet: return on_request_packet();
    case Kind::response_packet: return on_response_packet();
  }
}

void QueuePair::begin_connect(const RemoteAddress& remote, const ConnectOptions& options) {
  remote_ = remote;
  peer_ = remote.text();
  keep(cm_data_, cm_data_size_, options.private_data, kRequestDataSize);
  incoming_reads_ = std::min(options.incoming_reads, world_.options().read_depth_max);
  limits_.read_depth = world_.options().read_depth_max;
  timeout_ = options.timeout;
  world_.note(What::connecting, id_);
  schedule(Kind::timeout, timeout_);
  const Machine* target = world_.find_machine(remote.host);
  schedule(Kind::knock, world_.travel(machine(), target != nullptr ? *target : machine()));
}

void QueuePair::on_knock() {
  Machine* const target = world_.find_machine(remote_.host);
  if (target == nullptr)
    return disconnect(
        Disconnect::Reason::unreachable, ErrorKind::unreachable,
        fmt::format("connecting to nvme+sim://{}: no machine named {} in this network", peer_, remote_.host));
  if (!world_.reachable(machine(), *target)) return schedule(Kind::knock, kCmRetry);
  peer_machine_ = target;
  SimListener* const listener = target->listener(remote_.device, remote_.port);
  if (listener == nullptr) {
    reason_ = Disconnect::Reason::unreachable;
    error_ = Error(ErrorKind::unreachable,
                   fmt::format("connecting to nvme+sim://{}: nobody listens there; start the target first", peer_));
    return schedule(Kind::reject, world_.travel(*target, machine()));
  }
  if (listener->full()) {
    reason_ = Disconnect::Reason::refused;
    error_ = Error(ErrorKind::unreachable,
                   fmt::format("connecting to nvme+sim://{}: {} connects wait for an answer there already; try later",
                               peer_, listener->options().backlog));
    cm_data_size_ = 0;
    return schedule(Kind::reject, world_.travel(*target, machine()));
  }
  Device& device = *target->devices()[remote_.device];
  listener->group().push_request(*listener, std::make_unique<Request>(world_, *listener, *target, device, *this));
}

void QueuePair::begin_accept(Request& request, const AcceptOptions& options) {
  state_ = State::accepted;
  device_known_ = true;
  peer_ = request.peer();
  peer_machine_ = &request.connector_machine();
  peer_id_ = request.connector();
  limits_.read_depth =
      std::min({options.outgoing_reads, request.peer_incoming_reads(), world_.options().read_depth_max});
  request.answer();
  world_.note(What::accepted, id_, peer_id_);
  timeout_ = std::min(options.timeout, request.half_open());
  schedule(Kind::timeout, timeout_);
  QueuePair* const connector = find(peer_id_);
  if (connector == nullptr || connector->state_ != State::connecting) return;  // gave up: no ready-to-use will come
  keep(connector->cm_data_, connector->cm_data_size_, options.private_data, kReplyDataSize);
  connector->peer_id_ = id_;
  connector->schedule(Kind::reply, world_.travel(machine(), connector->machine()));
}

void QueuePair::send_reject(const Machine& from, std::span<const std::byte> private_data) {
  if (state_ != State::connecting) return;
  keep(cm_data_, cm_data_size_, private_data, kRejectDataSize);
  reason_ = Disconnect::Reason::refused;
  error_ = Error(ErrorKind::unreachable, fmt::format("connecting to nvme+sim://{}: the peer refused", peer_));
  schedule(Kind::reject, world_.travel(from, machine()));
}

void QueuePair::on_reply() {
  if (severed_ || !world_.reachable(*peer_machine_, machine())) return schedule(Kind::reply, kCmRetry);
  become_established();
  if (QueuePair* acceptor = find(peer_id_); acceptor != nullptr)
    acceptor->schedule(Kind::ready_to_use, world_.travel(machine(), *peer_machine_));
}

void QueuePair::on_reject() {
  if (!world_.reachable(*peer_machine_, machine())) return schedule(Kind::reject, kCmRetry);
  world_.note(What::rejected, id_);
  disconnect(reason_, error_.kind(), error_.message());
}

void QueuePair::on_ready_to_use() {
  if (severed_ || !world_.reachable(*peer_machine_, machine())) return schedule(Kind::ready_to_use, kCmRetry);
  become_established();
}

void QueuePair::on_timeout() {
  const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(timeout_).count();
  if (state_ == State::connecting)
    return disconnect(Disconnect::Reason::unreachable, ErrorKind::timed_out,
                      fmt::format("connecting to nvme+sim://{}: no answer within {} ms; is the machine up and the "
                                  "network whole?",
                                  peer_, waited));
  disconnect(Disconnect::Reason::lost, ErrorKind::timed_out,
             fmt::format("{}: the peer knocked, but did not follow within {} ms", title(), waited));
}

void QueuePair::become_established() {
  state_ = State::established;
  world_.note(What::established, id_, peer_id_);
  group_.push_established(*this);
}

void QueuePair::tell_established() {
  if (told_established_) return;
  told_established_ = device_known_ = true;
  // The accepting side hears nothing in a ready-to-use.
  handler_.on_established(remote_.host.empty() ? std::span<const std::byte>{}
                                               : std::span<const std::byte>(cm_data_.data(), cm_data_size_));
}

void QueuePair::disconnect(Disconnect::Reason reason, ErrorKind kind, std::string message, Tell tell) {
  epoch_++;
  request_armed_ = response_armed_ = false;
  drop_partial_receive();
  flush(head_);
  if (state_ != State::dead) state_ = State::failed;
  if (disconnect_pending_) return;
  if (tell == Tell::perhaps && world_.chance().once_in(world_.options().silent_failure)) return;
  disconnect_pending_ = true;
  reason_ = reason;
  error_ = Error(kind, std::move(message));
  world_.note(What::disconnected, id_, static_cast<std::uint64_t>(reason));
  group_.push_disconnected(*this);
}

void QueuePair::tell_disconnected() {
  // A connection that ends before its consumer has heard of its beginning never began.
  told_established_ = true;
  const bool with_data = reason_ == Disconnect::Reason::refused;
  handler_.on_disconnected({reason_, std::span(cm_data_.data(), with_data ? cm_data_size_ : 0), error_});
}

void QueuePair::send_goodbye() {
  if (peer_machine_ == nullptr || severed_) return;
  if (QueuePair* peer = find(peer_id_); peer != nullptr)
    peer->schedule(Kind::goodbye, world_.travel(machine(), *peer_machine_));
}

void QueuePair::on_goodbye() {
  if (severed_ || (peer_machine_ != nullptr && !world_.reachable(machine(), *peer_machine_))) {
    if (++goodbyes_ < kGoodbyesMax) schedule(Kind::goodbye, kCmRetry);
    return;
  }
  disconnect(Disconnect::Reason::peer_closed, ErrorKind::disconnected, fmt::format("{}: closed by the peer", title()));
}

void QueuePair::close() {
  if (state_ == State::closing || state_ == State::closed) return;
  const bool alone = state_ == State::dead;
  world_.note(What::closing, id_);
  epoch_++;
  request_armed_ = response_armed_ = false;
  drop_partial_receive();
  group_.forget(*this);
  doorbell_due_ = false;
  if (!alone) send_goodbye();
  state_ = State::closing;
  const auto delay_max = static_cast<std::uint64_t>(world_.options().close_delay_max.count());
  schedule(Kind::closed, Duration(static_cast<Duration::rep>(world_.chance().below(delay_max + 1))));
}

void QueuePair::stall(Instant until) noexcept {
  stalled_until_ = until;
  if (QueuePair* peer = find(peer_id_); peer != nullptr) peer->stalled_until_ = until;
}

void QueuePair::lose_device(Disconnect::Reason reason) {
  if (state_ == State::closing || state_ == State::closed || state_ == State::dead) return;
  disconnect(reason, ErrorKind::disconnected,
             fmt::format("{}: {}", title(),
                         reason == Disconnect::Reason::device_removed ? "the device was removed"
                                                                      : "the local address went away"));
}

void QueuePair::die(bool farewell) {
  if (farewell && state_ != State::closing && state_ != State::closed) send_goodbye();
  epoch_++;
  request_armed_ = response_armed_ = false;
  drop_partial_receive();
  if (state_ != State::closing && state_ != State::closed) state_ = State::dead;
}

}  // namespace rbt::transport::sim
