#include "tools/rbt-connect/map/presenters.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <thread>

#include "common/clock.h"
#include "initiator/present/fuse_device.h"
#include "initiator/present/nbd_device.h"
#include "initiator/present/ublk.h"

namespace rbt::tools::map {

namespace {

constexpr Duration kLook = std::chrono::seconds(2);
constexpr Duration kPause = std::chrono::milliseconds(10);

// Nothing there is what was wanted.
Result<void> gone(Result<void> removed) {
  if (!removed && removed.error().kind() == ErrorKind::not_found) return {};
  return removed;
}

void nothing_else(const RunFolder& /*folder*/) {}

// ---- ublk: a tag of each device's own, in the kernel

std::string intend_ublk(const initiator::Namespace& /*disk*/, Random& random) {
  return fmt::format("{:08x}", 1 + random.below(~std::uint32_t{0}));
}

std::optional<std::uint32_t> tag_of(std::string_view mark) {
  std::uint32_t tag = 0;
  const auto [end, error] = std::from_chars(mark.data(), mark.data() + mark.size(), tag, 16);
  if (error != std::errc{} || end != mark.data() + mark.size() || tag == 0) return std::nullopt;
  return tag;
}

Result<std::unique_ptr<initiator::Device>> present_by_ublk(const Making& making) {
  initiator::DeviceOptions options = making.options;
  options.tag = tag_of(making.mark).value_or(0);
  return initiator::present_ublk(making.volume, making.reactor, options);
}

// The number may have been given to another device since.
bool ublk_exists(const State& state) {
  const SystemClock clock;
  const auto info = initiator::find_ublk(state.number, clock.now() + kLook, clock);
  // What cannot be looked at is not taken to be gone: somebody would forget it.
  if (!info) return info.error().kind() != ErrorKind::not_found && info.error().kind() != ErrorKind::unsupported;
  return info->ours && info->tag == tag_of(state.mark);
}

Result<std::optional<std::uint32_t>> find_ublk_device(const RunFolder& /*folder*/, const State& state) {
  const SystemClock clock;
  const auto tag = tag_of(state.mark);
  if (!tag) return std::nullopt;
  auto all = initiator::list_ublk(clock.now() + kLook, clock);
  if (!all) return failure(std::move(all.error()));
  for (const initiator::UblkInfo& each : *all)
    if (each.ours && each.tag == *tag) return each.number;
  return std::nullopt;
}

Result<void> remove_by_ublk(const RunFolder& /*folder*/, const State& state, Instant deadline) {
  return gone(initiator::remove_ublk(state.number, deadline, SystemClock()));
}

// ---- NBD: the disk's identity, in the kernel. Another device may have the same: a second one, read-only

std::string intend_nbd(const initiator::Namespace& disk, Random& /*random*/) {
  return initiator::nbd_identifier(disk);
}

Result<std::unique_ptr<initiator::Device>> present_by_nbd(const Making& making) {
  return initiator::present_nbd(making.volume, making.reactor, making.options);
}

std::string nbd_mark(std::uint32_t number) {
  for (const initiator::NbdDeviceInfo& each : initiator::list_nbd())
    if (each.number == number) return each.identifier;
  return "";
}

bool nbd_exists(const State& state) {
  return !state.mark.empty() && nbd_mark(state.number) == state.mark;
}

Result<std::optional<std::uint32_t>> find_nbd_device(const RunFolder& folder, const State& state) {
  for (const initiator::NbdDeviceInfo& each : initiator::list_nbd()) {
    if (state.mark.empty() || each.identifier != state.mark || each.pid != static_cast<std::uint32_t>(state.pid))
      continue;
    const std::vector<std::string> names = folder.names();
    const bool known = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      const auto other = folder.read(name);
      return !other || (other->device == fmt::format("/dev/nbd{}", each.number) && nbd_exists(*other));
    });
    if (!known) return each.number;
  }
  return std::nullopt;
}

Result<void> remove_by_nbd(const RunFolder& /*folder*/, const State& state, Instant deadline) {
  return gone(initiator::remove_nbd(state.number, SystemClock(), deadline));
}

// ---- FUSE and a loop device

