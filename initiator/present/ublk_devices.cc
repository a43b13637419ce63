// ublk devices of this machine, whoever made them: for those who look, and clean up.

#include <dirent.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <string_view>
#include <utility>

#include "initiator/present/ublk.h"
#include "initiator/present/ublk_control.h"
#include "initiator/present/ublk_queue.h"

namespace rbt::initiator {

namespace {

constexpr unsigned kSectorShift = 9;
constexpr const char* kClass = "/sys/class/ublk-char";  // one entry, ublkcN, per device

UblkState state_of(std::uint16_t state) noexcept {
  switch (state) {
    case UBLK_S_DEV_DEAD: return UblkState::dead;
    case UBLK_S_DEV_LIVE: return UblkState::live;
    case UBLK_S_DEV_QUIESCED: return UblkState::quiesced;
    default: return UblkState::other;
  }
}

UblkInfo describe(const ublksrv_ctrl_dev_info& info, const ublk_params& params) {
  const bool known = (params.types & UBLK_PARAM_TYPE_BASIC) != 0;
  return {.number = info.dev_id,
          .ours = ublk::is_ours(info.ublksrv_flags),
          .tag = ublk::is_ours(info.ublksrv_flags) ? ublk::tag_of(info.ublksrv_flags) : 0,
          .state = state_of(info.state),
          .pid = info.ublksrv_pid,
          .size = Bytes(known ? params.basic.dev_sectors << kSectorShift : 0),
          .options = ublk_options_of(info, known && (params.basic.attrs & UBLK_ATTR_READ_ONLY) != 0)};
}

Result<UblkInfo> look(UblkControl& control, std::uint32_t number, Instant deadline) {
  auto info = control.info(number, deadline);
  if (!info) return failure(std::move(info.error()));
  auto params = control.params(number, deadline);
  return describe(*info, params ? *params : ublk_params{});  // one without any has no size yet
}

std::vector<std::uint32_t> numbers() {
  std::vector<std::uint32_t> found;
  DIR* const directory = ::opendir(kClass);
  if (directory == nullptr) return found;  // no module
  while (const dirent* const entry = ::readdir(directory)) {
    std::string_view text(entry->d_name);
    constexpr std::string_view kPrefix = "ublkc";
    if (!text.starts_with(kPrefix)) continue;
    text.remove_prefix(kPrefix.size());
    std::uint32_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc{} && end == text.data() + text.size()) found.push_back(number);
  }
  ::closedir(directory);
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

std::string_view name(UblkState state) noexcept {
  switch (state) {
    case UblkState::dead: return "dead";
    case UblkState::live: return "live";
    case UblkState::quiesced: return "quiesced";
    case UblkState::other: break;
  }
  return "other";
}

DeviceOptions ublk_options_of(const ublksrv_ctrl_dev_info& info, bool read_only) noexcept {
  return {.queues = info.nr_hw_queues,
          .depth = info.queue_depth,
          .io_max = Bytes(std::bit_ceil(std::uint64_t{std::max(info.max_io_buf_bytes, 1U)})),
          .read_only = read_only,
          .recover = info.dev_id};
}

Result<std::vector<UblkInfo>> list_ublk(Instant deadline, const Clock& clock) {
  std::vector<UblkInfo> all;
  const auto there = numbers();
  if (there.empty()) return all;
  auto control = UblkControl::open(clock, deadline);
  if (!control) return failure(std::move(control.error()));
  for (const std::uint32_t number : there) {
    auto info = look(**control, number, deadline);
    if (info)
      all.push_back(*info);
    else if (info.error().kind() != ErrorKind::not_found)  // gone since
      return failure(std::move(info.error()));
  }
  return all;
}

Result<UblkInfo> find_ublk(std::uint32_t number, Instant deadline, const Clock& clock) {
  auto control = UblkControl::open(clock, deadline);
  if (!control) return failure(std::move(control.error()));
  return look(**control, number, deadline);
}

Result<void> remove_ublk(std::uint32_t number, Instant deadline, const Clock& clock) {
  auto control = UblkControl::open(clock, deadline);
  if (!control) return failure(std::move(control.error()));
  if (auto stopped = (*control)->stop(number, deadline, {}); !stopped) return stopped;
  return (*control)->remove(number, deadline, {});
}

}  // namespace rbt::initiator
