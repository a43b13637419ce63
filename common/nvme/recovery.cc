#include "common/nvme/recovery.h"

#include <cstring>

#include "common/nvme/admin_command.h"

namespace rbt::nvme {

namespace {

constexpr std::array<char, 16> kSignature = {'r', 'b', 't', ' ', 'r', 'e', 'c', 'o', 'v', 'e', 'r', 'y'};
constexpr std::uint16_t kVersion = 1;

}  // namespace

RecoveryLog encode_recovery_log(const RecoveryInfo& info) noexcept {
  RecoveryLog log;
  log.signature = kSignature;
  log.version = kVersion;
  log.instance = info.association.instance;
  log.association = info.association.number;
  log.medium = info.incarnation.medium;
  log.losses = info.incarnation.losses;
  return log;
}

std::optional<RecoveryInfo> parse_recovery_log(std::span<const std::byte> page) noexcept {
  const auto log = read_wire<RecoveryLog>(page);
  if (!log || page.size() != sizeof(RecoveryLog) || log->signature != kSignature || log->version.get() != kVersion)
    return std::nullopt;
  return RecoveryInfo{.association = {log->instance, log->association.get()},
                      .incarnation = {log->medium, log->losses.get()}};
}

SubmissionQueueEntry encode_fence(const AssociationId& association) noexcept {
  SubmissionQueueEntry sqe = encode_plain(kFenceOpcode);
  sqe.cdw10 = static_cast<std::uint32_t>(association.number & 0xffffffff);
  sqe.cdw11 = static_cast<std::uint32_t>(association.number >> 32);
  static_assert(offsetof(SubmissionQueueEntry, cdw12) == 48);
  std::memcpy(&sqe.cdw12, association.instance.data(), association.instance.size());
  return sqe;
}

AssociationId parse_fence(const SubmissionQueueEntry& sqe) noexcept {
  AssociationId out;
  out.number = std::uint64_t{sqe.cdw11.get()} << 32 | sqe.cdw10.get();
  std::memcpy(out.instance.data(), &sqe.cdw12, out.instance.size());
  return out;
}

}  // namespace rbt::nvme
