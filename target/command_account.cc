// What is kept of a command that has ended: its namespace's counters, and the error log.

#include "common/nvme/io_command.h"
#include "target/command.h"
#include "target/connection.h"
#include "target/opcodes.h"
#include "target/reactor_context.h"

namespace rbt::target {

using nvme::StatusCode;

namespace {

// Of media and data integrity errors (type 2) those that are the medium's; a Compare that fails is none.
constexpr bool is_media_error(StatusCode code) noexcept {
  return code == StatusCode::unrecovered_read_error || code == StatusCode::write_fault;
}

}  // namespace

void Command::account() noexcept {
  if (plan_.ns != nullptr) {
    NamespaceCounters& counters = plan_.ns->counters();
    const std::uint64_t bytes = plan_.range.count.value() << plan_.ns->geometry().block_shift.value();
    if (!status_.ok()) {
      count(counters.errors);
      if (is_media_error(status_.code())) count(counters.media_errors);
    } else {
      switch (operation_->counted) {
        case Counted::other: count(counters.other); break;
        case Counted::read:
          count(counters.reads);
          count(counters.bytes_read, bytes);
          break;
        case Counted::write:
          count(counters.writes);
          count(counters.bytes_written, bytes);
          break;
      }
    }
  }
  if (!status_.ok()) log_failure();
}

void Command::log_failure() noexcept {
  if (Controller* const controller = connection_->controller()) {
    ErrorLog::Entry entry;
    entry.qid = connection_->terms().qid;
    entry.cid = sqe_.command_id();
    entry.status = status_;
    entry.location = blamed_;
    if (!sqe_.is_fabrics()) {
      entry.nsid = sqe_.namespace_id();
      if (blamed_ == kNotSaid) entry.location = parameter_location(status_.code());
    }
    if (plan_.ns != nullptr) entry.lba = plan_.range.first;
    if (status_.code() == StatusCode::lba_out_of_range) entry.lba = nvme::parse_block_command(sqe_).first;
    controller->error_log().record(entry);
  }
  // What a host may try to find out what we can is no failure of ours; a medium that fails is.
  const bool serious = is_media_error(status_.code()) || status_.code() == StatusCode::internal_error;
  connection_->reactor().log(LogCause::command_failed, serious ? LogLevel::warning : LogLevel::info,
                             "{}: {} (opcode {:02x}h) cid {} nsid {}: answered with {}", connection_->who(),
                             operation_ != nullptr ? operation_->name : "a command", sqe_.opcode,
                             sqe_.command_id().value(), sqe_.is_fabrics() ? 0 : sqe_.namespace_id().value(),
                             nvme::describe(status_));
}

}  // namespace rbt::target
