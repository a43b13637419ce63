#pragma once
// A machine of the simulated world: its devices, what listens there, its poll groups.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/fabric.h"
#include "transport/sim/memory.h"

namespace rbt::transport::sim {

class World;
class Group;
class SimListener;

struct Device {
  Device(World& world, const std::string& machine, std::uint32_t number)
      : domain(world, machine, machine + "/sim" + std::to_string(number)), index(number) {}
  Domain domain;
  std::uint32_t index;
  bool removed = false;
};

class Machine final : public Fabric {
 public:
  Machine(World& world, std::string name, std::uint32_t number, std::uint32_t devices);

  [[nodiscard]] Result<std::unique_ptr<PollGroup>> open_poll_group(Reactor& reactor, const PollGroupOptions& options,
                                                                   CompletionHandler& handler) override;
  [[nodiscard]] std::uint32_t in_capsule_data_preferred() const noexcept override;
  [[nodiscard]] std::string_view name() const noexcept override { return "sim"; }

  [[nodiscard]] const std::string& host() const noexcept { return host_; }
  [[nodiscard]] std::uint32_t number() const noexcept { return number_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Device>>& devices() const noexcept { return devices_; }
  /// The device that a connection to the peer's device `wanted` leaves by; null: every one was removed.
  [[nodiscard]] Device* device_towards(std::uint32_t wanted) const noexcept;

  void add(SimListener& listener) { listeners_.push_back(&listener); }
  void remove(const SimListener& listener) noexcept { std::erase(listeners_, &listener); }
  [[nodiscard]] SimListener* listener(std::uint32_t device, std::uint16_t port) const noexcept;
  /// One that hears the same device and port; `device` none: any device.
  [[nodiscard]] SimListener* listener_conflict(std::optional<std::uint32_t> device, std::uint16_t port) const noexcept;
  [[nodiscard]] std::uint16_t free_port() const noexcept;

  void add(Group& group) { groups_.push_back(&group); }
  void remove(const Group& group) noexcept { std::erase(groups_, &group); }

  // Faults.
  enum class Farewell : std::uint8_t { none, by_kernel };
  void kill(Farewell farewell);
  void revive() noexcept { alive_ = true; }
  [[nodiscard]] bool alive() const noexcept { return alive_; }
  void lose_device(std::uint32_t index, Disconnect::Reason reason);
  /// Ends stalls and exhaustion.
  void heal() noexcept;
  void exhaust_receives(Instant until) noexcept { exhausted_until_ = until; }
  [[nodiscard]] bool exhausted(Instant now) const noexcept { return now < exhausted_until_; }

 private:
  World& world_;
  std::string host_;
  std::uint32_t number_;
  bool alive_ = true;
  Instant exhausted_until_{};
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<SimListener*> listeners_;
  std::vector<Group*> groups_;
};

}  // namespace rbt::transport::sim
