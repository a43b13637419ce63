#pragma once
// Connection manager plumbing: event channels, identifiers, and who hears an identifier's events.

#include <rdma/rdma_cma.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "common/result.h"

namespace rbt::transport::verbs {

/// An event, copied and acknowledged: identifiers may be destroyed while it is worked on.
struct CmEvent {
  rdma_cm_event_type type = RDMA_CM_EVENT_ADDR_ERROR;
  int status = 0;
  rdma_cm_id* id = nullptr;  ///< of a connection request: the new one
  std::uint8_t responder_resources = 0;
  std::uint8_t initiator_depth = 0;
  [[nodiscard]] std::span<const std::byte> private_data() const noexcept { return {data.data(), data_size}; }
  std::array<std::byte, 256> data;
  std::size_t data_size = 0;
};

/// Whom rdma_cm_id::context points to.
class CmEndpoint {
 public:
  virtual ~CmEndpoint() = default;
  virtual void on_cm_event(const CmEvent& event) = 0;
};

/// Shared by a poll group and by the connection requests that came in on it: their identifiers need it until they
/// have moved or gone.
class EventChannel {
 public:
  [[nodiscard]] static Result<std::shared_ptr<EventChannel>> open();
  ~EventChannel() { rdma_destroy_event_channel(channel_); }
  EventChannel(const EventChannel&) = delete;
  EventChannel& operator=(const EventChannel&) = delete;

  [[nodiscard]] rdma_event_channel* get() const noexcept { return channel_; }
  [[nodiscard]] int descriptor() const noexcept { return channel_->fd; }
  /// Takes one event, acknowledges it, then tells its endpoint. False: there was none. Never blocks.
  bool dispatch_one();

 private:
  explicit EventChannel(rdma_event_channel* channel) : channel_(channel) {}
  rdma_event_channel* channel_;
};

struct DestroyId {
  /// Waits for events of this identifier that another thread is just working on, and for nothing else.
  void operator()(rdma_cm_id* id) const noexcept { rdma_destroy_id(id); }
};
using CmId = std::unique_ptr<rdma_cm_id, DestroyId>;

}  // namespace rbt::transport::verbs
