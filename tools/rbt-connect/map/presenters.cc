#include "tools/rbt-connect/map/presenters.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
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

// ---- ublk

Result<std::unique_ptr<initiator::Device>> present_by_ublk(const Making& making) {
  return initiator::present_ublk(making.volume, making.reactor, making.options);
}

// The number may have been given to another device since. Ours has the pid of its last process for as long as it lives; -1, if it
// was stopped and not deleted.
bool ublk_exists(const State& state) {
  const SystemClock clock;
  const auto info = initiator::find_ublk(state.number, clock.now() + kLook, clock);
  // What cannot be looked at is not taken to be gone: somebody would forget it.
  if (!info) return info.error().kind() != ErrorKind::not_found && info.error().kind() != ErrorKind::unsupported;
  return info->ours && (info->pid == state.pid || info->pid == state.device_pid || info->pid == -1);
}

Result<void> remove_by_ublk(const RunFolder& /*folder*/, const State& state, Instant deadline) {
  return gone(initiator::remove_ublk(state.number, deadline, SystemClock()));
}

std::string ublk_mark(std::uint32_t /*number*/) {
  return "";
}

// ---- NBD

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
       .requests = initiator::ublk_requests,
       .present = present_by_ublk,
       .mark = ublk_mark,
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
       .mark = nbd_mark,
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
       .mark = loop_mark,
       .exists = loop_exists,
       .remove = remove_by_fuse,
       .sweep = sweep_fuse},
  };
  return all;
}

}  // namespace rbt::tools::map
