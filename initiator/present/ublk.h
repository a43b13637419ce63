#pragma once
// Presenting a volume through ublk (Linux 6.0): /dev/ublkbN, whose requests come to this process over io_uring. docs/block_devices.md.

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "initiator/present/device.h"

namespace rbt::initiator {

/// What the volume is to be opened with: VolumeOptions::queue.buffers, ::lanes and ::requests. With fewer lanes, one of them serves
/// several hardware queues. To take over a device: with UblkInfo::options of it.
[[nodiscard]] Bytes ublk_buffers(const DeviceOptions& options) noexcept;
[[nodiscard]] std::uint32_t ublk_lanes(const DeviceOptions& options) noexcept;
[[nodiscard]] std::uint32_t ublk_requests(const DeviceOptions& options) noexcept;

/// Makes a device, or takes over the one that a dead process has left (DeviceOptions::recover): then the volume must be the same
/// disk, and nothing that the dead process has sent may still be under way. Blocks, half a minute at most, turning the volume; its
/// disk is in use before this returns. The thread of each lane serves a hardware queue, and becomes one that memory reclaim waits for
/// (PR_SET_IO_FLUSHER), for as long as the device lives. Queues beyond the machine's processors are not made; queues times depth is cut to 32768. Errors: module or
/// privilege missing (CAP_SYS_ADMIN, CAP_SYS_RESOURCE), not enough buffers, mismatch (another disk than the device was made for), in_use
/// (its process lives), timed_out (the kernel has not answered).
[[nodiscard]] Result<std::unique_ptr<Device>> present_ublk(Volume& volume, transport::Reactor& reactor,
                                                           const DeviceOptions& options);

enum class UblkState : std::uint8_t {
  dead,      ///< not started yet, or stopped
  live,      ///< a process serves it
  quiesced,  ///< its process is dead; requests wait for a successor
  other      ///< what newer kernels have
};
[[nodiscard]] std::string_view name(UblkState state) noexcept;

struct UblkInfo {
  std::uint32_t number = 0;
  bool ours = false;      ///< made by rbt
  std::uint32_t tag = 0;  ///< DeviceOptions::tag, if it is ours
  UblkState state = UblkState::dead;
  std::int32_t pid = 0;     ///< of the process that serves it, or did; -1 if it was stopped
  Bytes size{0};            ///< 0 before it has parameters
  DeviceOptions options{};  ///< as it was made; `recover` is its number
};
/// All ublk devices of this machine, by number; also those that rbt has not made. Without the module: none. Blocks, until
/// `deadline` at most. Error: as present_ublk().
[[nodiscard]] Result<std::vector<UblkInfo>> list_ublk(Instant deadline, const Clock& clock);
/// Error not_found: no such device.
[[nodiscard]] Result<UblkInfo> find_ublk(std::uint32_t number, Instant deadline, const Clock& clock);

/// Stops and deletes a device whose process is dead, or will not do it: requests that wait in it fail. Whether it is ours, and
/// whether anybody uses it, is for the caller to find out before. Errors: not_found; in_use (deleted, but a process still has its
/// /dev/ublkcN open); timed_out (a living process is not carrying out what it was given).
[[nodiscard]] Result<void> remove_ublk(std::uint32_t number, Instant deadline, const Clock& clock);

}  // namespace rbt::initiator