Result<std::unique_ptr<initiator::Device>> present_by_fuse(const Making& making) {
  return initiator::present_fuse(making.volume, making.reactor, making.options, making.folder.path().string());
}

class Loop {
 public:
  explicit Loop(std::uint32_t number) : fd_(::open(fmt::format("/dev/loop{}", number).c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~Loop() {
    if (fd_ >= 0) ::close(fd_);
  }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // The file's name, as it was when the device was attached; what sysfs shows depends on who looks from which mount namespace.
  [[nodiscard]] std::string file() const {
    loop_info64 info{};
    if (fd_ < 0 || ::ioctl(fd_, LOOP_GET_STATUS64, &info) != 0) return "";
    const auto* const name = reinterpret_cast<const char*>(info.lo_file_name);
    return {name, ::strnlen(name, LO_NAME_SIZE)};
  }
  void detach() const { ::ioctl(fd_, LOOP_CLR_FD); }

 private:
  int fd_;
};

std::string intend_nothing(const initiator::Namespace& /*disk*/, Random& /*random*/) {
  return "";
}

Result<std::optional<std::uint32_t>> find_nothing(const RunFolder& /*folder*/, const State& /*state*/) {
  return std::nullopt;
}

std::string loop_mark(std::uint32_t number) {
  return Loop(number).file();
}

bool loop_exists(const State& state) {
  return !state.mark.empty() && loop_mark(state.number) == state.mark;
}

void sweep_fuse(const RunFolder& folder) {
  initiator::clean_fuse(folder.path().string());
}

Result<void> remove_by_fuse(const RunFolder& folder, const State& state, Instant deadline) {
  const SystemClock clock;
  sweep_fuse(folder);
  if (!loop_exists(state)) return {};
  Loop(state.number).detach();
  while (loop_exists(state)) {
    if (clock.now() >= deadline)
      return failure(
          ErrorKind::in_use,
          fmt::format("{}: its file is gone, but somebody has it open: every request fails, and it goes when "
                      "that is closed (`lsof`, `findmnt`)",
                      state.device));
    std::this_thread::sleep_for(kPause);
  }
  return {};
}

}  // namespace

const std::vector<Presenter>& presenters() {
  static const std::vector<Presenter> all{
      {.via = Via::ublk,
       .recoverable = true,
       .modules = {"ublk_drv"},
       .examine = doctor::examine_ublk,
       .buffers = initiator::ublk_buffers,
       .lanes = initiator::ublk_lanes,
       .requests = initiator::ublk_requests,
       .present = present_by_ublk,
       .node = "/dev/ublkb",
       .intend = intend_ublk,
       .find = find_ublk_device,
       .exists = ublk_exists,
       .remove = remove_by_ublk,
       .sweep = nothing_else},
      {.via = Via::nbd,
       .recoverable = true,
       .modules = {"nbd"},
       .examine = doctor::examine_nbd,
       .buffers = initiator::nbd_buffers,
       .requests = initiator::nbd_requests,
       .present = present_by_nbd,
       .node = "/dev/nbd",
       .intend = intend_nbd,
       .find = find_nbd_device,
       .exists = nbd_exists,
       .remove = remove_by_nbd,
       .sweep = nothing_else},
      {.via = Via::fuse,
       .recoverable = false,
       .modules = {"fuse", "loop"},
       .examine = doctor::examine_fuse,
       .buffers = initiator::fuse_buffers,
       .requests = initiator::fuse_requests,
       .present = present_by_fuse,
       .node = "/dev/loop",
       .intend = intend_nothing,
       .mark = loop_mark,
       .find = find_nothing,
       .exists = loop_exists,
       .remove = remove_by_fuse,
       .sweep = sweep_fuse},
  };
  return all;
}

Result<bool> name_device(const RunFolder& folder, const Presenter& presenter, State& state) {
  if (!state.device.empty()) return false;
  auto number = presenter.find(folder, state);
  if (!number) return failure(std::move(number.error()));
  if (!*number) return false;
  state.number = **number;
  state.device = fmt::format("{}{}", presenter.node, **number);
  return true;
}

}  // namespace rbt::tools::map
