#include "transport/verbs/cm.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "transport/verbs/errors.h"

namespace rbt::transport::verbs {

Result<std::shared_ptr<EventChannel>> EventChannel::open() {
  rdma_event_channel* const raw = rdma_create_event_channel();
  if (raw == nullptr)
    return errno_failure(
        errno, "rdma_create_event_channel (/dev/infiniband/rdma_cm)",
        "raise the limit of open files (`ulimit -n`) if it is reached; `modprobe rdma_ucm` if it is missing");
  std::shared_ptr<EventChannel> channel(new EventChannel(raw));
  const int flags = ::fcntl(raw->fd, F_GETFL);
  if (flags < 0 || ::fcntl(raw->fd, F_SETFL, flags | O_NONBLOCK) != 0)
    return errno_failure(errno, "fcntl of a connection manager event channel");
  return channel;
}

bool EventChannel::dispatch_one() {
  rdma_cm_event* raw = nullptr;
  if (rdma_get_cm_event(channel_, &raw) != 0) return false;
  CmEvent event;
  event.type = raw->event;
  event.status = raw->status;
  event.id = raw->id;
  event.responder_resources = raw->param.conn.responder_resources;
  event.initiator_depth = raw->param.conn.initiator_depth;
  if (raw->param.conn.private_data != nullptr) {
    event.data_size = std::min<std::size_t>(raw->param.conn.private_data_len, event.data.size());
    std::memcpy(event.data.data(), raw->param.conn.private_data, event.data_size);
  }
  // A connection request's identifier has inherited its listener's context; it is nobody's until it is accepted.
  auto* const endpoint = static_cast<CmEndpoint*>(raw->id->context);
  if (raw->event == RDMA_CM_EVENT_CONNECT_REQUEST) raw->id->context = nullptr;
  rdma_ack_cm_event(raw);
  if (endpoint != nullptr) endpoint->on_cm_event(event);
  return true;
}

}  // namespace rbt::transport::verbs
