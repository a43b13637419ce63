#include "transport/verbs/device.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "transport/verbs/errors.h"
#include "transport/verbs/memory.h"

namespace rbt::transport::verbs {

namespace {

constexpr std::uint32_t kRxeVendorId = 0xffffff;  // RXE_VENDOR_ID, drivers/infiniband/sw/rxe/rxe_param.h

std::uint32_t positive(int value) noexcept {
  return value > 0 ? static_cast<std::uint32_t>(value) : 0;
}

constexpr std::array<std::uint8_t, 12> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};  // ::ffff:a.b.c.d

std::string gid_text(const ibv_gid& gid) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  const bool v4 = std::memcmp(gid.raw, kMapped.data(), kMapped.size()) == 0;
  ::inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? gid.raw + kMapped.size() : gid.raw, text.data(), text.size());
  return text.data();
}

template <typename Visit>  // bool(const ibv_gid&): true ends it
void each_gid(ibv_context* context, std::uint8_t port, Visit&& visit) {
  ibv_port_attr attributes{};
  if (ibv_query_port(context, port, &attributes) != 0) return;
  static constexpr ibv_gid kNone{};
  for (int i = 0; i < attributes.gid_tbl_len; ++i) {
    ibv_gid gid{};
    if (ibv_query_gid(context, port, i, &gid) != 0) continue;
    if (std::memcmp(&gid, &kNone, sizeof gid) != 0 && visit(gid)) return;
  }
}

}  // namespace

Result<std::unique_ptr<Device>> Device::open(ibv_context* context, Logger& logger) {
  std::unique_ptr<Device> device(new Device(context, logger));
  ibv_device_attr attributes{};
  if (const int error = ibv_query_device(context, &attributes); error != 0)
    return failure(call_failed(error, "ibv_query_device", device->name_));
  device->limits_ = {.segments_max = positive(attributes.max_sge),
                     .work_requests_max = positive(attributes.max_qp_wr),
                     .completions_max = positive(attributes.max_cqe),
                     .receives_max = positive(attributes.max_srq) == 0 ? 0 : positive(attributes.max_srq_wr),
                     .reads_in_max = positive(attributes.max_qp_rd_atom),
                     .reads_out_max = positive(attributes.max_qp_init_rd_atom),
                     .kernel_completion_flags = attributes.vendor_id == kRxeVendorId,
                     .keeps_receives = attributes.vendor_id == kRxeVendorId};
  if (device->limits_.receives_max == 0)
    return failure(ErrorKind::unsupported,
                   fmt::format("{} has no shared receive queues (max_srq 0), which rbt needs", device->name_));
  device->domain_ = ibv_alloc_pd(context);
  if (device->domain_ == nullptr) return failure(call_failed(errno, "ibv_alloc_pd", device->name_));
  // Nobody else reads this context's events; a reader must find an empty queue without blocking.
  const int flags = ::fcntl(context->async_fd, F_GETFL);
  if (flags < 0 || ::fcntl(context->async_fd, F_SETFL, flags | O_NONBLOCK) != 0)
    return failure(call_failed(errno, "fcntl of the event descriptor", device->name_));
  return device;
}

Device::Device(ibv_context* context, Logger& logger)
    : context_(context), logger_(logger), name_(ibv_get_device_name(context->device)) {}

Device::~Device() {
  if (domain_ == nullptr) return;
  if (const int error = ibv_dealloc_pd(domain_); error != 0)
    logger_.error("{}", Error::from_errno(error, fmt::format("ibv_dealloc_pd on {}", name_),
                                          "memory is still registered: its region must go before the fabric")
                            .message());
}

Result<std::unique_ptr<MemoryRegion>> Device::register_memory(const MemorySpan& memory, RemoteAccess access) {
  return Region::create(domain_, name_, logger_, memory, access);
}

void Device::attach(std::shared_ptr<EventTarget> target) {
  const std::lock_guard lock(mutex_);
  targets_.push_back(std::move(target));
}

