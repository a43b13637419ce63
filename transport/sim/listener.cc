#include "transport/sim/listener.h"

#include <fmt/format.h>

#include <algorithm>

#include "transport/sim/poll_group.h"
#include "transport/sim/queue_pair.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

SimListener::SimListener(World& world, Machine& machine, Group& group, std::optional<std::uint32_t> device,
                         std::uint16_t port, const ListenOptions& options, ListenerHandler& handler)
    : world_(world),
      machine_(machine),
      group_(group),
      device_(device),
      port_(port),
      options_(options),
      handler_(handler),
      id_(world.agenda().enroll(*this)) {
  machine_.add(*this);
  world_.note(What::listening, machine.number(), port);
}

SimListener::~SimListener() {
  group_.forget(*this);
  machine_.remove(*this);
  world_.agenda().leave(id_);
}

std::string SimListener::address() const {
  return device_ && *device_ != 0 ? fmt::format("nvme+sim://{}.{}:{}", machine_.host(), *device_, port_)
                                  : fmt::format("nvme+sim://{}:{}", machine_.host(), port_);
}

void SimListener::lose_device(std::uint32_t device, Disconnect::Reason reason) {
  if (deaf_) return;
  if (device_ && *device_ != device) return;
  if (!device_ && machine_.device_towards(0) != nullptr && reason == Disconnect::Reason::device_removed) return;
  if (!device_ && reason == Disconnect::Reason::address_changed && machine_.devices().size() > 1) return;
  deaf_ = true;
  const bool removed = reason == Disconnect::Reason::device_removed;
  failure_ = Error(removed ? ErrorKind::not_found : ErrorKind::unreachable,
                   fmt::format("listening on {}: {}; listen again {}", address(),
                               removed ? "the device was removed" : "the address was taken away",
                               removed ? "when there is a device" : "when the address is back"));
  group_.push_listener_failed(*this);
}

Request::Request(World& world, SimListener& listener, Machine& machine, Device& device, QueuePair& connector)
    : world_(world),
      machine_(machine),
      device_(device),
      connector_machine_(connector.machine()),
      listener_(listener.id()),
      connector_(connector.id()),
      peer_(fmt::format("{}:{}", connector.machine().host(), connector.number())),
      peer_reads_(connector.incoming_reads()),
      half_open_(listener.options().half_open) {
  std::copy(connector.request_data().begin(), connector.request_data().end(), data_.begin());
  listener.knocked();
  world_.note(What::request, connector_);
}

Request::~Request() {
  reject({});
}

void Request::answer() noexcept {
  answered_ = true;
  if (Actor* listener = world_.agenda().find(listener_); listener != nullptr)
    static_cast<SimListener*>(listener)->answered();
}

void Request::reject(std::span<const std::byte> private_data) {
  if (answered_) return;
  answer();
  world_.note(What::rejected, connector_, private_data.size());
  if (Actor* connector = world_.agenda().find(connector_); connector != nullptr && machine_.alive())
    static_cast<QueuePair*>(connector)->send_reject(machine_, private_data);
}

}  // namespace rbt::transport::sim
