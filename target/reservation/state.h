#pragma once
// What hosts have agreed about one namespace (Base 2.0, 8.19): who is registered, and what is reserved. Pure: no I/O.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "common/nvme/reservation.h"

namespace rbt::target {

/// What a command does to blocks, as far as reservations are concerned (NVM 1.0, 2.1; Base 2.0, 8.19: the read and the
/// write command group).
enum class BlockAccess : std::uint8_t { none, read, write };

struct ReservationState {
  static constexpr std::size_t kRegistrantsMax = 128;
  struct Registrant {
    nvme::HostId host;
    std::uint64_t key = 0;
    friend bool operator==(const Registrant&, const Registrant&) = default;
  };
  std::uint32_t generation = 0;
  bool persists = false;  ///< PTPL
  std::optional<nvme::ReservationType> type{};
  nvme::HostId holder{};                  ///< if there is one of its own: not for the types that all registrants hold
  std::vector<Registrant> registrants{};  ///< in order of registration; no host twice, no key 0

  [[nodiscard]] const Registrant* find(const nvme::HostId& host) const noexcept;
  [[nodiscard]] bool holds(const nvme::HostId& host) const noexcept;
  friend bool operator==(const ReservationState&, const ReservationState&) = default;
};

/// What a command of `host` comes to. Unless `status` is ok, the state is as before.
struct ReservationOutcome {
  nvme::Status status;
  std::vector<std::pair<nvme::HostId, nvme::ReservationNotice>> notices{};  ///< for other hosts
  std::vector<nvme::HostId> preempted{};  ///< other hosts that are not registered any more
};
/// internal_error: kRegistrantsMax are registered.
[[nodiscard]] ReservationOutcome apply(ReservationState& state, const nvme::HostId& host,
                                       const nvme::ReservationRegister& command);
[[nodiscard]] ReservationOutcome apply(ReservationState& state, const nvme::HostId& host,
                                       const nvme::ReservationAcquire& command);
[[nodiscard]] ReservationOutcome apply(ReservationState& state, const nvme::HostId& host,
                                       const nvme::ReservationRelease& command);

/// What the way of a command has to know of a reservation. Immutable: every reactor has it, until it is told of the next.
class ReservationView {
 public:
  /// Null if nothing is reserved: everybody may do everything then, registered or not.
  [[nodiscard]] static std::shared_ptr<const ReservationView> of(const ReservationState& state);
  /// Base 2.0, 8.19: "command behavior in the presence of a reservation".
  [[nodiscard]] bool admits(const nvme::HostId& host, BlockAccess access) const noexcept;

 private:
  bool reading_is_free_ = false;
  std::vector<nvme::HostId> privileged_;  // ascending: may do everything
};

}  // namespace rbt::target
