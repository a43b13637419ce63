// Get Log Page (Base 2.0, 5.16).

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/nvme/access.h"
#include "common/nvme/admin_command.h"
#include "common/nvme/recovery.h"
#include "common/nvme/text.h"
#include "common/nvme/types.h"
#include "target/admin/admin.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/discovery.h"
#include "target/io/io.h"
#include "target/opcodes.h"
#include "target/reactor_context.h"
#include "target/version.h"

namespace rbt::target {
namespace {

using nvme::Expected;
using nvme::GetLogPage;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;
using nvme::to_le;

template <typename T>
std::span<const std::byte> bytes_of(const T& page) {
  return std::as_bytes(std::span(&page, 1));
}

Step answer(Command& command, const GetLogPage& wanted, std::span<const std::byte> log) {
  const bool inside = nvme::copy_log_page(log, wanted.offset, command.buffer());
  return command.finish(inside ? Status() : Status::permanent(StatusCode::invalid_field));
}

Step error_log(Command& command, const GetLogPage& wanted) {
  std::array<nvme_error_log_page, ErrorLog::kEntries> log{};
  const auto entries = command.controller().error_log().newest_first();
  for (std::size_t i = 0; i < entries.size() && entries[i].number != 0; ++i) {
    log[i].error_count = to_le(entries[i].number);
    log[i].sqid = to_le(entries[i].qid.value());
    log[i].cmdid = to_le(entries[i].cid.value());
    log[i].status_field = to_le(entries[i].status.to_completion());
    log[i].parm_error_location = to_le(entries[i].location);
    log[i].lba = to_le(entries[i].lba.value());
    log[i].nsid = to_le(entries[i].nsid.value());
  }
  return answer(command, wanted, bytes_of(log));
}

// 128-bit counters, of which 64 are enough.
void set_counter(std::uint8_t (&field)[16], std::uint64_t value) {
  const std::uint64_t le = to_le(value);
  std::memcpy(field, &le, sizeof le);
}

// Thousands of 512-byte units, rounded up.
constexpr std::uint64_t data_units(std::uint64_t bytes) {
  return (bytes / 512 + 999) / 1000;
}

bool of_controller(const GetLogPage& wanted) {
  return wanted.nsid == Nsid(0) || wanted.nsid == nvme::kNsidAll;
}

Step smart_log(Command& command, const GetLogPage& wanted) {
  const Core& core = command.connection().reactor().core();
  NamespaceTotals totals;
  const ServedNamespace* const one = command.namespaces().find(wanted.nsid);
  if (one == nullptr && !of_controller(wanted))  // it has gone since the command came
    return command.finish(Status::permanent(StatusCode::invalid_namespace));
  if (one != nullptr) totals += one->shared().totals();
  if (one == nullptr)
    for (const auto* ns = command.namespaces().after(Nsid(0)); ns; ns = command.namespaces().after(ns->nsid()))
      totals += ns->shared().totals();
  nvme_smart_log log{};
  log.avail_spare = 100;
  set_counter(log.data_units_read, data_units(totals.bytes_read));
  set_counter(log.data_units_written, data_units(totals.bytes_written));
  set_counter(log.host_reads, totals.reads);
  set_counter(log.host_writes, totals.writes);
  set_counter(log.media_errors, totals.media_errors);
  const auto hours = std::chrono::duration_cast<std::chrono::hours>(core.clock.now() - core.started).count();
  set_counter(log.power_on_hours, static_cast<std::uint64_t>(hours));
  set_counter(log.num_err_log_entries, command.controller().error_log().total());
  return answer(command, wanted, bytes_of(log));
}

Step firmware_log(Command& command, const GetLogPage& wanted) {
  nvme_firmware_slot log{};
  log.afi = 1;
  nvme::set_padded(log.frs[0], kFirmwareRevision);
  return answer(command, wanted, bytes_of(log));
}

Step effects_log(Command& command, const GetLogPage& wanted) {
  nvme_cmd_effects_log log{};
  for (const Operation& operation : operations()) {
    if (operation.kind == QueueKind::admin) log.acs[operation.opcode] = to_le(operation.effects);
    if (operation.kind == QueueKind::io) log.iocs[operation.opcode] = to_le(operation.effects);
  }
  return answer(command, wanted, bytes_of(log));
}

// Reading any part of it without RAE acknowledges all of it, event included (Base 2.0, 5.2 and 5.16).
Step changed_namespaces(Command& command, const GetLogPage& wanted) {
  ChangedNamespaces& changed = command.controller().changed_namespaces();
  const bool inside = nvme::copy_log_page(bytes_of(changed.page()), wanted.offset, command.buffer());
  if (!inside) return command.finish(Status::permanent(StatusCode::invalid_field));
  if (wanted.retain == nvme::RetainEvent::no) changed.clear();
  return command.finish(Status());
}

// Reading any part of it without RAE acknowledges the event, as above. Never changed between two parts: the event says so.
Step access_log(Command& command, const GetLogPage& wanted) {
  const Port& port = command.connection().port();
  nvme::AccessLog log{.changes = port.changes(), .group = kAccessGroup, .state = port.access()};
  if ((wanted.lsp & nvme::kAccessLogGroupsOnly) == 0)
    for (const auto* ns = command.namespaces().after(Nsid(0)); ns; ns = command.namespaces().after(ns->nsid()))
      log.namespaces.push_back(ns->nsid());
  if (wanted.retain == nvme::RetainEvent::no) command.controller().access_notice().clear();
  return answer(command, wanted, nvme::encode_access_log(log));
}

// There may be more of them: the next one is another event.
Step reservation_log(Command& command, const GetLogPage& wanted) {
  ReservationNotices& notices = command.controller().reservation_notices();
  const nvme_resv_notification_log log = notices.page();
  const Step step = answer(command, wanted, bytes_of(log));
  if (wanted.retain == nvme::RetainEvent::no) notices.take();
  send_due_events(command.controller());
  return step;
}

// A host reads it piece by piece and may well ask for what lies behind the end: that is zeroes, not an error.
Step discovery_log(Command& command, const GetLogPage& wanted) {
  const auto log = build_discovery_log(command.connection(), command.controller().identity());
  static_cast<void>(nvme::copy_log_page(log, wanted.offset, command.buffer()));
  return command.finish(Status());
}

using Answer = Step (*)(Command&, const GetLogPage&);

Answer find_log(ControllerKind kind, std::uint8_t lid) {
  if (kind == ControllerKind::discovery) {
    if (lid == NVME_LOG_LID_DISCOVER) return discovery_log;
    return lid == NVME_LOG_LID_ERROR ? error_log : nullptr;
  }
  switch (lid) {
    case NVME_LOG_LID_ERROR: return error_log;
    case NVME_LOG_LID_SMART: return smart_log;
    case NVME_LOG_LID_FW_SLOT: return firmware_log;
    case NVME_LOG_LID_CHANGED_NS: return changed_namespaces;
    case NVME_LOG_LID_CMD_EFFECTS: return effects_log;
    case NVME_LOG_LID_ANA: return access_log;
    case NVME_LOG_LID_RESERVATION: return reservation_log;
    case nvme::kRecoveryLogId: return recovery_log;
    default: return nullptr;
  }
}

}  // namespace

Expected<Plan> plan_get_log_page(Command& command) {
  const auto wanted = nvme::parse_get_log_page(command.sqe());
  if (!wanted) return tl::unexpected(wanted.error());
  const Subsystem& subsystem = command.controller().subsystem();
  if (find_log(subsystem.kind(), wanted->lid) == nullptr) return refuse(StatusCode::invalid_log_page);
  if (wanted->length.value() > kTransferMax) return refuse(StatusCode::invalid_field);
  if (wanted->lid == NVME_LOG_LID_CMD_EFFECTS && wanted->command_set != 0) return refuse(StatusCode::invalid_field);
  if ((wanted->lid == NVME_LOG_LID_SMART || wanted->lid == nvme::kRecoveryLogId) && !of_controller(*wanted) &&
      command.namespaces().find(wanted->nsid) == nullptr)
    return refuse(StatusCode::invalid_namespace);
  return Plan{.memory = Plan::Memory::buffer, .bytes = static_cast<std::uint32_t>(wanted->length.value())};
}

Step get_log_page(Command& command) {
  const auto wanted = nvme::parse_get_log_page(command.sqe());
  return find_log(command.controller().kind(), wanted->lid)(command, *wanted);
}

}  // namespace rbt::target
