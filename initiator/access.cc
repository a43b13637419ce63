// Which path is tried when, and what the target says of it: asymmetric namespace access (Base 2.0, 8.1).

#include "common/nvme/access.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/nvme/types.h"
#include "initiator/call.h"
#include "initiator/recovery.h"

namespace rbt::initiator {

namespace {

constexpr std::size_t kLogBytesMax = 64 * kKiB;  // 2047 groups

}  // namespace

// ---- what the target says

Result<nvme::AccessState> Volume::Implementation::read_access(std::uint32_t group) {
  const std::uint32_t groups = session_->controller().access_groups;
  if (groups == 0 || group == 0) return nvme::AccessState::optimized;
  const std::size_t bytes =
      nvme::kAccessLogHeaderBytes +
      std::min<std::size_t>(groups, kLogBytesMax / nvme::kAccessGroupBytes - 1) * nvme::kAccessGroupBytes;
  std::vector<std::byte> log(bytes);
  auto answer = session_->admin(
      nvme::encode_get_log_page(
          {.nsid = nvme::kNsidAll, .lid = NVME_LOG_LID_ANA, .lsp = nvme::kAccessLogGroupsOnly, .length = Bytes(bytes)}),
      log);
  if (!answer) return rbt::failure(std::move(answer.error()).within("asking for the access state"));
  const auto state = answer->status().ok() ? nvme::find_access_state(log, group) : std::nullopt;
  if (!state)
    environment_.logger.warning("{}: the target does not say what the access state of group {} is; taken for optimized",
                                uris_[uri_].to_string(), group);
  return state.value_or(nvme::AccessState::optimized);
}

// Of a path that is about to be used.
Result<void> Volume::Implementation::check_access(const Namespace& found) {
  const auto state = read_access(found.access_group);
  if (!state) return rbt::failure(Error(state.error()));
  access_ = *state;
  if (!nvme::access_status(*state).ok())
    return rbt::failure(ErrorKind::unreachable, fmt::format("the target says that this path is \"{}\"", name(*state)));
  if (*state == nvme::AccessState::optimized || !optimized_only_) return {};
  second_best_ = true;
  return rbt::failure(ErrorKind::unreachable,
                      "the target says that this path is not the best: the others are tried first");
}

// Of the path that is used. A worse one than it was is worth a look at the others.
void Volume::Implementation::look_at_access() {
  look_at_access_ = false;
  const auto state = read_access(disk_.access_group);
  if (!state) return;  // if the path is at fault, that shows
  const nvme::AccessState before = std::exchange(access_, *state);
  const bool usable = nvme::access_status(*state).ok();
  if (usable && (*state == nvme::AccessState::optimized || before == *state || uris_.size() == 1)) return;
  lose(Error(ErrorKind::unreachable, fmt::format("the target says that this path is \"{}\"", name(*state))));
}

// ---- rounds

void Volume::Implementation::begin_round() {
  untried_ = uris_.size();
  optimized_only_ = uris_.size() > 1;
  second_best_ = false;
  round_fatal_.reset();
}

// After an attempt that has failed. Nothing is waited for as long as there is something untried.
void Volume::Implementation::next_in_round() {
  uri_ = (uri_ + 1) % uris_.size();
  if (--untried_ != 0) return;
  if (!optimized_only_ || !second_best_) return;
  optimized_only_ = false;
  untried_ = uris_.size();
}

}  // namespace rbt::initiator
