#pragma once
// Command and response capsules: NVMe-oF 1.1, 2.1. A command capsule is a submission queue entry and perhaps
// data; a response capsule is a completion queue entry.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "common/nvme/endian.h"
#include "common/nvme/sgl.h"
#include "common/nvme/status.h"
#include "common/units.h"

namespace rbt::nvme {

/// Base 2.0, 5, figure "Opcodes for Admin Commands".
enum class AdminOpcode : std::uint8_t {
  get_log_page = 0x02,
  identify = 0x06,
  abort = 0x08,
  set_features = 0x09,
  get_features = 0x0a,
  async_event_request = 0x0c,
  namespace_management = 0x0d,
  firmware_commit = 0x10,
  firmware_download = 0x11,
  self_test = 0x14,
  namespace_attachment = 0x15,
  keep_alive = 0x18,
  fabrics = 0x7f,
  format_nvm = 0x80,
  security_send = 0x81,
  security_receive = 0x82,
  sanitize = 0x84,
  get_lba_status = 0x86,
};

/// NVM command set 1.0, 3, and Base 2.0, 7.
enum class IoOpcode : std::uint8_t {
  flush = 0x00,
  write = 0x01,
  read = 0x02,
  write_uncorrectable = 0x04,
  compare = 0x05,
  write_zeroes = 0x08,
  dataset_management = 0x09,
  verify = 0x0c,
  reservation_register = 0x0d,
  reservation_report = 0x0e,
  reservation_acquire = 0x11,
  reservation_release = 0x15,
  copy = 0x19,
  fabrics = 0x7f,
};

/// Base 2.0, 6, figure "Fabrics commands": byte 4 of an entry with opcode 7Fh.
enum class FabricsType : std::uint8_t {
  property_set = 0x00,
  connect = 0x01,
  property_get = 0x04,
  authentication_send = 0x05,
  authentication_receive = 0x06,
  disconnect = 0x08,
};

inline constexpr std::uint8_t kFabricsOpcode = 0x7f;
/// Bits 7:6 of byte 1 = 01b: the data pointer is an SGL.
inline constexpr std::uint8_t kFlagsSgl = 0x40;
/// NSID that stands for every namespace.
inline constexpr Nsid kNsidAll{0xffffffff};

enum class Direction : std::uint8_t { none, to_controller, to_host, both };
/// Bits 1:0 of byte 1. 3 is reserved.
enum class Fuse : std::uint8_t { none = 0, first = 1, second = 2, reserved = 3 };

/// Base 2.0, 3.3.3.1, figure "Common Command Format".
struct SubmissionQueueEntry {
  std::uint8_t opcode = 0;
  std::uint8_t flags = kFlagsSgl;
  Le16 cid;
  Le32 nsid;
  Le32 cdw2;
  Le32 cdw3;
  Le64 metadata;
  SglDescriptor sgl;
  Le32 cdw10;
  Le32 cdw11;
  Le32 cdw12;
  Le32 cdw13;
  Le32 cdw14;
  Le32 cdw15;

  [[nodiscard]] constexpr Cid command_id() const noexcept { return Cid(cid.get()); }
  [[nodiscard]] constexpr Nsid namespace_id() const noexcept { return Nsid(nsid.get()); }
  [[nodiscard]] constexpr bool uses_sgl() const noexcept { return bits(flags, 6, 2) == 1; }
  [[nodiscard]] constexpr Fuse fuse() const noexcept { return static_cast<Fuse>(bits(flags, 0, 2)); }
  /// FUSE and PSDT say nothing about bits 5:2, which are reserved and to be zero.
  [[nodiscard]] constexpr bool reserved_flags_clear() const noexcept { return bits(flags, 2, 4) == 0; }
  [[nodiscard]] constexpr bool is_fabrics() const noexcept { return opcode == kFabricsOpcode; }
  /// Of a fabrics command only: NSID's place holds the type there.
  [[nodiscard]] constexpr FabricsType fabrics_type() const noexcept {
    return static_cast<FabricsType>(nsid.get() & 0xff);
  }
};
static_assert(sizeof(SubmissionQueueEntry) == 64 && WireType<SubmissionQueueEntry>);
static_assert(offsetof(SubmissionQueueEntry, flags) == 1 && offsetof(SubmissionQueueEntry, cid) == 2);
static_assert(offsetof(SubmissionQueueEntry, nsid) == 4 && offsetof(SubmissionQueueEntry, cdw2) == 8);
static_assert(offsetof(SubmissionQueueEntry, cdw3) == 12 && offsetof(SubmissionQueueEntry, metadata) == 16);
static_assert(offsetof(SubmissionQueueEntry, sgl) == 24 && offsetof(SubmissionQueueEntry, cdw10) == 40);
static_assert(offsetof(SubmissionQueueEntry, cdw11) == 44 && offsetof(SubmissionQueueEntry, cdw12) == 48);
static_assert(offsetof(SubmissionQueueEntry, cdw13) == 52 && offsetof(SubmissionQueueEntry, cdw14) == 56);
static_assert(offsetof(SubmissionQueueEntry, cdw15) == 60);

/// Bits 1:0 of the opcode, or of the type for fabrics commands (Base 2.0, 3.3.3.1 and 6).
[[nodiscard]] constexpr Direction data_direction(const SubmissionQueueEntry& sqe) noexcept {
  return static_cast<Direction>((sqe.is_fabrics() ? sqe.nsid.get() : std::uint32_t{sqe.opcode}) & 3);
}

/// Base 2.0, 3.3.3.2, figure "Common Completion Queue Entry Layout".
struct CompletionQueueEntry {
  Le64 result;  ///< DW0 and DW1: what the command returns
  Le16 sqhd;    ///< submission queue head; FFFFh where flow control is off
  Le16 sqid;    ///< reserved over fabrics
  Le16 cid;
  Le16 status_field;

  [[nodiscard]] constexpr Cid command_id() const noexcept { return Cid(cid.get()); }
  constexpr Status status() const noexcept { return Status::from_completion(status_field.get()); }
  [[nodiscard]] constexpr std::uint32_t dw0() const noexcept {
    return static_cast<std::uint32_t>(result.get() & 0xffffffff);
  }
};
static_assert(sizeof(CompletionQueueEntry) == 16 && WireType<CompletionQueueEntry>);
static_assert(offsetof(CompletionQueueEntry, result) == 0 && offsetof(CompletionQueueEntry, sqhd) == 8);
static_assert(offsetof(CompletionQueueEntry, sqid) == 10 && offsetof(CompletionQueueEntry, cid) == 12);
static_assert(offsetof(CompletionQueueEntry, status_field) == 14);

/// The entry at the start of a received command capsule. Nothing if fewer than 64 bytes arrived: no command
/// to answer, so the connection ends.
[[nodiscard]] inline std::optional<SubmissionQueueEntry> parse_command_capsule(
    std::span<const std::byte> received) noexcept {
  return read_wire<SubmissionQueueEntry>(received);
}
/// The entry of a received response capsule. Nothing if fewer than 16 bytes arrived: the connection ends.
[[nodiscard]] inline std::optional<CompletionQueueEntry> parse_response_capsule(
    std::span<const std::byte> received) noexcept {
  return read_wire<CompletionQueueEntry>(received);
}

/// For logs: "Read", "Identify", "Connect"; "opcode c1h" has no name and is {}.
[[nodiscard]] std::string_view name(AdminOpcode opcode) noexcept;
[[nodiscard]] std::string_view name(IoOpcode opcode) noexcept;
[[nodiscard]] std::string_view name(FabricsType type) noexcept;

}  // namespace rbt::nvme
