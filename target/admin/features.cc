// Set Features and Get Features (Base 2.0, 5.15 and 5.27).

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "common/nvme/admin_command.h"
#include "common/nvme/types.h"
#include "target/admin/admin.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/reactor_context.h"
#include "target/reservation/reservations.h"

namespace rbt::target {
namespace {

using nvme::Expected;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

constexpr std::uint32_t kTimestampBytes = 8;
constexpr std::uint32_t kHostIdBytes = 16;
constexpr std::uint32_t kWriteCacheEnable = 1;
constexpr std::uint32_t kExtendedHostId = 1;
constexpr std::uint32_t kPersists = 1;  // PTPL
// SMART / Health critical warnings may be asked for by everybody; notices only where Identify (OAES) offers them.
constexpr std::uint32_t kCriticalWarnings = 0xff;

bool is_io(const Command& command) {
  return command.controller().kind() == ControllerKind::io;
}

std::uint32_t async_events_known(const Command& command) {
  return is_io(command) ? kCriticalWarnings | NVME_FEATURE_AENCFG_NOTICE_NAMESPACE_ATTRIBUTES |
                              NVME_FEATURE_AENCFG_NOTICE_ANA_CHANGE
                        : kCriticalWarnings;
}

// Which features there are, and how many bytes of data they have.
Expected<std::uint32_t> data_bytes(const Command& command, std::uint8_t fid) {
  switch (fid) {
    case NVME_FEAT_FID_ASYNC_EVENT:
    case NVME_FEAT_FID_KATO: return 0;
    case NVME_FEAT_FID_NUM_QUEUES:
      if (is_io(command)) return 0;
      break;
    case NVME_FEAT_FID_VOLATILE_WC:
      if (is_io(command) && command.controller().offers_write_cache()) return 0;
      break;
    case NVME_FEAT_FID_TIMESTAMP:
      if (is_io(command)) return kTimestampBytes;
      break;
    case NVME_FEAT_FID_HOST_ID:
      if (is_io(command)) return kHostIdBytes;
      break;
    case NVME_FEAT_FID_RESV_MASK:
    case NVME_FEAT_FID_RESV_PERSIST:
      if (is_io(command)) return 0;
      break;
    default: break;
  }
  return refuse(StatusCode::invalid_field);
}

Plan plan_for(std::uint32_t bytes) {
  return bytes == 0 ? Plan{} : Plan{.memory = Plan::Memory::buffer, .bytes = bytes};
}

Step set_queue_count(Command& command, std::uint32_t value) {
  Controller& controller = command.controller();
  const auto wanted = nvme::parse_queue_counts(value);
  if (!wanted) return command.finish(wanted.error());
  // Only between enabling the controller and its first I/O queue (5.27.1.5).
  if (command.connection().reactor().core().controllers.io_queue_count(controller) > 0)
    return command.finish(Status::permanent(StatusCode::command_sequence_error));
  const std::uint32_t granted = std::min({wanted->submission, wanted->completion, controller.io_queues_max()});
  controller.grant_io_queues(granted);
  command.set_result(nvme::encode_queue_counts({granted, granted}));
  return command.finish(Status());
}

Step set_timestamp(Command& command) {
  constexpr std::uint64_t kMask = (std::uint64_t{1} << 48) - 1;
  Features& features = command.controller().features();
  features.timestamp_ms = nvme::read_wire<nvme::Le64>(command.buffer())->get() & kMask;
  features.timestamp_set_at = command.connection().reactor().core().clock.now();
  features.timestamp_by_host = true;
  return command.finish(Status());
}

// 5.27.1.14: milliseconds in 47:0, bits 51:49 say who set it: 0 the controller, 1 the host.
std::uint64_t timestamp_now(const Command& command) {
  const Clock& clock = command.connection().reactor().core().clock;
  const Features& features = command.controller().features();
  if (!features.timestamp_by_host) return clock.unix_time_ms();
  constexpr std::uint64_t kByHost = std::uint64_t{1} << 49;
  const auto since =
      std::chrono::duration_cast<std::chrono::milliseconds>(clock.now() - features.timestamp_set_at).count();
  return ((features.timestamp_ms + static_cast<std::uint64_t>(since)) & ((std::uint64_t{1} << 48) - 1)) | kByHost;
}

bool is_of_namespace(std::uint8_t fid) {
  return fid == NVME_FEAT_FID_RESV_MASK || fid == NVME_FEAT_FID_RESV_PERSIST;
}

// Every namespace that is meant: one, or all for FFFFFFFFh.
std::vector<ServedNamespace*> namespaces_meant(const Command& command, Nsid nsid) {
  std::vector<ServedNamespace*> meant;
  if (nsid != nvme::kNsidAll) {
    if (ServedNamespace* const one = command.namespaces().find(nsid)) meant.push_back(one);
    return meant;
  }
  for (auto* each = command.namespaces().after(Nsid(0)); each; each = command.namespaces().after(each->nsid()))
    meant.push_back(each);
  return meant;
}

Step set_notification_mask(Command& command, const nvme::SetFeatures& wanted) {
  if ((wanted.value & ~std::uint32_t{ReservationNotices::kMaskBits}) != 0)
    return command.blame(44), command.finish(Status::permanent(StatusCode::invalid_field));
  for (const ServedNamespace* const each : namespaces_meant(command, wanted.nsid))
    command.controller().reservation_notices().set_mask(each->nsid(), static_cast<std::uint8_t>(wanted.value));
  return command.finish(Status());
}

// Of one namespace, or of all that can: each may have to be written down, and the last one answers.
Step set_persistence(Command& command, const nvme::SetFeatures& wanted) {
  struct Sum {
    std::atomic<std::size_t> missing;
    std::atomic<std::uint16_t> failed{0};  // a completion's status field
    std::function<void(Status)> answer;
  };
  auto meant = namespaces_meant(command, wanted.nsid);
  if (wanted.nsid == nvme::kNsidAll)
    std::erase_if(meant, [](const ServedNamespace* each) { return !each->shared().reservations().can_persist(); });
  if (meant.empty()) return command.finish(Status::permanent(StatusCode::invalid_field));
  const auto sum = std::make_shared<Sum>();
  sum->missing = meant.size();
  sum->answer = command.connection().reactor().later_answer(command);
  for (const ServedNamespace* const each : meant)
    each->shared().reservations().submit(command.controller().identity().host_id,
                                         SetReservationPersistence{(wanted.value & kPersists) != 0},
                                         [sum](Status status) {
                                           if (!status.ok()) sum->failed = status.to_completion();
                                           if (--sum->missing == 0) sum->answer(Status::from_completion(sum->failed));
                                         });
  return Step::held;
}

}  // namespace

Expected<Plan> plan_set_features(Command& command) {
  const auto wanted = nvme::parse_set_features(command.sqe());
  if (wanted.save == nvme::SaveFeature::yes) return refuse(StatusCode::feature_not_saveable);
  // Over fabrics the host identifier is Connect's for good (5.27.1.25).
  if (wanted.fid == NVME_FEAT_FID_HOST_ID) return refuse(StatusCode::command_sequence_error);
  const auto bytes = data_bytes(command, wanted.fid);
  if (!bytes) return command.blame(40), tl::unexpected(bytes.error());
  if (is_of_namespace(wanted.fid) && namespaces_meant(command, wanted.nsid).empty())
    return refuse(StatusCode::invalid_namespace);
  return plan_for(*bytes);
}

Step set_features(Command& command) {
  const auto wanted = nvme::parse_set_features(command.sqe());
  Controller& controller = command.controller();
  switch (wanted.fid) {
    case NVME_FEAT_FID_NUM_QUEUES: return set_queue_count(command, wanted.value);
    case NVME_FEAT_FID_TIMESTAMP: return set_timestamp(command);
    case NVME_FEAT_FID_RESV_MASK: return set_notification_mask(command, wanted);
    case NVME_FEAT_FID_RESV_PERSIST: return set_persistence(command, wanted);
    case NVME_FEAT_FID_VOLATILE_WC:
      controller.set_write_cache((wanted.value & kWriteCacheEnable) != 0);
      return command.finish(Status());
    case NVME_FEAT_FID_KATO:
      controller.set_keep_alive(std::chrono::milliseconds(wanted.value));
      return command.finish(Status());
    case NVME_FEAT_FID_ASYNC_EVENT:
      if ((wanted.value & ~async_events_known(command)) != 0) {
        command.blame(44);
        break;
      }
      controller.features().async_events = wanted.value;
      send_due_events(controller);  // of what changed before the host could ask for it
      return command.finish(Status());
    default: break;
  }
  return command.finish(Status::permanent(StatusCode::invalid_field));
}

Expected<Plan> plan_get_features(Command& command) {
  const auto wanted = nvme::parse_get_features(command.sqe());
  if (!wanted) return command.blame(41), tl::unexpected(wanted.error());
  // EXHID: over fabrics a host identifier has 16 bytes.
  if (wanted->fid == NVME_FEAT_FID_HOST_ID && (wanted->value & kExtendedHostId) == 0)
    return command.blame(44), refuse(StatusCode::invalid_field);
  const auto bytes = data_bytes(command, wanted->fid);
  if (!bytes) return command.blame(40), tl::unexpected(bytes.error());
  // What can be done with a feature is said in DW0, whatever data it has itself.
  if (wanted->select == nvme::FeatureSelect::supported) return Plan{.more_tolerated = true};
  if (is_of_namespace(wanted->fid) && command.namespaces().find(wanted->nsid) == nullptr)
    return refuse(StatusCode::invalid_namespace);
  return plan_for(*bytes);
}

namespace {

// DW0 of the feature, and its data if it has any. What was never saved is saved as it is by default (5.15.1).
std::uint64_t feature_value(const Command& command, const nvme::GetFeatures& wanted) {
  const bool current = wanted.select == nvme::FeatureSelect::current;
  Controller& controller = command.controller();
  switch (wanted.fid) {
    case NVME_FEAT_FID_NUM_QUEUES: {
      const std::uint32_t count = current ? controller.io_queues_granted() : controller.io_queues_max();
      return nvme::encode_queue_counts({count, count});
    }
    case NVME_FEAT_FID_VOLATILE_WC: return !current || controller.write_cache_enabled() ? kWriteCacheEnable : 0;
    case NVME_FEAT_FID_KATO: return current ? static_cast<std::uint64_t>(controller.keep_alive().count()) : 0;
    case NVME_FEAT_FID_ASYNC_EVENT: return current ? controller.features().async_events : 0;
    case NVME_FEAT_FID_TIMESTAMP: {
      const nvme::Le64 now(current ? timestamp_now(command) : 0);
      std::memcpy(command.buffer().data(), &now, sizeof now);
      return 0;
    }
    case NVME_FEAT_FID_HOST_ID: {
      const auto& id = controller.identity().host_id.bytes();
      std::memcpy(command.buffer().data(), id.data(), id.size());
      return 0;
    }
    case NVME_FEAT_FID_RESV_MASK: return current ? controller.reservation_notices().mask(wanted.nsid) : 0;
    case NVME_FEAT_FID_RESV_PERSIST: {
      const ServedNamespace* const ns =
          command.namespaces().find(wanted.nsid);  // it may have gone since the command came
      return current && ns != nullptr && ns->shared().reservations().state().persists ? kPersists : 0;
    }
    default: return 0;  // plan_get_features() lets no other pass
  }
}

}  // namespace

Step get_features(Command& command) {
  constexpr std::uint64_t kChangeable = 1u << 2;  // not saveable
  constexpr std::uint64_t kOfNamespace = 1u << 1;
  const auto wanted = nvme::parse_get_features(command.sqe());
  if (wanted->select == nvme::FeatureSelect::supported)
    command.set_result(wanted->fid == NVME_FEAT_FID_HOST_ID ? 0
                       : is_of_namespace(wanted->fid)       ? kChangeable | kOfNamespace
                                                            : kChangeable);
  else
    command.set_result(feature_value(command, *wanted));
  return command.finish(Status());
}

}  // namespace rbt::target
