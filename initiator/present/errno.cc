// NVMe statuses as errnos, for those who know nothing else.
#include <cerrno>

#include "initiator/present/shared_disk.h"

namespace rbt::initiator {

namespace {

bool changes(Operation operation) noexcept {
  return operation == Operation::write || operation == Operation::write_zeroes || operation == Operation::discard;
}

// As the NBD protocol has it: there is no space behind the end to write to, and nothing to read.
int beyond_the_end(Operation operation) noexcept {
  return changes(operation) ? ENOSPC : EINVAL;
}

int errno_of_status(Operation operation, nvme::Status status) noexcept {
  using nvme::StatusCode;
  const StatusCode code = status.code();
  if (code == StatusCode::lba_out_of_range) return beyond_the_end(operation);
  if (code == StatusCode::capacity_exceeded) return ENOSPC;
  if (code == StatusCode::namespace_write_protected) return EROFS;
  if (code == StatusCode::connect_invalid_parameters)
    return changes(operation) ? EROFS : EIO;  // 1/82h: read-only range
  if (code == StatusCode::invalid_opcode) return ENOTSUP;
  if (code == StatusCode::invalid_field) return EINVAL;
  if (code == StatusCode::operation_denied || code == StatusCode::access_denied ||
      code == StatusCode::reservation_conflict)
    return EPERM;
  return EIO;
}

}  // namespace

int errno_of(Operation operation, const Ending& ending, bool read_only) noexcept {
  switch (ending.outcome) {
    case Outcome::success: return 0;
    case Outcome::failed: return errno_of_status(operation, ending.status);
    case Outcome::out_of_range: return beyond_the_end(operation);
    case Outcome::misaligned: return EINVAL;
    case Outcome::unsupported: return read_only && changes(operation) ? EROFS : ENOTSUP;
    case Outcome::pending:
    case Outcome::timed_out:  // not ETIMEDOUT: NBD would carry it as EINVAL
    case Outcome::disconnected:
    case Outcome::aborted:
    case Outcome::unmapped: return EIO;
  }
  return EIO;
}

}  // namespace rbt::initiator
