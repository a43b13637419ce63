#pragma once
// A volume as /dev/loopN where the kernel has neither ublk nor NBD: an NbdServer on a private socket, nbdfuse (libnbd) as a
// child process that makes a file of it, and a loop device on that file.

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"
#include "common/units.h"
#include "initiator/present/device.h"
#include "transport/reactor/reactor.h"

namespace rbt::initiator {

/// What the volume must have been opened with: QueuePairOptions::buffers and VolumeOptions::requests.
[[nodiscard]] Bytes fuse_buffers(const DeviceOptions& options) noexcept;
[[nodiscard]] std::uint32_t fuse_requests(const DeviceOptions& options) noexcept;

/// A free /dev/loopN. Socket and mount point are in a directory of its own, made in `directory` ("/run/rbt"). The child ends
/// with the calling thread, which must be the one that lives as long as the process does; the loop device ends when its last user
/// has closed it. Options as they come out: queues are connections of nbdfuse, 1 to 16; io_max is what the caller wants, and
/// means nothing. Blocks, turning the reactor, 20 s at most. Errors: unsupported (DeviceOptions::recover: a FUSE file dies with
/// its process; no nbdfuse, no /dev/fuse, no /dev/loop-control, and what to install or load), permission (CAP_SYS_ADMIN),
/// invalid_argument (volume without the above).
[[nodiscard]] Result<std::unique_ptr<Device>> present_fuse(Volume& volume, transport::Reactor& reactor,
                                                           const DeviceOptions& options, const std::string& directory);

/// Takes away what killed processes have left in `directory`: mounts, sockets, directories. Returns how many. What lives is
/// not touched.
std::uint32_t clean_fuse(const std::string& directory);

}  // namespace rbt::initiator
