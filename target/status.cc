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

}  // namespace rbt::target
