#include "common/nvme/reservation.h"

#include <cstring>

#include "common/check.h"
#include "common/nvme/types.h"

namespace rbt::nvme {

namespace {

// DW10 of the three: action 2:0, IEKEY 3, RTYPE 15:8, CPTPL 31:30.
constexpr std::uint32_t kActionMask = 7;
constexpr std::uint32_t kIgnoreExistingKey = 1u << 3;
constexpr std::uint32_t kTypeShift = 8;
constexpr std::uint32_t kPersistenceShift = 30;
constexpr std::uint32_t kExtendedData = 1u << 0;  // DW11 of Report

static_assert(sizeof(nvme_resv_status) == 64 && offsetof(nvme_resv_status, regctl_eds) == 64);
static_assert(offsetof(nvme_resv_status, rtype) == 4 && offsetof(nvme_resv_status, regctl) == 5);
static_assert(offsetof(nvme_resv_status, ptpls) == 9);
static_assert(sizeof(nvme_registered_ctrl_ext) == 64 && offsetof(nvme_registered_ctrl_ext, rcsts) == 2);
static_assert(offsetof(nvme_registered_ctrl_ext, rkey) == 8 && offsetof(nvme_registered_ctrl_ext, hostid) == 16);
constexpr std::size_t kHeaderBytes = sizeof(nvme_resv_status);
constexpr std::size_t kEntryBytes = sizeof(nvme_registered_ctrl_ext);

SubmissionQueueEntry entry(IoOpcode opcode, Nsid nsid, std::uint32_t dw10) noexcept {
  SubmissionQueueEntry sqe;
  sqe.opcode = static_cast<std::uint8_t>(opcode);
  sqe.nsid = Le32(nsid.value());
  sqe.cdw10 = Le32(dw10);
  return sqe;
}

constexpr bool is_type(std::uint32_t rtype) noexcept {
  return rtype >= static_cast<std::uint32_t>(ReservationType::write_exclusive) &&
         rtype <= static_cast<std::uint32_t>(ReservationType::exclusive_access_all);
}

constexpr std::uint32_t type_of(std::uint32_t dw10) noexcept {
  return dw10 >> kTypeShift & 0xff;
}

}  // namespace

Expected<ReservationRegister> parse_reservation_register(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  const std::uint32_t action = dw10 & kActionMask;
  const std::uint32_t persistence = dw10 >> kPersistenceShift;
  if (action > static_cast<std::uint32_t>(RegisterAction::replace) || persistence == 1)
    return refuse(StatusCode::invalid_field);
  return ReservationRegister{.action = static_cast<RegisterAction>(action),
                             .ignore_existing_key = (dw10 & kIgnoreExistingKey) != 0,
                             .persistence = static_cast<ChangePersistence>(persistence)};
}

Expected<ReservationAcquire> parse_reservation_acquire(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  const std::uint32_t action = dw10 & kActionMask;
  if (action > static_cast<std::uint32_t>(AcquireAction::preempt_and_abort) || (dw10 & kIgnoreExistingKey) != 0 ||
      !is_type(type_of(dw10)))
    return refuse(StatusCode::invalid_field);
  return ReservationAcquire{.action = static_cast<AcquireAction>(action),
                            .type = static_cast<ReservationType>(type_of(dw10))};
}

Expected<ReservationRelease> parse_reservation_release(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  const std::uint32_t action = dw10 & kActionMask;
  if (action > static_cast<std::uint32_t>(ReleaseAction::clear) || (dw10 & kIgnoreExistingKey) != 0)
    return refuse(StatusCode::invalid_field);
  return ReservationRelease{.action = static_cast<ReleaseAction>(action),
                            .type = static_cast<std::uint8_t>(type_of(dw10))};
}

std::array<std::uint64_t, 2> parse_reservation_keys(std::span<const std::byte> data) noexcept {
  check(data.size() >= kReservationKeysBytes, "the data has room for two keys");
  return {parse_reservation_key(data), parse_reservation_key(data.subspan(kReservationKeyBytes))};
}

std::uint64_t parse_reservation_key(std::span<const std::byte> data) noexcept {
  const auto key = read_wire<Le64>(data);
  check(key.has_value(), "the data has room for a key");
  return key->get();
}

ReservationReport parse_reservation_report(const SubmissionQueueEntry& sqe) noexcept {
  return {.bytes = (std::uint64_t{sqe.cdw10.get()} + 1) * 4, .extended = (sqe.cdw11.get() & kExtendedData) != 0};
}

SubmissionQueueEntry encode_reservation_register(Nsid nsid, const ReservationRegister& command) noexcept {
  return entry(IoOpcode::reservation_register, nsid,
               static_cast<std::uint32_t>(command.action) | (command.ignore_existing_key ? kIgnoreExistingKey : 0) |
                   static_cast<std::uint32_t>(command.persistence) << kPersistenceShift);
}

SubmissionQueueEntry encode_reservation_acquire(Nsid nsid, const ReservationAcquire& command) noexcept {
  return entry(IoOpcode::reservation_acquire, nsid,
               static_cast<std::uint32_t>(command.action) | static_cast<std::uint32_t>(command.type) << kTypeShift);
}

SubmissionQueueEntry encode_reservation_release(Nsid nsid, const ReservationRelease& command) noexcept {
  return entry(IoOpcode::reservation_release, nsid,
               static_cast<std::uint32_t>(command.action) | std::uint32_t{command.type} << kTypeShift);
}

SubmissionQueueEntry encode_reservation_report(Nsid nsid, const ReservationReport& command) noexcept {
  check(command.bytes >= 4 && command.bytes % 4 == 0 && command.bytes <= std::uint64_t{1} << 34, "whole dwords");
  auto sqe = entry(IoOpcode::reservation_report, nsid, static_cast<std::uint32_t>(command.bytes / 4 - 1));
  sqe.cdw11 = Le32(command.extended ? kExtendedData : 0);
  return sqe;
}

std::array<std::byte, kReservationKeysBytes> encode_reservation_keys(std::uint64_t first,
                                                                     std::uint64_t second) noexcept {
  std::array<std::byte, kReservationKeysBytes> bytes{};
  const std::array<Le64, 2> keys{Le64(first), Le64(second)};
  std::memcpy(bytes.data(), keys.data(), bytes.size());
  return bytes;
}

std::vector<std::byte> encode_reservation_status(const ReservationStatus& status) {
  std::vector<std::byte> bytes(kHeaderBytes + status.entries.size() * kEntryBytes);
  nvme_resv_status header{};
  header.gen = to_le(status.generation);
  header.rtype = status.type ? static_cast<std::uint8_t>(*status.type) : std::uint8_t{0};
  header.regctl[0] = static_cast<std::uint8_t>(status.entries.size());
  header.regctl[1] = static_cast<std::uint8_t>(status.entries.size() >> 8);
  header.ptpls = status.persists ? 1 : 0;
  std::memcpy(bytes.data(), &header, kHeaderBytes);
  std::size_t at = kHeaderBytes;
  for (const ReservationStatus::Entry& each : status.entries) {
    nvme_registered_ctrl_ext wire{};
    wire.cntlid = to_le(each.cntlid);
    wire.rcsts = each.holds ? 1 : 0;
    wire.rkey = to_le(each.key);
    std::memcpy(wire.hostid, each.host.bytes().data(), sizeof wire.hostid);
    std::memcpy(&bytes[at], &wire, kEntryBytes);
    at += kEntryBytes;
  }
  return bytes;
}

std::optional<ReservationStatus> parse_reservation_status(std::span<const std::byte> data) {
  if (data.size() < kHeaderBytes) return std::nullopt;
  nvme_resv_status header{};
  std::memcpy(&header, data.data(), kHeaderBytes);
  const std::size_t count = std::size_t{header.regctl[0]} | std::size_t{header.regctl[1]} << 8;
  if (count > (data.size() - kHeaderBytes) / kEntryBytes) return std::nullopt;
  if (header.rtype != 0 && !is_type(header.rtype)) return std::nullopt;
  ReservationStatus status{.generation = from_le(header.gen), .persists = (header.ptpls & 1) != 0};
  if (header.rtype != 0) status.type = static_cast<ReservationType>(header.rtype);
  for (std::size_t i = 0; i < count; ++i) {
    nvme_registered_ctrl_ext wire{};
    std::memcpy(&wire, &data[kHeaderBytes + i * kEntryBytes], kEntryBytes);
    std::array<std::uint8_t, 16> host{};
    std::memcpy(host.data(), wire.hostid, host.size());
    status.entries.push_back({from_le(wire.cntlid), (wire.rcsts & 1) != 0, from_le(wire.rkey), HostId(host)});
  }
  return status;
}

}  // namespace rbt::nvme
