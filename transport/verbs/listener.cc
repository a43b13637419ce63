#include "transport/verbs/listener.h"

#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "transport/verbs/errors.h"

namespace rbt::transport::verbs {

Request::Request(CmId id, std::shared_ptr<EventChannel> channel, std::shared_ptr<Backlog> backlog, const CmEvent& event,
                 Duration half_open)
    : channel_(std::move(channel)),
      id_(std::move(id)),
      backlog_(std::move(backlog)),
      private_data_(event.private_data().begin(), event.private_data().end()),
      peer_(to_text(rdma_get_peer_addr(id_.get()))),
      // Named from our side: what it serves is what we may have outstanding (rdma_get_cm_event(3)).
      peer_incoming_reads_(event.initiator_depth),
      peer_outgoing_reads_(event.responder_resources),
      half_open_(half_open) {
  backlog_->fetch_add(1, std::memory_order_relaxed);
}

Request::~Request() {
  if (id_) reject({});
  backlog_->fetch_sub(1, std::memory_order_relaxed);
}

void Request::reject(std::span<const std::byte> private_data) {
  if (!id_) return;
  rdma_reject(id_.get(), private_data.data(),
              static_cast<std::uint8_t>(private_data.size()));  // it may have gone already
  id_.reset();
}

Result<void> Request::migrate(const std::shared_ptr<EventChannel>& channel) {
  if (channel == channel_) return {};
  // Every event of this identifier has been acknowledged, so this does not wait.
  if (rdma_migrate_id(id_.get(), channel->get()) != 0)
    return errno_failure(errno, fmt::format("accepting {}: rdma_migrate_id", peer_), "the peer may have gone");
  channel_ = channel;
  return {};
}

CmId Request::take() noexcept {
  return std::move(id_);
}

VerbsListener::VerbsListener(std::shared_ptr<EventChannel> channel, std::shared_ptr<Listeners> siblings,
                             const ListenOptions& options, ListenerHandler& handler, Logger& logger)
    : channel_(std::move(channel)),
      siblings_(std::move(siblings)),
      options_(options),
      handler_(handler),
      logger_(logger),
      backlog_(std::make_shared<Backlog>(0)) {
  siblings_->push_back(this);
}

VerbsListener::~VerbsListener() {
  std::erase(*siblings_, this);
}

Result<std::unique_ptr<VerbsListener>> VerbsListener::create(const SocketAddress& address,
                                                             std::shared_ptr<EventChannel> channel,
                                                             std::shared_ptr<Listeners> siblings,
                                                             const ListenOptions& options, ListenerHandler& handler,
                                                             Logger& logger, const std::string& devices) {
  const bool loopback = is_loopback(address.get());
  const std::string text = to_text(address.get());
  std::unique_ptr<VerbsListener> listener(
      new VerbsListener(std::move(channel), std::move(siblings), options, handler, logger));
  rdma_cm_id* id = nullptr;
  if (rdma_create_id(listener->channel_->get(), &id, static_cast<CmEndpoint*>(listener.get()), RDMA_PS_TCP) != 0)
    return failure(listen_failed(errno, "rdma_create_id", text, loopback, devices));
  listener->id_.reset(id);
  SocketAddress bound = address;
  if (rdma_bind_addr(id, bound.get()) != 0)
    return failure(listen_failed(errno, "rdma_bind_addr", text, loopback, devices));
  // Without an RDMA device of its own, the kernel lets anybody bind to a loopback address, and nobody ever gets there.
  if (loopback && id->verbs == nullptr)
    return failure(listen_failed(ENODEV, "rdma_bind_addr", text, loopback, devices));
  if (rdma_listen(id, options.backlog) != 0)
    return failure(listen_failed(errno, "rdma_listen", text, loopback, devices));
  listener->address_ = to_text(rdma_get_local_addr(id));
  return listener;
}

void VerbsListener::on_cm_event(const CmEvent& event) {
  if (event.type == RDMA_CM_EVENT_CONNECT_REQUEST) return on_request(event);
  if (event.type == RDMA_CM_EVENT_DEVICE_REMOVAL) return fail("its RDMA device was removed");
  if (event.type == RDMA_CM_EVENT_ADDR_CHANGE) return fail("its address moved to another device");
}

void VerbsListener::fail(std::string_view why) {
  if (!id_) return;
  id_.reset();  // the kernel waits for this before it lets a device go
  handler_.on_listener_failed(Error(
      ErrorKind::not_found,
      fmt::format("listening on {}: {}; nobody is heard there any more: listen again when it is back", address_, why)));
}

void VerbsListener::on_request(const CmEvent& event) {
  CmId id(event.id);
  if (backlog_->load(std::memory_order_relaxed) >= options_.backlog) {
    logger_.debug("{}: {} refused: {} requests wait for an answer, the backlog", address_,
                  to_text(rdma_get_peer_addr(id.get())), options_.backlog);
    rdma_reject(id.get(), nullptr, 0);
    return;
  }
  handler_.on_request(std::make_unique<Request>(std::move(id), channel_, backlog_, event, options_.half_open));
}

}  // namespace rbt::transport::verbs
