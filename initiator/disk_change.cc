// A disk that changes under its users: it grows, shrinks, goes and comes back, or becomes another one.

#include <fmt/format.h>

#include <utility>

#include "common/nvme/types.h"
#include "initiator/recovery.h"

namespace rbt::initiator {

std::string_view name(DiskChange change) noexcept {
  switch (change) {
    case DiskChange::grown: return "grown";
    case DiskChange::shrunk: return "shrunk";
    case DiskChange::removed: return "removed";
    case DiskChange::returned: return "returned";
    case DiskChange::read_only: return "read-only";
    case DiskChange::writable: return "writable";
  }
  return "unknown";
}

// Within a turn of the reactor: only noted. progress() is due then.
void Volume::Implementation::on_event(const nvme::AsyncEvent& event) {
  if (event.type != NVME_AER_NOTICE) return;
  if (event.lid == NVME_LOG_LID_CHANGED_NS) look_again_ = true;
  if (event.lid == NVME_LOG_LID_ANA) look_at_access_ = true;
}

// The volume is live, requests go on meanwhile.
void Volume::Implementation::look_again() {
  look_again_ = false;
  auto found = session_->look_at(disk_.nsid);
  if (!found) {  // if the path is at fault, that shows
    environment_.logger.warning("{}", found.error().message());
    return;
  }
  if (!*found) {
    disk_gone_ = true;
    return tell_changes();
  }
  if (auto same = compare_disk(**found); !same) {
    lose(same.error());
    take_down();
    return fail(std::move(same.error()));
  }
  // It may have gone and come back in between: opened anew it is another incarnation, and may have forgotten what that says.
  auto info = read_recovery_info(disk_.nsid);
  if (!info) return;
  if (disk_gone_ || (*info && incarnation() && incarnation() != (*info)->incarnation))
    return lose(Error(ErrorKind::disconnected,
                      "the target has opened the namespace anew; what it may have forgotten is "
                      "written again over a new path"));
  follow_disk(**found);
  tell_changes();
}

void Volume::Implementation::follow_disk(const Namespace& now) {
  disk_ = now;
  disk_gone_ = false;
  on_lanes([&now](Lane& lane) { lane.follow(now); });
}

void Volume::Implementation::tell_changes() {
  if (!opened_) return;
  const Told before = std::exchange(told_, {.blocks = disk_.blocks, .read_only = disk_.read_only, .gone = disk_gone_});
  if (before.gone != disk_gone_) tell(disk_gone_ ? DiskChange::removed : DiskChange::returned);
  if (before.blocks != disk_.blocks) tell(before.blocks < disk_.blocks ? DiskChange::grown : DiskChange::shrunk);
  if (before.read_only != disk_.read_only) tell(disk_.read_only ? DiskChange::read_only : DiskChange::writable);
}

void Volume::Implementation::tell(DiskChange change) {
  environment_.logger.info("{}: the disk is {}, with {} blocks of {} bytes", uris_[uri_].to_string(), name(change),
                           told_.blocks.value(), disk_.block_size());
  if (options_.on_change) options_.on_change(change);
}

}  // namespace rbt::initiator
