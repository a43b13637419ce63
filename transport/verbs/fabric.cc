#include "transport/verbs/fabric.h"

#include <rdma/rdma_cma.h>

#include <cerrno>

#include "transport/verbs/devices.h"
#include "transport/verbs/errors.h"
#include "transport/verbs/poll_group.h"

namespace rbt::transport::verbs {

Result<std::unique_ptr<Devices>> Devices::open(Logger& logger, const Options& options) {
  if (options.read_depth_max < 1 || options.read_depth_max > 255)
    return failure(ErrorKind::invalid_argument,
                   "read_depth_max must be from 1 to 255: connection requests carry one byte");
  int count = 0;
  ibv_context** const contexts = rdma_get_devices(&count);
  if (contexts == nullptr || count == 0) {
    const int error_number = errno;
    if (contexts != nullptr) rdma_free_devices(contexts);
    return failure(explain_no_rdma(error_number, options.sysfs, options.devices));
  }
  std::unique_ptr<Devices> devices(new Devices(logger, options, contexts));
  rdma_event_channel* const channel = rdma_create_event_channel();  // may we?
  if (channel == nullptr) return failure(explain_no_rdma(errno, options.sysfs, options.devices));
  rdma_destroy_event_channel(channel);
  return devices;
}

Devices::~Devices() {
  devices_.clear();
  rdma_free_devices(contexts_);
}

Result<Device*> Devices::find(ibv_context* context) {
  const std::lock_guard lock(mutex_);
  for (const auto& device : devices_)
    if (device->context() == context) return device.get();
  auto opened = Device::open(context, logger_);
  if (!opened) return failure(std::move(opened.error()));
  devices_.push_back(std::move(*opened));
  return devices_.back().get();
}

Fabric::Fabric(std::unique_ptr<Devices> devices) : devices_(std::move(devices)) {}
Fabric::~Fabric() = default;

Result<std::unique_ptr<Fabric>> Fabric::open(Logger& logger, const Options& options) {
  auto devices = Devices::open(logger, options);
  if (!devices) return failure(std::move(devices.error()));
  return std::unique_ptr<Fabric>(new Fabric(std::move(*devices)));
}

Result<std::unique_ptr<PollGroup>> Fabric::open_poll_group(Reactor& reactor, const PollGroupOptions& options,
                                                           CompletionHandler& handler) {
  return Group::open(*devices_, reactor, options, handler);
}

}  // namespace rbt::transport::verbs
