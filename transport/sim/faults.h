#pragma once
// What goes wrong in a simulated world: at a chosen operation, at a chosen moment, or by chance from the world's seed.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/units.h"
#include "transport/connection.h"

namespace rbt::transport::sim {

class World;

/// Kinds of operations that can be made to fail, each counted in the order in which the world sees them.
enum class Operation : std::uint8_t {
  open_poll_group,  ///< the call returns an Error (resource)
  listen,           ///< the call returns an Error (resource)
  connect,          ///< the call returns an Error (resource)
  accept,           ///< the call returns an Error (resource); the request is rejected
  register_memory,  ///< the call returns an Error (resource)
  post,             ///< the call returns `dead`; the connection is lost
  post_full,        ///< the call returns `full`; counts only posts with a signaled request outstanding
  completion,       ///< a request that went well completes with `remote_error`; the connection is lost
};
inline constexpr std::size_t kOperations = 8;
[[nodiscard]] std::string_view name(Operation operation) noexcept;

/// One direction or both of the way between two machines. Messages of one connection never overtake each other.
struct Link {
  Duration latency = std::chrono::microseconds(2);
  Duration jitter = std::chrono::microseconds(1);  ///< added per message, uniform in [0, jitter]
  std::uint64_t bytes_per_us = 10'000;             ///< per connection and direction
};

/// Faults by chance: each number n means "once in n on average", 0 never.
struct FaultPlan {
  std::uint64_t packet_lost = 0;  ///< a packet is sent again after the acknowledge timeout
  std::uint64_t not_ready = 0;    ///< a message finds no receive buffer although there is one
  std::uint64_t stalled = 0;      ///< a packet, and all behind it, waits for up to stall_max
  Duration stall_max = std::chrono::milliseconds(10);
  std::uint64_t connection_lost = 0;  ///< per packet: the two machines forget this connection, both sides find out late
  std::array<std::uint64_t, kOperations> operation{};  ///< per Operation

  [[nodiscard]] std::uint64_t& of(Operation kind) { return operation[static_cast<std::size_t>(kind)]; }
};

/// The hand that breaks things. Owned by the Network; the world's thread only. Machines are named as in
/// Network::fabric(); an unknown name is a defect of the test and aborts.
class Faults {
 public:
  /// From now on, by chance. Replaces the plan before.
  void plan(const FaultPlan& plan) noexcept;
  /// Ends the plan, partitions, stalls and exhaustion, forgets failures not yet taken, makes every link the usual one.
  /// What is dead stays dead.
  void heal() noexcept;

  /// Lets the n-th operation of this kind from now fail: 0 is the next one.
  void fail_nth(Operation kind, std::uint64_t n) noexcept;
  /// Operations of this kind seen since the world began: what an n-th failure sweep runs up to.
  [[nodiscard]] std::uint64_t count(Operation kind) const noexcept;
  /// True if the failure asked for with fail_nth() has not happened yet.
  [[nodiscard]] bool pending(Operation kind) const noexcept;

  /// Power off: nothing goes in or out any more, its reactors are not turned. Peers with something outstanding notice
  /// after the retries, idle ones never.
  void kill(std::string_view machine);
  /// kill -9: the same, but the machine's kernel says goodbye for the process (peer_closed).
  void kill_process(std::string_view machine);
  /// The machine is on again, with the poll groups of the new process; those of the old one stay dead.
  void revive(std::string_view machine);

  void partition(std::string_view a, std::string_view b);
  void join(std::string_view a, std::string_view b);
  void set_link(std::string_view a, std::string_view b, const Link& link);
  /// Nothing moves on this connection, in either direction, for `time`.
  void stall(Connection& connection, Duration time);
  /// No message finds a receive buffer on `machine` for `time`.
  void exhaust_receives(std::string_view machine, Duration time);

  /// Device `index` of `machine` goes: its connections and listeners hear device_removed and on_listener_failed.
  void remove_device(std::string_view machine, std::uint32_t index = 0);
  /// The device loses its address and gets it back at once: connections and listeners bound to it are lost.
  void change_address(std::string_view machine, std::uint32_t index = 0);

 private:
  friend class World;
  explicit Faults(World& world) noexcept : world_(world) {}
  struct Armed {
    std::uint64_t seen = 0;
    std::uint64_t fails_at = ~std::uint64_t{0};
  };
  [[nodiscard]] Armed& armed(Operation kind) noexcept { return armed_[static_cast<std::size_t>(kind)]; }

  World& world_;
  FaultPlan plan_{};
  std::array<Armed, kOperations> armed_{};
};

}  // namespace rbt::transport::sim
