#pragma once
// Reservations (Base 2.0, 7.2 to 7.5 and 8.19): fields of the entries and their data into values, and back for hosts.
// Keys are what hosts make up; who a host is, its controller knows.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/nvme/capsule.h"
#include "common/nvme/nqn.h"
#include "common/units.h"

namespace rbt::nvme {

/// RTYPE.
enum class ReservationType : std::uint8_t {
  write_exclusive = 1,
  exclusive_access = 2,
  write_exclusive_registrants = 3,
  exclusive_access_registrants = 4,
  write_exclusive_all = 5,
  exclusive_access_all = 6,
};
/// Every registrant holds it.
[[nodiscard]] constexpr bool is_all_registrants(ReservationType type) noexcept {
  return type >= ReservationType::write_exclusive_all;
}
/// Nobody else reads, either.
[[nodiscard]] constexpr bool excludes_reading(ReservationType type) noexcept {
  return (static_cast<unsigned>(type) & 1) == 0;
}

enum class RegisterAction : std::uint8_t { add = 0, remove = 1, replace = 2 };                ///< RREGA
enum class AcquireAction : std::uint8_t { acquire = 0, preempt = 1, preempt_and_abort = 2 };  ///< RACQA
enum class ReleaseAction : std::uint8_t { release = 0, clear = 1 };                           ///< RRELA
/// CPTPL: what becomes of Persist Through Power Loss.
enum class ChangePersistence : std::uint8_t { no = 0, off = 2, on = 3 };

/// Reservation Register (Base 2.0, 7.3). Data: 16 bytes.
struct ReservationRegister {
  RegisterAction action = RegisterAction::add;
  bool ignore_existing_key = false;
  ChangePersistence persistence = ChangePersistence::no;
  std::uint64_t current_key = 0;
  std::uint64_t new_key = 0;
};
/// Reservation Acquire (Base 2.0, 7.2). Data: 16 bytes.
struct ReservationAcquire {
  AcquireAction action = AcquireAction::acquire;
  ReservationType type = ReservationType::write_exclusive;
  std::uint64_t current_key = 0;
  std::uint64_t preempt_key = 0;
};
/// Reservation Release (Base 2.0, 7.5). Data: 8 bytes.
struct ReservationRelease {
  ReleaseAction action = ReleaseAction::release;
  std::uint8_t type = 0;  ///< RTYPE, whatever it is: that it fits is judged against what is held
  std::uint64_t current_key = 0;
};
inline constexpr std::uint32_t kReservationKeysBytes = 16;  ///< of Register and Acquire
inline constexpr std::uint32_t kReservationKeyBytes = 8;    ///< of Release

/// Without the keys, which are in the data. invalid_field: reserved values, IEKEY where it must be clear.
[[nodiscard]] Expected<ReservationRegister> parse_reservation_register(const SubmissionQueueEntry& sqe) noexcept;
[[nodiscard]] Expected<ReservationAcquire> parse_reservation_acquire(const SubmissionQueueEntry& sqe) noexcept;
[[nodiscard]] Expected<ReservationRelease> parse_reservation_release(const SubmissionQueueEntry& sqe) noexcept;
/// The keys, in order; `data` has at least so many bytes.
[[nodiscard]] std::array<std::uint64_t, 2> parse_reservation_keys(std::span<const std::byte> data) noexcept;
[[nodiscard]] std::uint64_t parse_reservation_key(std::span<const std::byte> data) noexcept;

/// Reservation Report (Base 2.0, 7.4).
struct ReservationReport {
  std::uint64_t bytes = 0;  ///< 4 to 2^34: NUMD is 0's based dwords
  bool extended = false;    ///< EDS: host identifiers have 128 bits
};
[[nodiscard]] ReservationReport parse_reservation_report(const SubmissionQueueEntry& sqe) noexcept;

/// Entries without cid and data pointer, and the data that belongs to them.
[[nodiscard]] SubmissionQueueEntry encode_reservation_register(Nsid nsid, const ReservationRegister& command) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_reservation_acquire(Nsid nsid, const ReservationAcquire& command) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_reservation_release(Nsid nsid, const ReservationRelease& command) noexcept;
/// `command.bytes` not a multiple of 4 or outside its range is a bug of the caller's.
[[nodiscard]] SubmissionQueueEntry encode_reservation_report(Nsid nsid, const ReservationReport& command) noexcept;
[[nodiscard]] std::array<std::byte, kReservationKeysBytes> encode_reservation_keys(std::uint64_t first,
                                                                                   std::uint64_t second) noexcept;

/// What a report says: one entry per controller of a registrant, one with FFFFh for a registrant that has none now.
struct ReservationStatus {
  struct Entry {
    std::uint16_t cntlid = 0xffff;
    bool holds = false;
    std::uint64_t key = 0;
    HostId host{};
    friend bool operator==(const Entry&, const Entry&) = default;
  };
  std::uint32_t generation = 0;
  std::optional<ReservationType> type{};
  bool persists = false;
  std::vector<Entry> entries{};
  friend bool operator==(const ReservationStatus&, const ReservationStatus&) = default;
};
/// The extended data structure, whole.
[[nodiscard]] std::vector<std::byte> encode_reservation_status(const ReservationStatus& status);
/// Nothing if `data` is too short for what it says, or says what cannot be.
[[nodiscard]] std::optional<ReservationStatus> parse_reservation_status(std::span<const std::byte> data);

/// What happened to a host without its doing (log page 80h).
enum class ReservationNotice : std::uint8_t { registration_preempted = 1, released = 2, preempted = 3 };

}  // namespace rbt::nvme
