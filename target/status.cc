#include "target/status.h"

namespace rbt::target {

using nvme::Status;
using nvme::StatusCode;

Status status_of(StoreStatus status) noexcept {
  switch (status) {
    case StoreStatus::ok: return StatusCode::success;
    // The medium may answer better the next time: the host decides whether to ask again.
    case StoreStatus::read_error: return StatusCode::unrecovered_read_error;
    case StoreStatus::write_error: return StatusCode::write_fault;
    case StoreStatus::unavailable: return StatusCode::namespace_not_ready;
    // These stay as they are.
    case StoreStatus::no_space: return Status::permanent(StatusCode::capacity_exceeded);
    case StoreStatus::read_only: return Status::permanent(StatusCode::namespace_write_protected);
    case StoreStatus::out_of_range: return Status::permanent(StatusCode::lba_out_of_range);
    case StoreStatus::unsupported: return Status::permanent(StatusCode::invalid_opcode);
  }
  return StatusCode::internal_error;
}

std::uint16_t parameter_location(StatusCode code) noexcept {
  struct Place {
    StatusCode code;
    std::uint16_t byte;
    std::uint16_t bit = 0;
  };
  constexpr Place kPlaces[] = {
      {StatusCode::invalid_opcode, 0},
      {StatusCode::fused_missing, 1},
      {StatusCode::command_id_conflict, 2},
      {StatusCode::invalid_namespace, 4},
      {StatusCode::sgl_invalid_offset, 24},
      {StatusCode::sgl_invalid_length, 32},
      {StatusCode::sgl_invalid_type, 39},
      {StatusCode::invalid_log_page, 40},
      {StatusCode::lba_out_of_range, 40},
      {StatusCode::feature_not_saveable, 43, 7},
      {StatusCode::atomic_write_unit_exceeded, 48},
  };
  for (const Place& place : kPlaces)
    if (place.code == code) return static_cast<std::uint16_t>(place.bit << 8 | place.byte);
  return kNotSaid;
}

}  // namespace rbt::target
