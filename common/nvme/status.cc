#include "common/nvme/status.h"

#include <fmt/format.h>

#include "common/nvme/types.h"

namespace rbt::nvme {

// The numbers are ours to read; that they are the specification's is checked against libnvme's.
static_assert(static_cast<int>(StatusCode::sgl_invalid_offset) == NVME_SC_SGL_INVALID_OFFSET);
static_assert(static_cast<int>(StatusCode::sgl_invalid_length) == NVME_SC_SGL_INVALID_DATA);
static_assert(static_cast<int>(StatusCode::host_id_inconsistent) == NVME_SC_HOSTID_FORMAT);
static_assert(static_cast<int>(StatusCode::namespace_write_protected) == NVME_SC_NS_WRITE_PROTECTED);
static_assert(static_cast<int>(StatusCode::lba_out_of_range) == NVME_SC_LBA_RANGE);
static_assert(static_cast<int>(StatusCode::namespace_not_ready) == NVME_SC_NS_NOT_READY);
static_assert(static_cast<int>(StatusCode::invalid_log_page) ==
              (NVME_SCT_CMD_SPECIFIC << 8 | NVME_SC_INVALID_LOG_PAGE));
static_assert(static_cast<int>(StatusCode::connect_invalid_host) ==
              (NVME_SCT_CMD_SPECIFIC << 8 | NVME_SC_CONNECT_INVALID_HOST));
static_assert(static_cast<int>(StatusCode::authentication_required) ==
              (NVME_SCT_CMD_SPECIFIC << 8 | NVME_SC_AUTH_REQUIRED));
static_assert(static_cast<int>(StatusCode::compare_failure) == (NVME_SCT_MEDIA << 8 | NVME_SC_COMPARE_FAILED));
static_assert(static_cast<int>(StatusCode::aborted_by_host) == (NVME_SCT_PATH << 8 | NVME_SC_CMD_ABORTED_BY_HOST));
static_assert(Status::permanent(StatusCode::success).to_completion() >> 1 == NVME_SC_DNR);

namespace {

// Names of the specification. An enumerator without one here is a compiler warning, so an error.
std::string_view known_name(StatusCode code) noexcept {
  switch (code) {
    case StatusCode::success: return "Successful Completion";
    case StatusCode::invalid_opcode: return "Invalid Command Opcode";
    case StatusCode::invalid_field: return "Invalid Field in Command";
    case StatusCode::command_id_conflict: return "Command ID Conflict";
    case StatusCode::data_transfer_error: return "Data Transfer Error";
    case StatusCode::power_loss: return "Aborted due to Power Loss";
    case StatusCode::internal_error: return "Internal Error";
    case StatusCode::abort_requested: return "Command Abort Requested";
    case StatusCode::aborted_queue_deleted: return "Command Aborted due to SQ Deletion";
    case StatusCode::fused_failed: return "Aborted due to Failed Fused Command";
    case StatusCode::fused_missing: return "Aborted due to Missing Fused Command";
    case StatusCode::invalid_namespace: return "Invalid Namespace or Format";
    case StatusCode::command_sequence_error: return "Command Sequence Error";
    case StatusCode::sgl_invalid_segment: return "Invalid SGL Segment Descriptor";
    case StatusCode::sgl_invalid_count: return "Invalid Number of SGL Descriptors";
    case StatusCode::sgl_invalid_length: return "Data SGL Length Invalid";
    case StatusCode::sgl_invalid_type: return "SGL Descriptor Type Invalid";
    case StatusCode::atomic_write_unit_exceeded: return "Atomic Write Unit Exceeded";
    case StatusCode::operation_denied: return "Operation Denied";
    case StatusCode::sgl_invalid_offset: return "SGL Offset Invalid";
    case StatusCode::host_id_inconsistent: return "Host Identifier Inconsistent Format";
    case StatusCode::keep_alive_expired: return "Keep Alive Timer Expired";
    case StatusCode::keep_alive_invalid: return "Keep Alive Timeout Invalid";
    case StatusCode::preempted_and_aborted: return "Command Aborted due to Preempt and Abort";
    case StatusCode::namespace_write_protected: return "Namespace is Write Protected";
    case StatusCode::command_interrupted: return "Command Interrupted";
    case StatusCode::transient_transport_error: return "Transient Transport Error";
    case StatusCode::media_not_ready: return "Admin Command Media Not Ready";
    case StatusCode::lba_out_of_range: return "LBA Out of Range";
    case StatusCode::capacity_exceeded: return "Capacity Exceeded";
    case StatusCode::namespace_not_ready: return "Namespace Not Ready";
    case StatusCode::reservation_conflict: return "Reservation Conflict";
    case StatusCode::format_in_progress: return "Format In Progress";
    case StatusCode::invalid_queue_id: return "Invalid Queue Identifier";
    case StatusCode::invalid_queue_size: return "Invalid Queue Size";
    case StatusCode::abort_limit_exceeded: return "Abort Command Limit Exceeded";
    case StatusCode::async_event_limit_exceeded: return "Asynchronous Event Request Limit Exceeded";
    case StatusCode::invalid_log_page: return "Invalid Log Page";
    case StatusCode::invalid_format: return "Invalid Format";
    case StatusCode::feature_not_saveable: return "Feature Identifier Not Saveable";
    case StatusCode::feature_not_changeable: return "Feature Not Changeable";
    case StatusCode::feature_not_per_namespace: return "Feature Not Namespace Specific";
    case StatusCode::invalid_controller_id: return "Invalid Controller Identifier";
    case StatusCode::command_set_not_supported: return "I/O Command Set Not Supported";
    case StatusCode::command_set_not_enabled: return "I/O Command Set Not Enabled";
    case StatusCode::command_set_combination_rejected: return "I/O Command Set Combination Rejected";
    case StatusCode::invalid_command_set: return "Invalid I/O Command Set";
    case StatusCode::connect_incompatible_format: return "Connect Incompatible Format or Conflicting Attributes";
    case StatusCode::connect_controller_busy: return "Connect Controller Busy or Invalid Protection Information";
    case StatusCode::connect_invalid_parameters: return "Connect Invalid Parameters or Write to Read Only Range";
    case StatusCode::connect_restart_discovery: return "Connect Restart Discovery or Command Size Limit Exceeded";
    case StatusCode::connect_invalid_host: return "Connect Invalid Host";
    case StatusCode::invalid_queue_type: return "Invalid Queue Type";
    case StatusCode::discover_restart: return "Discover Restart";
    case StatusCode::authentication_required: return "Authentication Required";
    case StatusCode::write_fault: return "Write Fault";
    case StatusCode::unrecovered_read_error: return "Unrecovered Read Error";
    case StatusCode::guard_check_error: return "End-to-end Guard Check Error";
    case StatusCode::application_tag_check_error: return "End-to-end Application Tag Check Error";
    case StatusCode::reference_tag_check_error: return "End-to-end Reference Tag Check Error";
    case StatusCode::compare_failure: return "Compare Failure";
    case StatusCode::access_denied: return "Access Denied";
    case StatusCode::deallocated_block: return "Deallocated or Unwritten Logical Block";
    case StatusCode::internal_path_error: return "Internal Path Error";
    case StatusCode::ana_persistent_loss: return "Asymmetric Access Persistent Loss";
    case StatusCode::ana_inaccessible: return "Asymmetric Access Inaccessible";
    case StatusCode::ana_transition: return "Asymmetric Access Transition";
    case StatusCode::controller_path_error: return "Controller Pathing Error";
    case StatusCode::host_path_error: return "Host Pathing Error";
    case StatusCode::aborted_by_host: return "Command Aborted By Host";
  }
  return {};
}

}  // namespace

std::string name(StatusCode code) {
  if (const auto known = known_name(code); !known.empty()) return std::string(known);
  const auto value = static_cast<unsigned>(code);
  return fmt::format("status {}/{:02x}h", value >> 8, value & 0xff);
}

std::string describe(Status status) {
  const auto value = static_cast<unsigned>(status.code());
  std::string text = fmt::format("{} ({}/{:02x}h", name(status.code()), value >> 8, value & 0xff);
  if (status.retry_delay() != 0) text += fmt::format(", retry after CRDT{}", status.retry_delay());
  if (status.more()) text += ", more in the error log";
  if (status.do_not_retry()) text += ", do not retry";
  return text + ")";
}

}  // namespace rbt::nvme
