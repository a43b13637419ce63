#pragma once
// What a command's completion tells the host: Base 2.0, 3.3.3.2 (status field), status codes of
// Base 3.3.3.2.1 to .4.

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>

namespace rbt::nvme {

/// Status code type << 8 | status code. Values that have no name here pass through unharmed.
enum class StatusCode : std::uint16_t {
  // generic, type 0
  success = 0x000,
  invalid_opcode = 0x001,
  invalid_field = 0x002,
  command_id_conflict = 0x003,
  data_transfer_error = 0x004,
  power_loss = 0x005,
  internal_error = 0x006,
  abort_requested = 0x007,
  aborted_queue_deleted = 0x008,
  fused_failed = 0x009,
  fused_missing = 0x00a,
  invalid_namespace = 0x00b,
  command_sequence_error = 0x00c,
  sgl_invalid_segment = 0x00d,
  sgl_invalid_count = 0x00e,
  sgl_invalid_length = 0x00f,
  sgl_invalid_type = 0x011,
  atomic_write_unit_exceeded = 0x014,
  operation_denied = 0x015,
  sgl_invalid_offset = 0x016,
  host_id_inconsistent = 0x018,
  keep_alive_expired = 0x019,
  keep_alive_invalid = 0x01a,
  preempted_and_aborted = 0x01b,
  namespace_write_protected = 0x020,
  command_interrupted = 0x021,
  transient_transport_error = 0x022,
  media_not_ready = 0x024,
  lba_out_of_range = 0x080,
  capacity_exceeded = 0x081,
  namespace_not_ready = 0x082,
  reservation_conflict = 0x083,
  format_in_progress = 0x084,
  // command specific, type 1
  invalid_queue_id = 0x101,
  invalid_queue_size = 0x102,
  abort_limit_exceeded = 0x103,
  async_event_limit_exceeded = 0x105,
  invalid_log_page = 0x109,
  invalid_format = 0x10a,
  feature_not_saveable = 0x10d,
  feature_not_changeable = 0x10e,
  feature_not_per_namespace = 0x10f,
  invalid_controller_id = 0x11f,
  command_set_not_supported = 0x129,
  command_set_not_enabled = 0x12a,
  command_set_combination_rejected = 0x12b,
  invalid_command_set = 0x12c,
  // command specific to fabrics and to the NVM command set: the same numbers, told apart by the command
  connect_incompatible_format = 0x180,  ///< and, for I/O, conflicting attributes
  connect_controller_busy = 0x181,      ///< and, for I/O, invalid protection information
  connect_invalid_parameters = 0x182,   ///< and, for I/O, write to a read-only range
  connect_restart_discovery = 0x183,    ///< and, for I/O, command size limit exceeded
  connect_invalid_host = 0x184,
  invalid_queue_type = 0x185,
  discover_restart = 0x190,
  authentication_required = 0x191,
  // media and data integrity, type 2
  write_fault = 0x280,
  unrecovered_read_error = 0x281,
  guard_check_error = 0x282,
  application_tag_check_error = 0x283,
  reference_tag_check_error = 0x284,
  compare_failure = 0x285,
  access_denied = 0x286,
  deallocated_block = 0x287,
  // path, type 3
  internal_path_error = 0x300,
  ana_persistent_loss = 0x301,
  ana_inaccessible = 0x302,
  ana_transition = 0x303,
  controller_path_error = 0x360,
  host_path_error = 0x370,
  aborted_by_host = 0x371,
};

/// "Invalid Field in Command", or "status 1/c0h" for a code without a name.
[[nodiscard]] std::string name(StatusCode code);

/// The 15 bits that a completion carries: code, type, retry delay, more, do-not-retry. A value type.
class [[nodiscard]] Status {
 public:
  constexpr Status() noexcept = default;  ///< success
  constexpr Status(StatusCode code) noexcept : field_(static_cast<std::uint16_t>(code)) {}

  /// `code` with DNR: the same command will fail again, as for everything that is wrong with its fields.
  static constexpr Status permanent(StatusCode code) noexcept { return Status(code).with(kDnr); }
  /// The 16 bits at byte 14 of a completion; the phase tag (bit 0, unused by fabrics) is dropped.
  static constexpr Status from_completion(std::uint16_t word) noexcept {
    Status status;
    status.field_ = static_cast<std::uint16_t>(word >> 1);
    return status;
  }
  [[nodiscard]] constexpr std::uint16_t to_completion() const noexcept {
    return static_cast<std::uint16_t>(field_ << 1);
  }

  [[nodiscard]] constexpr bool ok() const noexcept { return (field_ & kCodeMask) == 0; }
  /// Type and code, without the bits around them: what to compare and to switch on.
  [[nodiscard]] constexpr StatusCode code() const noexcept { return static_cast<StatusCode>(field_ & kCodeMask); }
  [[nodiscard]] constexpr std::uint8_t type() const noexcept { return static_cast<std::uint8_t>(field_ >> 8 & 7); }
  [[nodiscard]] constexpr bool do_not_retry() const noexcept { return (field_ & kDnr) != 0; }
  [[nodiscard]] constexpr bool more() const noexcept { return (field_ & kMore) != 0; }
  /// 0: none; 1 to 3: wait for CRDT1 to CRDT3 of Identify Controller before the retry.
  [[nodiscard]] constexpr std::uint8_t retry_delay() const noexcept {
    return static_cast<std::uint8_t>(field_ >> 11 & 3);
  }
  constexpr Status with_retry_delay(std::uint8_t crd) const noexcept {
    return with(static_cast<std::uint16_t>((crd & 3) << 11));
  }
  constexpr Status with_more() const noexcept { return with(kMore); }

  friend constexpr bool operator==(Status, Status) noexcept = default;

 private:
  static constexpr std::uint16_t kCodeMask = 0x07ff;
  static constexpr std::uint16_t kMore = 0x2000;
  static constexpr std::uint16_t kDnr = 0x4000;
  constexpr Status with(std::uint16_t field_bits) const noexcept {
    Status status = *this;
    status.field_ = static_cast<std::uint16_t>(status.field_ | field_bits);
    return status;
  }
  std::uint16_t field_ = 0;
};
static_assert(sizeof(Status) == 2);

/// For people: "Invalid Field in Command (0/02h, do not retry)".
[[nodiscard]] std::string describe(Status status);

/// A value that a peer's message was validated into, or the status to answer with.
template <typename T>
using Expected = tl::expected<T, Status>;

/// `return refuse(StatusCode::invalid_field)` from a parser: with DNR, since the same bytes stay wrong.
[[nodiscard]] constexpr tl::unexpected<Status> refuse(StatusCode code) noexcept {
  return tl::unexpected<Status>(Status::permanent(code));
}

}  // namespace rbt::nvme
