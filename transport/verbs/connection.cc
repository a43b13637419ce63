#include "transport/verbs/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/check.h"
#include "transport/verbs/errors.h"
#include "transport/verbs/poll_group.h"

namespace rbt::transport::verbs {

namespace {

constexpr int kResolveTimeoutMs = 2000;  // per try; the connection's own timer is what counts
// rxe and HCAs say within microseconds that a queue pair in the error state takes no more receives. One that never says
// (the device is gone) is destroyed all the same after this: destroying is the fence.
constexpr Duration kLastReceiveTimeout = std::chrono::milliseconds(500);

using State = ConnectionState;

constexpr bool legal(State from, State to) noexcept {
  switch (to) {
    case State::resolving_address: return false;
    case State::resolving_route: return from == State::resolving_address;
    case State::connecting: return from == State::resolving_route;
    case State::accepted: return from == State::resolving_address;  // the passive side begins here
    case State::established: return from == State::connecting || from == State::accepted;
    case State::broken: return from != State::broken && from != State::closing;
    case State::closing: return from != State::closing;
  }
  return false;
}

}  // namespace

std::string_view name(ConnectionState state) noexcept {
  switch (state) {
    case State::resolving_address: return "resolving_address";
    case State::resolving_route: return "resolving_route";
    case State::connecting: return "connecting";
    case State::accepted: return "accepted";
    case State::established: return "established";
    case State::broken: return "broken";
    case State::closing: return "closing";
  }
  return "unknown";
}

VerbsConnection::VerbsConnection(Group& group, std::uint64_t number, ConnectionHandler& handler)
    : group_(group), number_(number), handler_(handler), timer_(group.reactor().timers(), [this] { on_timer(); }) {}

VerbsConnection::~VerbsConnection() = default;

void VerbsConnection::advance(State to) {
  check(legal(state_, to), "a verbs connection took an illegal step");
  state_ = to;
}

Result<void> VerbsConnection::connect(const SocketAddress& to, const ConnectOptions& options) {
  connect_options_ = options;
  private_data_.assign(options.private_data.begin(), options.private_data.end());
  connect_options_.private_data = private_data_;
  peer_ = to_text(to.get());
  timeout_ = options.timeout;
  rdma_cm_id* id = nullptr;
  const bool loopback = is_loopback(to.get());
  if (rdma_create_id(group_.channel()->get(), &id, static_cast<CmEndpoint*>(this), RDMA_PS_TCP) != 0)
    return failure(resolve_failed(errno, "rdma_create_id", peer_, loopback, {}));
  id_.reset(id);
  SocketAddress destination = to;
  if (rdma_resolve_addr(id, nullptr, destination.get(), kResolveTimeoutMs) != 0) {
    const int error_number = errno;  // before describe() makes calls of its own
    return failure(resolve_failed(error_number, "rdma_resolve_addr", peer_, loopback, group_.devices().describe()));
  }
  timer_.arm(group_.reactor().clock().now() + timeout_);
  return {};
}

Result<void> VerbsConnection::make_queue_pair(std::uint32_t send_depth) {
  auto queues = group_.queues_for(id_->verbs);
  if (!queues) return failure(std::move(queues.error()));
  auto pair = QueuePair::create(id_.get(), **queues, group_.owner(number_, (*queues)->device), send_depth,
                                group_.devices().options().inline_max, group_.reactor().logger());
  if (!pair) return failure(std::move(pair.error()));
  queue_pair_ = std::move(*pair);
  group_.add_queue_pair(*this);
  return {};
}

Result<void> VerbsConnection::accept(Request& request, const AcceptOptions& options) {
  peer_ = request.peer();
  id_ = request.take();
  id_->context = static_cast<CmEndpoint*>(this);
  const std::uint32_t limit = group_.devices().options().read_depth_max;
  if (auto made = make_queue_pair(options.send_depth); !made) return made;
  const DeviceLimits& device = queue_pair_->queues().device.limits();
  const std::uint32_t reads_in = std::min({request.peer_outgoing_reads(), device.reads_in_max, limit});
  const std::uint32_t reads_out =
      std::min({options.outgoing_reads, request.peer_incoming_reads(), device.reads_out_max, limit});
  if (auto ready = queue_pair_->ready(id_.get(), reads_in, reads_out); !ready) return ready;
  rdma_conn_param parameters{};
  parameters.private_data = options.private_data.data();
  parameters.private_data_len = static_cast<std::uint8_t>(options.private_data.size());
  parameters.responder_resources = static_cast<std::uint8_t>(reads_in);
  parameters.initiator_depth = static_cast<std::uint8_t>(reads_out);
  parameters.flow_control = 1;
  parameters.rnr_retry_count = 7;
  parameters.srq = 1;
  parameters.qp_num = queue_pair_->number();
  if (rdma_accept(id_.get(), &parameters) != 0)
    return errno_failure(errno, fmt::format("accepting {}: rdma_accept", peer_), "the peer may have gone");
  advance(State::accepted);
  timeout_ = std::min(options.timeout, request.half_open());
  timer_.arm(group_.reactor().clock().now() + timeout_);
  return {};
}

void VerbsConnection::on_cm_event(const CmEvent& event) {
  if (event.type == RDMA_CM_EVENT_DISCONNECTED) peer_left_ = true;
  if (state_ == State::closing || state_ == State::broken) return;
  switch (event.type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED: return on_address_resolved();
    case RDMA_CM_EVENT_ROUTE_RESOLVED: return on_route_resolved();
    case RDMA_CM_EVENT_CONNECT_RESPONSE: return on_response(event);
    case RDMA_CM_EVENT_ESTABLISHED:
      if (state_ == State::accepted) establish({});
      return;
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
      return fail(
          Disconnect::Reason::unreachable,
          resolve_failed(-event.status,
                         event.type == RDMA_CM_EVENT_ADDR_ERROR ? "resolving the address" : "resolving the route",
                         peer_, false, group_.devices().describe()));
    case RDMA_CM_EVENT_REJECTED: return on_rejected(event);
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
      return fail(
          Disconnect::Reason::unreachable,
          Error::from_errno(event.status < 0 ? -event.status : ETIMEDOUT, fmt::format("connecting to {}", peer_),
                            "the peer's machine did not answer: is it up, is UDP port 4791 open?"));
    case RDMA_CM_EVENT_DISCONNECTED:
      group_.drain();  // what it said before it left is heard before that
      if (state_ == State::closing || state_ == State::broken) return;
      return fail(Disconnect::Reason::peer_closed,
                  Error(ErrorKind::disconnected, fmt::format("{} disconnected", peer_)));
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      return fail(Disconnect::Reason::device_removed,
                  Error(ErrorKind::not_found, fmt::format("connection with {}: the RDMA device was removed", peer_)));
    case RDMA_CM_EVENT_ADDR_CHANGE:
      return fail(Disconnect::Reason::address_changed,
                  Error(ErrorKind::disconnected,
                        fmt::format("connection with {}: its address moved to another device", peer_)));
    case RDMA_CM_EVENT_CONNECT_REQUEST:
    case RDMA_CM_EVENT_MULTICAST_JOIN:
    case RDMA_CM_EVENT_MULTICAST_ERROR:
    case RDMA_CM_EVENT_TIMEWAIT_EXIT: return;
  }
}

void VerbsConnection::on_address_resolved() {
  advance(State::resolving_route);
  if (rdma_resolve_route(id_.get(), kResolveTimeoutMs) == 0) return;
  const int error_number = errno;
  fail(Disconnect::Reason::unreachable,
       resolve_failed(error_number, "rdma_resolve_route", peer_, is_loopback(rdma_get_peer_addr(id_.get())),
                      group_.devices().describe()));
}

void VerbsConnection::on_route_resolved() {
  advance(State::connecting);
  if (auto made = make_queue_pair(connect_options_.send_depth); !made)
    return fail(Disconnect::Reason::local, std::move(made.error()).within(fmt::format("connecting to {}", peer_)));
  const DeviceLimits& device = queue_pair_->queues().device.limits();
  const std::uint32_t limit = group_.devices().options().read_depth_max;
  rdma_conn_param parameters{};
  parameters.private_data = private_data_.data();
  parameters.private_data_len = static_cast<std::uint8_t>(private_data_.size());
  parameters.responder_resources =
      static_cast<std::uint8_t>(std::min({connect_options_.incoming_reads, device.reads_in_max, limit}));
  parameters.initiator_depth = static_cast<std::uint8_t>(std::min(device.reads_out_max, limit));
  parameters.flow_control = 1;
  parameters.retry_count = 6;      // 7 would be for ever on rxe
  parameters.rnr_retry_count = 7;  // for ever: a target without a free buffer is not dead
  parameters.srq = 1;
  parameters.qp_num = queue_pair_->number();
  if (rdma_connect(id_.get(), &parameters) != 0)
    fail(Disconnect::Reason::unreachable,
         Error::from_errno(errno, fmt::format("connecting to {}: rdma_connect", peer_)));
}

void VerbsConnection::on_response(const CmEvent& event) {
  if (state_ != State::connecting) return;
  if (auto ready = queue_pair_->ready(id_.get(), QueuePair::kNegotiated, QueuePair::kNegotiated); !ready)
    return fail(Disconnect::Reason::local, std::move(ready.error()).within(fmt::format("connecting to {}", peer_)));
  if (rdma_establish(id_.get()) != 0)
    return fail(
        Disconnect::Reason::unreachable,
        Error::from_errno(errno, fmt::format("connecting to {}: rdma_establish", peer_), "the peer may have gone"));
  establish(event.private_data());
}

void VerbsConnection::on_rejected(const CmEvent& event) {
  const bool refused = event.status == kRejectConsumer;
  fail(refused ? Disconnect::Reason::refused : Disconnect::Reason::unreachable,
       Error(ErrorKind::unreachable, fmt::format("connecting to {}: rejected, reason {}: {}", peer_, event.status,
                                                 reject_reason(event.status))),
       event.private_data());
}

void VerbsConnection::establish(std::span<const std::byte> private_data) {
  advance(State::established);
  timer_.cancel();
  queue_pair_->open_sends();
  if (queue_pair_->sends().pending()) group_.mark_dirty(*this);
  handler_.on_established(private_data);
}

void VerbsConnection::on_first_message() {
  if (state_ != State::accepted) return;
  rdma_notify(id_.get(), IBV_EVENT_COMM_EST);  // if it fails, the connection manager finds out by itself
  establish({});
}

void VerbsConnection::fail(Disconnect::Reason reason, Error error, std::span<const std::byte> private_data) {
  advance(State::broken);
  timer_.cancel();
  if (queue_pair_) queue_pair_->fail();
  Disconnect disconnect;
  disconnect.reason = reason;
  disconnect.private_data = private_data;
  disconnect.error = std::move(error);
  handler_.on_disconnected(disconnect);
}

void VerbsConnection::on_completion_error(CompletionStatus status, std::uint32_t vendor_error) {
  if (state_ == State::closing || state_ == State::broken) return;
  const bool lost = status == CompletionStatus::retry_exceeded || status == CompletionStatus::flushed;
  fail(lost ? Disconnect::Reason::lost : Disconnect::Reason::local,
       Error(ErrorKind::disconnected, fmt::format("connection with {}: a work request failed: {} (vendor error {:#x})",
                                                  peer_, transport::name(status), vendor_error)));
}

void VerbsConnection::on_post_error(int error_number) {
  if (state_ == State::closing || state_ == State::broken) return;
  fail(Disconnect::Reason::local,
       Error::from_errno(error_number, fmt::format("connection with {}: ibv_post_send", peer_)));
}

void VerbsConnection::on_device_event(DeviceEvent event, const Device* device) {
  switch (event) {
    case DeviceEvent::last_receive_reached:
      last_receive_reached_ = true;
      if (state_ == State::closing) {
        quiet_ = true;
        return;
      }
      [[fallthrough]];
    case DeviceEvent::queue_pair_failed:
      if (state_ == State::broken) return;
      group_.drain();  // a completion may say more
      if (state_ == State::closing || state_ == State::broken) return;
      return fail(
          Disconnect::Reason::lost,
          Error(ErrorKind::disconnected,
                fmt::format("connection with {}: its queue pair failed: the peer used a key or a range that is not "
                            "its own, sent more than a receive buffer holds, or invalidated what it may not",
                            peer_)));
    case DeviceEvent::addresses_changed:
      if (state_ == State::closing || state_ == State::broken || !queue_pair_ ||
          &queue_pair_->queues().device != device)
        return;
      if (device->lost_address(id_->port_num, rdma_get_local_addr(id_.get())))
        fail(Disconnect::Reason::address_changed,
             Error(ErrorKind::disconnected, fmt::format("connection with {}: our address {} was removed from {}", peer_,
                                                        to_text(rdma_get_local_addr(id_.get())), device->name())));
      return;
    case DeviceEvent::failed:
      if (state_ == State::closing || state_ == State::broken || !queue_pair_ ||
          &queue_pair_->queues().device != device)
        return;
      return fail(Disconnect::Reason::device_removed,
                  Error(ErrorKind::io, fmt::format("connection with {}: {} failed", peer_, device->name())));
  }
}

void VerbsConnection::on_timer() {
  if (state_ == State::closing) {
    quiet_ = true;
    return;
  }
  if (state_ == State::established || state_ == State::broken) return;
  const auto seconds = std::chrono::duration<double>(timeout_).count();
  fail(Disconnect::Reason::unreachable,
       Error(ErrorKind::timed_out,
             state_ == State::accepted
                 ? fmt::format("{} asked for a connection and did not take it within {:.1f} s", peer_, seconds)
                 : fmt::format(
                       "connecting to {}: no answer within {:.1f} s (state {}): is the machine up, is UDP port 4791 "
                       "open?",
                       peer_, seconds, verbs::name(state_))));
}

PostResult VerbsConnection::post(std::span<const WorkRequest> requests) {
  if (state_ == State::broken || state_ == State::closing || !queue_pair_) return PostResult::dead;
  const PostResult result = queue_pair_->sends().post(requests);
  if (result == PostResult::posted) group_.mark_dirty(*this);
  return result;
}

void VerbsConnection::close() {
  if (state_ == State::closing) return;
  const bool told = state_ == State::established || state_ == State::broken || state_ == State::accepted;
  advance(State::closing);
  timer_.cancel();
  if (told && id_ && queue_pair_) asked_to_leave_ = rdma_disconnect(id_.get()) == 0;
  if (queue_pair_) queue_pair_->fail();
  quiet_ = !queue_pair_ || !queue_pair_->was_ready() || last_receive_reached_;
  if (!quiet_) timer_.arm(group_.reactor().clock().now() + kLastReceiveTimeout);
  group_.begin_close(*this);
}

void VerbsConnection::dismantle() {
  timer_.cancel();
  queue_pair_.reset();
}

CmId VerbsConnection::take_id_to_linger() noexcept {
  return asked_to_leave_ && !peer_left_ ? std::move(id_) : CmId();
}

void VerbsConnection::reject() noexcept {
  if (id_) rdma_reject(id_.get(), nullptr, 0);
}

const ConnectionLimits& VerbsConnection::limits() const noexcept {
  return queue_pair_ ? queue_pair_->limits() : no_limits_;
}

std::string VerbsConnection::local_host() const {
  return id_ != nullptr ? host_text(rdma_get_local_addr(id_.get())) : std::string();
}

ProtectionDomain& VerbsConnection::domain() const noexcept {
  check(queue_pair_ != nullptr, "domain() of a connection whose device is not known yet");
  return queue_pair_->queues().device;
}

}  // namespace rbt::transport::verbs
