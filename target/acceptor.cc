#include "target/acceptor.h"

#include <utility>

#include "target/core.h"

namespace rbt::target {

namespace {
// What Linux hosts use and what discovery logs promise (ASQSZ); RDMA Transport 1.0, 3.3.
constexpr std::uint32_t kAdminDepthMax = 32;
constexpr Duration kOpenAgain = std::chrono::seconds(1);
}  // namespace

Acceptor::Acceptor(Core& core, transport::Fabric& fabric, const Uri& address)
    : core_(core),
      fabric_(fabric),
      address_(address),
      again_(core.reactors.front()->reactor().timers(), [this] { open_again(); }) {}

Result<std::unique_ptr<Acceptor>> Acceptor::listen(Core& core, transport::Fabric& fabric, const Uri& address) {
  // Connections may be placed anywhere, so every reactor needs its way into the fabric, before the threads run.
  for (const auto& reactor : core.reactors)
    if (auto opened = reactor->open_fabric(fabric); !opened) return failure(std::move(opened.error()));
  std::unique_ptr<Acceptor> acceptor(new Acceptor(core, fabric, address));
  if (auto opened = acceptor->open(); !opened) return failure(std::move(opened.error()));
  acceptor->where_ = acceptor->address_;
  return acceptor;
}

Result<void> Acceptor::open() {
  transport::ListenOptions options;
  options.half_open = core_.limits.half_open;
  auto group = core_.reactors.front()->open_fabric(fabric_);
  if (!group) return failure(std::move(group.error()));
  auto listener = (*group)->group().listen(address_, options, *this);
  if (!listener) return failure(std::move(listener.error()));
  listener_ = std::move(*listener);
  // Whoever left the choice to the fabric gets the same again.
  if (auto actual = Uri::parse(listener_->address())) address_ = std::move(*actual);
  return {};
}

bool Acceptor::listens_at(const Uri& address) const {
  return where_.scheme == address.scheme && where_.host == address.host && where_.port == address.port &&
         where_.option("socket") == address.option("socket");
}

void Acceptor::close() noexcept {
  again_.cancel();
  listener_.reset();
}

void Acceptor::on_request(std::unique_ptr<transport::ConnectionRequest> request) {
  const auto parsed = nvme::parse_cm_request(request->private_data());
  if (!parsed) {
    refuse(*request, parsed.error(),
           fmt::format("its private data of {} bytes: {}", request->private_data().size(), name(parsed.error())));
    return;
  }
  const nvme::CmRequest& wanted = *parsed;
  const TargetLimits& limits = core_.limits;
  const std::uint32_t depth_max = wanted.qid == Qid(0) ? kAdminDepthMax : limits.queue_depth_max;
  if (wanted.qid.value() > limits.io_queues_max) {
    refuse(*request, nvme::CmReject::invalid_qid,
           fmt::format("queue {} asked for, {} is the highest", wanted.qid.value(), limits.io_queues_max));
  } else if (wanted.host_sends > depth_max) {
    refuse(
        *request, nvme::CmReject::invalid_host_send_queue_size,
        fmt::format("{} entries asked for queue {}, {} is the most", wanted.host_sends, wanted.qid.value(), depth_max));
  } else if (request->peer_incoming_reads() == 0) {
    // Connect's data, and every keyed write, come by RDMA READ.
    refuse(*request, nvme::CmReject::invalid_responder_resources, "the host serves no RDMA READs");
  } else if (wanted.qid != Qid(0) && wanted.cntlid != Cntlid(0) && !core_.controllers.contains(wanted.cntlid)) {
    // 0: a host that leaves the field alone; Connect will say whose queue it is.
    refuse(*request, nvme::CmReject::invalid_controller_id,
           fmt::format("an I/O queue for controller {}, which does not exist", wanted.cntlid.value()));
  } else if (core_.draining.load(std::memory_order_relaxed)) {
    refuse(*request, nvme::CmReject::no_resources, "the target is shutting down");
  } else {
    auto admission = core_.hosts.admit(request->peer_host());
    if (!admission) return refuse(*request, nvme::CmReject::no_resources, admission.error());
    ReactorContext& reactor = place(wanted.qid);
    reactor.add_load();
    reactor.post([&reactor, &fabric = fabric_, &port = port_, wanted, request = std::move(request),
                  admission = std::move(*admission)]() mutable {
      reactor.accept(std::move(request), std::move(admission), fabric, port, wanted);
    });
  }
}

// The least loaded; among equals one after the other, so that the queues of one host spread over all reactors. Admin
// queues do not move the turn: they would make every host's I/O queues begin at another reactor's expense.
ReactorContext& Acceptor::place(Qid qid) noexcept {
  const std::size_t count = core_.reactors.size();
  std::size_t best = next_ % count;
  for (std::size_t i = 1; i < count; ++i) {
    const std::size_t candidate = (next_ + i) % count;
    if (core_.reactors[candidate]->load() < core_.reactors[best]->load()) best = candidate;
  }
  if (qid != Qid(0)) next_ = (best + 1) % count;
  return *core_.reactors[best];
}

void Acceptor::refuse(transport::ConnectionRequest& request, nvme::CmReject reason, const std::string& why) {
  core_.connections_refused.fetch_add(1, std::memory_order_relaxed);
  core_.reactors.front()->warn(LogCause::refused, "connection request of {}: {}; refused", printable(request.peer()),
                               why);
  request.reject(nvme::wire_bytes(nvme::encode_cm_reject(reason)));
}

void Acceptor::on_listener_failed(const Error& error) {
  core_.logger.error("listener {}: {}; it is tried again every second", address_.to_string(), error.message());
  again_.arm(core_.clock.now() + kOpenAgain);
}

void Acceptor::open_again() {
  listener_.reset();  // it may still hold the address
  if (const auto opened = open(); !opened) {
    core_.logger.debug("listener {}: {}; it is tried again", address_.to_string(), opened.error().message());
    again_.arm(core_.clock.now() + kOpenAgain);
    return;
  }
  core_.logger.info("listener {}: hosts can connect there again", address_.to_string());
}

}  // namespace rbt::target
