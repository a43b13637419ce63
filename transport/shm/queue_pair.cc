#include "transport/shm/queue_pair.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "transport/shm/address.h"
#include "transport/shm/group.h"

namespace rbt::transport::shm {

namespace {

constexpr std::uint64_t kRdmaLengthMax = std::uint64_t{1} << 30;
constexpr Duration kConnectRetry = std::chrono::milliseconds(10);
// A peer that is in the middle of a copy when we close: how often we look, and for how long. The copy itself is bounded
// to kCopyBudget bytes, so only a peer that is stopped, or lies, ever takes this long.
constexpr Duration kCloseRetry = std::chrono::milliseconds(1);
constexpr Duration kCloseTimeout = std::chrono::seconds(2);
// Packets of one socket per turn: the rest waits for the next one.
constexpr std::size_t kPacketsPerTurn = 64;

struct Transition {
  State from;
  State to;
};
constexpr Transition kTransitions[] = {
    {State::connecting, State::greeted},  {State::greeted, State::established}, {State::accepted, State::established},
    {State::established, State::ending},  {State::connecting, State::failed},   {State::greeted, State::failed},
    {State::accepted, State::failed},     {State::established, State::failed},  {State::ending, State::failed},
    {State::connecting, State::closing},  {State::greeted, State::closing},     {State::accepted, State::closing},
    {State::established, State::closing}, {State::ending, State::closing},      {State::failed, State::closing},
    {State::closing, State::closed},
};

}  // namespace

std::string_view name(State state) noexcept {
  switch (state) {
    case State::connecting: return "connecting";
    case State::greeted: return "greeted";
    case State::accepted: return "accepted";
    case State::established: return "established";
    case State::ending: return "ending";
    case State::failed: return "failed";
    case State::closing: return "closing";
    case State::closed: return "closed";
  }
  return "unknown";
}

QueuePair::QueuePair(Group& group, ConnectionHandler& handler, QueuePairOptions options)
    : group_(group),
      handler_(handler),
      side_(options.side),
      state_(options.side == kConnector ? State::connecting : State::accepted),
      socket_(std::move(options.socket)),
      link_(socket_.get(), options.ring, options.side, group.reactor()),
      ring_(*link_.ring()),
      producer_(ring_, side_),
      consumer_(ring_, side_, group.receives().size()),
      copies_(ring_, side_),
      requests_(options.send_depth),
      remote_(options.remote),
      limits_{.send_depth = options.send_depth,
              .read_depth = options.read_depth,
              .segments_max = QueuedRequest::kSegmentsMax,
              .inline_max = QueuedRequest::kInlineMax,
              .path_mtu = 0,
              .message_max = kRdmaLengthMax},
      peer_(std::move(options.peer)),
      timer_(group.reactor().timers(), [this] { on_timer(); }),
      deadline_(group.reactor().clock().now() + options.timeout),
      peer_receive_size_(options.peer_receive_size) {
  timer_.arm(deadline_);
}

QueuePair::~QueuePair() {
  unwatch();
  if (attached_) group_.domain().detach(link_);
}

ProtectionDomain& QueuePair::domain() const noexcept {
  return group_.domain();
}

void QueuePair::advance(State next) noexcept {
  const bool legal = std::any_of(std::begin(kTransitions), std::end(kTransitions),
                                 [&](const Transition& t) { return t.from == state_ && t.to == next; });
  check(legal, "a shm connection takes an impossible step");
  state_ = next;
  if (next != State::established) group_.attend();
}

void QueuePair::unwatch() {
  if (std::exchange(watched_events_, 0) != 0) group_.reactor().unwatch(socket_.get());
}

Result<void> QueuePair::watch(std::uint32_t events) {
  if (watched_events_ == events) return {};
  unwatch();
  auto watched = group_.reactor().watch(socket_.get(), events, [this](std::uint32_t seen) { on_socket(seen); });
  if (watched) watched_events_ = events;
  return watched;
}

// ---- How it begins.

Result<void> QueuePair::begin_connect(const std::string& path, const HelloMessage& hello, Descriptor ring_fd) {
  path_ = path;
  hello_ = std::make_unique<HelloMessage>(hello);
  ring_fd_ = std::move(ring_fd);
  const int error = connect_socket(socket_.get(), path);
  if (error == EAGAIN) {
    timer_.arm(group_.reactor().now() + kConnectRetry);
    return {};
  }
  if (error != 0) return failure(connect_error(error, path));
  if (!try_connect())
    return failure(ErrorKind::resource,
                   fmt::format("connecting to {}: the hello could not be sent: too many descriptors "
                               "are on their way between processes, or open (`ulimit -n`)",
                               path));
  return {};
}

// The socket is connected: says hello. If the listener has turned us away already, what it said is there to be read.
bool QueuePair::try_connect() {
  peer_ = describe_peer(socket_.get());
  if (send(socket_.get(), *hello_, ring_fd_.get()) == Sent::full || !watch(EPOLLIN)) return false;
  ring_fd_.reset();
  hello_.reset();
  advance(State::greeted);
  timer_.arm(deadline_);
  return true;
}

Result<void> QueuePair::begin_accept(const AcceptMessage& message) {
  if (send(socket_.get(), message) != Sent::sent)
    return failure(ErrorKind::disconnected, fmt::format("accepting {}: it has gone away", peer_));
  auto watched = watch(EPOLLIN);
  if (!watched) return watched;
  group_.domain().attach(link_);
  attached_ = true;
  return {};
}

void QueuePair::establish() {
  advance(State::established);
  group_.attend();
  timer_.cancel();
  if (!requests_.empty()) group_.queue_work(*this);
}

void QueuePair::report_established() {
  if (established_reported_ || (state_ != State::established && state_ != State::ending)) return;
  established_reported_ = true;
  const auto data = side_ == kConnector ? std::span<const std::byte>(peer_data_).first(peer_data_size_)
                                        : std::span<const std::byte>();
  handler_.on_established(data);
}

void QueuePair::on_timer() {
  const Instant now = group_.reactor().now();
  switch (state_) {
    case State::connecting: {
      const int error = connect_socket(socket_.get(), path_);
      if (error == EAGAIN && now < deadline_) return timer_.arm(std::min(now + kConnectRetry, deadline_));
      if (error == 0 && try_connect()) return;
      return fail(Disconnect::Reason::unreachable, connect_error(error == 0 ? ENOBUFS : error, path_), State::failed);
    }
    case State::greeted:
    case State::accepted:
      return fail(Disconnect::Reason::unreachable,
                  Error(ErrorKind::timed_out, fmt::format("connecting with {}: it has not answered in time", peer_)),
                  State::failed);
    case State::established:
      if (behind_) violate("it has counted a revocation and not said of what");
      return;
    case State::closing: return finish_close();
    case State::ending:
    case State::failed:
    case State::closed: return;
  }
}

// ---- The socket.

void QueuePair::on_socket(std::uint32_t events) {
  if ((events & EPOLLOUT) != 0 && link_.flush()) {
    if (!watch(EPOLLIN)) on_peer_gone();
    group_.queue_work(*this);
  }
  read_socket(kPacketsPerTurn);
}

void QueuePair::read_socket(std::size_t packets_max) {
  Packet packet;
  bool asked_again = false;
  for (std::size_t i = 0; i < packets_max && state_ != State::failed && state_ != State::ending; ++i) {
    switch (shm::receive(socket_.get(), packet)) {
      case Received::nothing: return;
      case Received::packet:
        if (state_ != State::closing && state_ != State::closed) on_packet(packet);
        break;
      case Received::violation:
        return violate("a packet on its socket is longer than any message, or carries descriptors that no message has");
      case Received::closed:
        // A peer that closed without having read everything resets the socket; what it said last is behind the error.
        if (!std::exchange(asked_again, true)) continue;
        return on_peer_gone();
    }
  }
}

void QueuePair::on_packet(Packet& packet) {
  const auto type = packet.type();
  if (!type) return violate("a packet on its socket is no message of this version");
  if (*type == MessageType::doorbell && packet.as<DoorbellMessage>()) {
    ++group_.count().wake_ups;
    return;
  }
  if (*type == MessageType::announce && state_ == State::established) {
    const auto message = packet.as<AnnounceMessage>();
    if (!message) return violate("an announcement has the wrong size");
    if (auto done = remote_.announce(*message, packet.descriptor); !done) violate(done.error().message());
    return;
  }
  if (*type == MessageType::announce && state_ == State::accepted)
    return violate("it announced a region before it was ready");
  if (*type == MessageType::revoke && state_ == State::established) {
    const auto message = packet.as<RevokeMessage>();
    if (!message || !remote_.revoke(message->key)) return violate("it revoked a region that it has not announced");
    ++revocations_read_;
    if (behind_) group_.queue_work(*this);
    return;
  }
  if (*type == MessageType::goodbye && (state_ == State::established || state_ == State::accepted)) {
    const auto message = packet.as<GoodbyeMessage>();
    if (!message || message->text_size > kTextMax) return violate("its farewell is malformed");
    const State next = state_ == State::established ? State::ending : State::failed;
    if (message->in_order == 1)
      return fail(Disconnect::Reason::peer_closed,
                  Error(ErrorKind::disconnected, fmt::format("{} has closed the connection", peer_)), next);
    return fail(Disconnect::Reason::lost,
                Error(ErrorKind::disconnected,
                      fmt::format("{} has given the connection up: {}", peer_,
                                  printable(std::string_view(message->text.data(), message->text_size), kTextMax))),
                next);
  }
  on_handshake_packet(packet, *type);
}

void QueuePair::on_handshake_packet(const Packet& packet, MessageType type) {
  if (type == MessageType::ready && state_ == State::accepted && packet.as<ReadyMessage>()) return establish();
  if (type == MessageType::accept && state_ == State::greeted) {
    const auto message = packet.as<AcceptMessage>();
    if (!message || message->private_size > kAcceptDataMax || message->receive_size == 0 ||
        message->receive_size > kReceiveSizeMax)
      return violate("its answer to our hello is malformed");
    peer_receive_size_ = message->receive_size;
    peer_data_size_ = message->private_size;
    std::copy(message->private_data.begin(), message->private_data.end(), peer_data_.begin());
    if (send(socket_.get(), ReadyMessage{}) == Sent::gone) return on_peer_gone();
    establish();
    group_.domain().attach(link_);
    attached_ = true;
    return;
  }
  if (type == MessageType::refuse && state_ == State::greeted) {
    const auto message = packet.as<RefuseMessage>();
    if (!message || message->data_size > kTextMax) return violate("its refusal is malformed");
    peer_data_size_ = message->data_size;
    peer_data_ = message->data;
    const bool by_consumer = message->reason == Refusal::by_consumer;
    std::string text = fmt::format("connecting with {}: refused", peer_);
    if (!by_consumer)
      text += ": " +
              printable(std::string_view(reinterpret_cast<const char*>(peer_data_.data()), peer_data_size_), kTextMax);
    if (!by_consumer) peer_data_size_ = 0;
    const ErrorKind kind = message->reason == Refusal::not_allowed ? ErrorKind::permission
                           : message->reason == Refusal::malformed ? ErrorKind::protocol
                                                                   : ErrorKind::unreachable;
    return fail(Disconnect::Reason::refused, Error(kind, std::move(text)), State::failed);
  }
  violate(fmt::format("message {} came in state {}", static_cast<unsigned>(type), name(state_)));
}

void QueuePair::on_peer_gone() {
  if (state_ == State::closing) return finish_close();
  if (state_ == State::failed || state_ == State::ending || state_ == State::closed) return;
  if (state_ == State::accepted)
    return fail(Disconnect::Reason::lost,
                Error(ErrorKind::disconnected, fmt::format("{} has gone before it was ready", peer_)), State::failed);
  if (state_ != State::established)
    return fail(Disconnect::Reason::unreachable,
                Error(ErrorKind::unreachable, fmt::format("connecting with {}: it went away without an answer", peer_)),
                State::failed);
  if (copies_.peer_closed())
    return fail(Disconnect::Reason::peer_closed,
                Error(ErrorKind::disconnected, fmt::format("{} has closed the connection", peer_)), State::ending);
  fail(Disconnect::Reason::lost,
       Error(ErrorKind::disconnected, fmt::format("{} is gone: it has died, or was cut off", peer_)), State::ending);
}

// ---- The end.

void QueuePair::fail(Disconnect::Reason reason, Error error, State next) {
  if (state_ == State::failed || state_ == State::ending || state_ == State::closing || state_ == State::closed) return;
  copies_.leave();
  disconnect_ = std::make_unique<Disconnect>();
  disconnect_->reason = reason;
  disconnect_->error = std::move(error);
  if (reason == Disconnect::Reason::refused)
    disconnect_->private_data = std::span<const std::byte>(peer_data_).first(peer_data_size_);
  timer_.cancel();
  unwatch();  // its end would stay readable for ever
  flush_requests();
  advance(next);
}

void QueuePair::violate(std::string_view what) {
  if (state_ == State::closing) return finish_close();
  say_goodbye(false, fmt::format("protocol violation: {}", what));
  fail(Disconnect::Reason::lost, Error(ErrorKind::protocol, fmt::format("{} broke the protocol: {}", peer_, what)),
       State::failed);
}

void QueuePair::say_goodbye(bool in_order, std::string_view text) noexcept {
  if (std::exchange(said_goodbye_, true)) return;  // the first one has the reason
  GoodbyeMessage message;
  message.in_order = in_order ? 1 : 0;
  message.text_size = put_bytes(message.text, text.data(), text.size());
  // If it does not get through, the end of the socket says the same, only shorter.
  [[maybe_unused]] const Sent sent = send(socket_.get(), message);
}

void QueuePair::flush_requests() {
  while (!requests_.empty()) {
    finish(requests_.front(), CompletionStatus::flushed);
    requests_.pop();
  }
}

void QueuePair::report_disconnected() {
  if (state_ == State::ending) {
    if (consumer_.pending() && !group_.receives().empty()) return group_.attend();
    advance(State::failed);
  }
  if (state_ != State::failed || disconnect_ == nullptr) return;
  const std::unique_ptr<Disconnect> disconnect = std::move(disconnect_);
  handler_.on_disconnected(*disconnect);
}

void QueuePair::close() {
  if (state_ == State::closing || state_ == State::closed) return;
  copies_.leave();
  disconnect_.reset();
  requests_.clear();
  group_.purge(*this);
  const bool knows_us = state_ == State::established || state_ == State::ending || state_ == State::failed;
  advance(State::closing);
  // The peer may be moving data into our memory this very moment; from here on it begins nothing new.
  link_.fence_all();
  if (knows_us) say_goodbye(true, {});
  unwatch();
  deadline_ = group_.reactor().now() + kCloseTimeout;
  finish_close();
}

// `closing`: done when the peer is in no copy, is dead, or has had its time.
void QueuePair::finish_close() {
  if (state_ != State::closing) return;
  const bool copying = attached_ && (link_.copying() & 1) != 0;
  if (copying && group_.reactor().now() < deadline_) {
    Packet packet;
    std::size_t budget = kPacketsPerTurn;
    Received got = Received::nothing;
    while (budget-- != 0 && (got = shm::receive(socket_.get(), packet)) == Received::packet) {
    }
    if (got != Received::closed) return timer_.arm(group_.reactor().now() + kCloseRetry);
  }
  timer_.cancel();
  advance(State::closed);
}

}  // namespace rbt::transport::shm
