#pragma once
// Listening, and those who knock.

#include <array>
#include <optional>
#include <string>

#include "transport/connection.h"
#include "transport/sim/agenda.h"

namespace rbt::transport::sim {

class World;
class Machine;
class Group;
class QueuePair;
struct Device;

// What librdmacm hands over, whatever the peer sent (RIG: 56, 148, 196).
inline constexpr std::size_t kRequestDataSize = 56;
inline constexpr std::size_t kRejectDataSize = 148;
inline constexpr std::size_t kReplyDataSize = 196;

class SimListener final : public Listener, public Actor {
 public:
  SimListener(World& world, Machine& machine, Group& group, std::optional<std::uint32_t> device, std::uint16_t port,
              const ListenOptions& options, ListenerHandler& handler);
  ~SimListener() override;
  [[nodiscard]] std::string address() const override;

  [[nodiscard]] bool hears(std::uint32_t device, std::uint16_t port) const noexcept {
    return !deaf_ && port == port_ && (!device_ || *device_ == device);
  }
  [[nodiscard]] bool full() const noexcept { return unanswered_ >= options_.backlog; }
  [[nodiscard]] const ListenOptions& options() const noexcept { return options_; }
  [[nodiscard]] ListenerHandler& handler() noexcept { return handler_; }
  [[nodiscard]] Group& group() noexcept { return group_; }
  [[nodiscard]] ActorId id() const noexcept { return id_; }
  void knocked() noexcept { ++unanswered_; }
  void answered() noexcept { --unanswered_; }
  void deafen() noexcept { deaf_ = true; }
  void lose_device(std::uint32_t device, Disconnect::Reason reason);
  [[nodiscard]] const Error& failure_reason() const noexcept { return failure_; }

  [[nodiscard]] bool expects(const Event&) const noexcept override { return false; }
  void on_event(const Event&) override {}

 private:
  World& world_;
  Machine& machine_;
  Group& group_;
  std::optional<std::uint32_t> device_;  // none: all
  std::uint16_t port_;
  ListenOptions options_;
  ListenerHandler& handler_;
  ActorId id_;
  int unanswered_ = 0;
  bool deaf_ = false;
  Error failure_{ErrorKind::disconnected, {}};
};

/// A connect that has arrived and waits for its answer.
class Request final : public ConnectionRequest {
 public:
  Request(World& world, SimListener& listener, Machine& machine, Device& device, QueuePair& connector);
  ~Request() override;
  [[nodiscard]] std::span<const std::byte> private_data() const noexcept override { return data_; }
  [[nodiscard]] const std::string& peer() const noexcept override { return peer_; }
  [[nodiscard]] std::string peer_host() const override { return peer_.substr(0, peer_.rfind(':')); }  // no port
  [[nodiscard]] std::uint32_t peer_incoming_reads() const noexcept override { return peer_reads_; }
  void reject(std::span<const std::byte> private_data) override;

  /// Answered: neither reject() nor the destructor says anything any more.
  void answer() noexcept;
  [[nodiscard]] Machine& machine() const noexcept { return machine_; }
  [[nodiscard]] Device& device() const noexcept { return device_; }
  [[nodiscard]] ActorId connector() const noexcept { return connector_; }
  [[nodiscard]] Machine& connector_machine() const noexcept { return connector_machine_; }
  [[nodiscard]] Duration half_open() const noexcept { return half_open_; }

 private:
  World& world_;
  Machine& machine_;
  Device& device_;
  Machine& connector_machine_;
  ActorId listener_;
  ActorId connector_;
  std::string peer_;
  std::uint32_t peer_reads_;
  Duration half_open_;
  std::array<std::byte, kRequestDataSize> data_{};
  bool answered_ = false;
};

}  // namespace rbt::transport::sim
