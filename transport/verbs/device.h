#pragma once
// One RDMA device: its limits, its protection domain, its asynchronous events.

#include <infiniband/verbs.h>
#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "common/log.h"
#include "common/result.h"
#include "transport/memory_region.h"
#include "transport/reactor/reactor.h"

namespace rbt::transport::verbs {

class Device;

/// What a device says it can do, read back when it is opened; never assumed.
struct DeviceLimits {
  std::uint32_t segments_max = 0;       ///< of a send work request
  std::uint32_t work_requests_max = 0;  ///< of one send queue
  std::uint32_t completions_max = 0;    ///< of one completion queue
  std::uint32_t receives_max = 0;       ///< of one shared receive queue; 0: it has none
  std::uint32_t reads_in_max = 0;       ///< RDMA READs served at a time by one queue pair
  std::uint32_t reads_out_max = 0;      ///< RDMA READs outstanding on one queue pair
  /// rdma_rxe hands the kernel's own flag values through: there 0x4 says "with invalidate" and IBV_WC_WITH_INV stays 0.
  bool kernel_completion_flags = false;
  /// rdma_rxe does not flush the receive buffer of a message that was half received when its queue pair died.
  bool keeps_receives = false;
};

/// What befell a device or one of its queue pairs, as far as a poll group has to do something about it.
enum class DeviceEvent : std::uint8_t {
  last_receive_reached,  ///< of one queue pair: its error state will take no more receive buffers
  queue_pair_failed,     ///< of one queue pair: it went to the error state by itself
  addresses_changed,     ///< of the device
  failed,                ///< of the device: nothing works any more
};

/// How other threads reach a poll group: through its reactor's mailbox. Outlives the group.
class EventTarget {
 public:
  virtual ~EventTarget() = default;
  explicit EventTarget(Reactor& reactor) : reactor_(reactor) {}
  EventTarget(const EventTarget&) = delete;
  EventTarget& operator=(const EventTarget&) = delete;
  [[nodiscard]] Reactor& reactor() const noexcept { return reactor_; }
  /// On the reactor's thread. `connection` is 0 for events of the device. `device` may be gone: compare, do not use.
  virtual void on_device_event(DeviceEvent event, std::uint64_t connection, const Device* device) = 0;

 private:
  Reactor& reactor_;
};

/// A queue pair's qp_context: whom its events are for.
struct QueuePairOwner {
  std::shared_ptr<EventTarget> target;
  std::uint64_t connection = 0;
  const Device* device = nullptr;
};

/// Thread-safe. Lives as long as its Fabric.
class Device final : public ProtectionDomain {
 public:
  /// `context` belongs to librdmacm, which keeps one per device and process.
  [[nodiscard]] static Result<std::unique_ptr<Device>> open(ibv_context* context, Logger& logger);
  ~Device() override;

  [[nodiscard]] Result<std::unique_ptr<MemoryRegion>> register_memory(const MemorySpan& memory,
                                                                      RemoteAccess access) override;
  [[nodiscard]] std::string_view name() const noexcept override { return name_; }

  [[nodiscard]] const DeviceLimits& limits() const noexcept { return limits_; }
  [[nodiscard]] ibv_context* context() const noexcept { return context_; }
  [[nodiscard]] ibv_pd* domain() const noexcept { return domain_; }

  /// From now until detach(), `target` hears the device's events.
  void attach(std::shared_ptr<EventTarget> target);
  void detach(const EventTarget& target) noexcept;
  /// Reads what there is and hands it to whom it concerns. Every group watches the descriptor (all threads may call this
  /// at once): whoever is first reads, so no group depends on another's life.
  void read_events();
  [[nodiscard]] int event_descriptor() const noexcept { return context_->async_fd; }

  /// True if `address` (IPv4 or IPv6) was one of port `port`'s and is not any more. Only on Ethernet, where a port's
  /// GIDs are its IP addresses.
  [[nodiscard]] bool lost_address(std::uint8_t port, const sockaddr* address) const;

 private:
  Device(ibv_context* context, Logger& logger);
  void dispatch(const ibv_async_event& event);
  void broadcast(DeviceEvent event);

  ibv_context* context_;
  Logger& logger_;
  std::string name_;
  ibv_pd* domain_ = nullptr;
  DeviceLimits limits_;
  std::mutex mutex_;  // guards targets_
  std::vector<std::shared_ptr<EventTarget>> targets_;
};

/// "rxe1 (10.99.0.1, fe80::1)", for messages: the devices of `contexts` (null-terminated) and their addresses.
[[nodiscard]] std::string describe_devices(ibv_context* const* contexts);

}  // namespace rbt::transport::verbs
