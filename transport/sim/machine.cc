#include "transport/sim/machine.h"

#include "common/check.h"
#include "transport/sim/listener.h"
#include "transport/sim/poll_group.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

Machine::Machine(World& world, std::string name, std::uint32_t number, std::uint32_t devices)
    : world_(world), host_(std::move(name)), number_(number) {
  check(devices > 0 && devices <= 64, "a machine has 1 to 64 devices");
  for (std::uint32_t i = 0; i < devices; ++i)
    devices_.push_back(std::make_unique<Device>(world, host_, i));
}

Result<std::unique_ptr<PollGroup>> Machine::open_poll_group(Reactor& reactor, const PollGroupOptions& options,
                                                            CompletionHandler& handler) {
  if (options.receive_depth == 0 || options.receive_size == 0)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("opening a poll group on machine {}: {} receive buffers of {} bytes; at least 1 of 1 "
                               "is needed",
                               host_, options.receive_depth, options.receive_size));
  if (world_.fails(Operation::open_poll_group, host_))
    return failure(
        ErrorKind::resource,
        fmt::format("opening a poll group on machine {}: no completion queue left (simulated fault)", host_));
  return std::make_unique<Group>(world_, *this, reactor, options, handler);
}

std::uint32_t Machine::in_capsule_data_preferred() const noexcept {
  return world_.options().in_capsule_data;
}

Device* Machine::device_towards(std::uint32_t wanted) const noexcept {
  const auto count = static_cast<std::uint32_t>(devices_.size());
  for (std::uint32_t i = 0; i < count; ++i)
    if (Device& device = *devices_[(wanted + i) % count]; !device.removed) return &device;
  return nullptr;
}

SimListener* Machine::listener(std::uint32_t device, std::uint16_t port) const noexcept {
  if (!alive_ || device >= devices_.size() || devices_[device]->removed) return nullptr;
  for (SimListener* listener : listeners_)
    if (listener->hears(device, port)) return listener;
  return nullptr;
}

SimListener* Machine::listener_conflict(std::optional<std::uint32_t> device, std::uint16_t port) const noexcept {
  for (std::uint32_t i = 0; i < devices_.size(); ++i)
    if (!device || *device == i)
      if (SimListener* found = listener(i, port); found != nullptr) return found;
  return nullptr;
}

std::uint16_t Machine::free_port() const noexcept {
  std::uint16_t port = 49152;  // the first of the dynamic ports, RFC 6335
  while (listener_conflict(std::nullopt, port) != nullptr)
    ++port;
  return port;
}

void Machine::kill(Farewell farewell) {
  alive_ = farewell == Farewell::by_kernel;  // a killed process leaves its machine running
  for (Group* group : groups_)
    group->kill(farewell == Farewell::by_kernel);
  for (SimListener* listener : listeners_)
    listener->deafen();
}

void Machine::heal() noexcept {
  exhausted_until_ = {};
  for (Group* group : groups_)
    group->heal();
}

void Machine::lose_device(std::uint32_t index, Disconnect::Reason reason) {
  check(index < devices_.size(), "the device to lose exists");
  if (reason == Disconnect::Reason::device_removed) {
    devices_[index]->removed = true;
    devices_[index]->domain.remove_device();
  }
  for (Group* group : groups_)
    group->lose_device(*devices_[index], reason);
  for (SimListener* listener : listeners_)
    listener->lose_device(index, reason);
}

}  // namespace rbt::transport::sim
