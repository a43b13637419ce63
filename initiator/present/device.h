#pragma once
// A volume as a block device of this machine. How the kernel is given one: ublk.h, nbd_device.h, fuse_device.h.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"
#include "common/units.h"
#include "initiator/volume.h"

namespace rbt::initiator {

/// What a device is to be like. Each way of presenting rounds these to what it can do; the device tells what came of it.
struct DeviceOptions {
  std::uint32_t queues = 1;   ///< hardware queues of the kernel's, 1 to 64
  std::uint32_t depth = 128;  ///< requests outstanding per queue, 1 to 1024
  Bytes io_max{256 * kKiB};   ///< of one request of the kernel's: a power of two, 4 KiB to 1 MiB
  bool read_only = false;     ///< in any case if the namespace is
  /// The number of a device that a process which has ended has left behind (Device::number()): taken over instead of making
  /// one. Queues, depth and io_max are what it was made with.
  std::optional<std::uint32_t> recover{};
  /// ublk: kept by the kernel with a device that is made (UblkInfo::tag). Who has written a number that nobody else uses down before
  /// finds the device of a process that was killed before it could tell.
  std::uint32_t tag = 0;
};

/// A block device whose requests are carried out by a Volume. Belongs to the thread that turns the volume's reactor, as the
/// volume does; it is destroyed before its volume. No request is lost or answered twice. The volume is opened with
/// QueuePairOptions::buffers of what the way of presenting asks for (its own function says), and with as many requests.
class Device {
 public:
  /// Lets go as a process that is killed does: without remove() the kernel's device stays, if it can, with its requests held
  /// for a successor (DeviceOptions::recover).
  virtual ~Device() = default;

  [[nodiscard]] virtual const std::string& path() const noexcept = 0;  ///< "/dev/ublkb0": usable from now on
  [[nodiscard]] virtual std::string_view kind() const noexcept = 0;    ///< "ublk", "nbd", "fuse"
  [[nodiscard]] virtual std::uint32_t number() const noexcept = 0;     ///< the kernel's: what a successor names it by
  [[nodiscard]] virtual const DeviceOptions& options() const noexcept = 0;  ///< as they came out
  /// Why the kernel has ended it without our doing (somebody else deleted it); null while it has not.
  [[nodiscard]] virtual const Error* ended() const noexcept = 0;

  /// The disk's size has changed: the device gets it. Blocks, turning the reactor. Error: unsupported (this kernel cannot:
  /// unmap and map again).
  [[nodiscard]] virtual Result<void> resize() = 0;
  /// Ends it: requests that are with the kernel fail with EIO or are carried out, nothing is left in the kernel or in /dev. Blocks,
  /// turning the reactor, for `deadline` at most; the volume may be failed. Error: what is left, and what to do. Whether anybody
  /// has it open is for the caller to find out before.
  [[nodiscard]] virtual Result<void> remove(Instant deadline) = 0;
};

}  // namespace rbt::initiator