void Device::detach(const EventTarget& target) noexcept {
  const std::lock_guard lock(mutex_);
  std::erase_if(targets_, [&](const auto& entry) { return entry.get() == &target; });
}

void Device::read_events() {
  ibv_async_event event{};
  while (ibv_get_async_event(context_, &event) == 0) {
    dispatch(event);
    ibv_ack_async_event(
        &event);  // until now ibv_destroy_qp() waits, so the queue pair's owner was there for dispatch()
  }
}

void Device::broadcast(DeviceEvent event) {
  const std::lock_guard lock(mutex_);  // a target detaches before its reactor goes
  for (const auto& target : targets_)
    target->reactor().post([target, event, this] { target->on_device_event(event, 0, this); });
}

void Device::dispatch(const ibv_async_event& event) {
  const auto to_owner = [&](DeviceEvent what) {
    const auto* const owner = static_cast<const QueuePairOwner*>(event.element.qp->qp_context);
    owner->target->reactor().post([target = owner->target, connection = owner->connection, device = owner->device,
                                   what] { target->on_device_event(what, connection, device); });
  };
  switch (event.event_type) {
    case IBV_EVENT_QP_LAST_WQE_REACHED: return to_owner(DeviceEvent::last_receive_reached);
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_PATH_MIG_ERR: return to_owner(DeviceEvent::queue_pair_failed);
    case IBV_EVENT_GID_CHANGE: return broadcast(DeviceEvent::addresses_changed);
    case IBV_EVENT_CQ_ERR:
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_DEVICE_FATAL:
      logger_.error("{}: {}; its connections end", name_, ibv_event_type_str(event.event_type));
      return broadcast(DeviceEvent::failed);
    case IBV_EVENT_PORT_ERR:  // connections outlive it or their retries run out
    case IBV_EVENT_PORT_ACTIVE:
      logger_.info("{} port {}: {}", name_, event.element.port_num, ibv_event_type_str(event.event_type));
      return;
    case IBV_EVENT_COMM_EST:  // the first completion says the same
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
    case IBV_EVENT_WQ_FATAL: break;
  }
  logger_.debug("{}: {}", name_, ibv_event_type_str(event.event_type));
}

bool Device::lost_address(std::uint8_t port, const sockaddr* address) const {
  ibv_port_attr attributes{};
  if (ibv_query_port(context_, port, &attributes) != 0 || attributes.link_layer != IBV_LINK_LAYER_ETHERNET)
    return false;
  ibv_gid wanted{};
  if (address->sa_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, address, sizeof v4);
    std::memcpy(wanted.raw, kMapped.data(), kMapped.size());
    std::memcpy(wanted.raw + kMapped.size(), &v4.sin_addr, sizeof v4.sin_addr);
  } else if (address->sa_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, address, sizeof v6);
    std::memcpy(wanted.raw, &v6.sin6_addr, sizeof wanted.raw);
  } else {
    return false;
  }
  bool present = false;
  each_gid(context_, port, [&](const ibv_gid& gid) { return present = std::memcmp(&gid, &wanted, sizeof gid) == 0; });
  return !present;
}

std::string describe_devices(ibv_context* const* contexts) {
  std::string text;
  for (; contexts != nullptr && *contexts != nullptr; ++contexts) {
    ibv_device_attr attributes{};
    if (ibv_query_device(*contexts, &attributes) != 0) continue;
    std::string addresses;
    for (std::uint8_t port = 1; port <= attributes.phys_port_cnt; ++port)
      each_gid(*contexts, port, [&](const ibv_gid& gid) {
        addresses += (addresses.empty() ? "" : ", ") + gid_text(gid);
        return false;
      });
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", ibv_get_device_name((*contexts)->device),
                        addresses.empty() ? "no address" : addresses);
  }
  return text;
}

}  // namespace rbt::transport::verbs
