#pragma once
// A volume as /dev/nbdN: the kernel's NBD client on the other end of socket pairs, an NbdServer on ours. What happens when
// the volume, this process or the device goes: docs/block_devices_nbd.md.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "common/units.h"
#include "initiator/present/device.h"
#include "transport/reactor/reactor.h"

namespace rbt::initiator {

/// What the volume must have been opened with: QueuePairOptions::buffers and VolumeOptions::requests.
[[nodiscard]] Bytes nbd_buffers(const DeviceOptions& options) noexcept;
[[nodiscard]] std::uint32_t nbd_requests(const DeviceOptions& options) noexcept;

/// The first free /dev/nbdN, or DeviceOptions::recover. Options as they come out: queues are connections, 1 to 16; depth is 128
/// at most; io_max is what the kernel has been told. Blocks, turning the reactor, for a moment; for 10 s if it cannot be recovered.
/// While the volume has no path, requests wait; of several connections the kernel then gives one up every few
/// seconds, and gets another. One is the steadier choice. A recovered device must be of the volume's disk, by UUID (the old association being
/// over is the volume's business). Errors: unsupported (`modprobe nbd`), permission (CAP_SYS_ADMIN), mismatch, not_found
/// (nothing to recover), in_use (its process lives), invalid_argument (volume without the above).
[[nodiscard]] Result<std::unique_ptr<Device>> present_nbd(Volume& volume, transport::Reactor& reactor,
                                                          const DeviceOptions& options);

/// A connected /dev/nbdN, anybody's.
struct NbdDeviceInfo {
  std::uint32_t number = 0;
  std::uint32_t pid = 0;   ///< of who connected it first; a successor is not noted
  std::string identifier;  ///< ours: nbd_identifier() of the disk; else whatever its owner gave, or nothing
  Bytes size;
};
[[nodiscard]] std::vector<NbdDeviceInfo> list_nbd();
/// What our devices are known by: identity(), or "unknown".
[[nodiscard]] std::string nbd_identifier(const Namespace& disk);
/// Ends a device whose process has: requests that wait for a successor fail with EIO. Blocks until `deadline` at most.
/// Errors: in_use (somebody has it open; it goes when that ends); as present_nbd().
[[nodiscard]] Result<void> remove_nbd(std::uint32_t number, const Clock& clock, Instant deadline);

}  // namespace rbt::initiator
