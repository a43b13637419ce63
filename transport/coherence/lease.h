#pragma once
// Hears of other processes that open a file for writing or truncate it by its path, before they do: fcntl(F_SETLEASE).

#include <memory>
#include <string>

#include "common/result.h"
#include "transport/coherence/watch.h"

namespace rbt::transport::coherence {

/// The monitor's: where the signals of broken leases arrive. Monitor::leases().
class LeaseSource {
 public:
  virtual ~LeaseSource() = default;
  /// A write lease (F_WRLCK) on `fd`, which must be open read-write, stay open while the watch lives, and be the only open
  /// file description of the file (its own mappings are fine; a duplicate by dup() or fork() shares the lease and is
  /// not noticed). `path` is for messages. Nothing is leased before Watch::arm().
  ///
  /// While the lease is held: any open() of the file by others, and truncate() by path, block until acknowledge() (F_UNLCK),
  /// or fail with EAGAIN if they said O_NONBLOCK, which breaks the lease all the same. arm() says: `in_use` somebody
  /// has it open (try again when they have closed it); `unsupported` the file system has no leases (9p, NFS without delegation)
  /// or it is no regular file; `permission` the file is another user's and CAP_LEASE is missing. Each with the remedy.
  /// The kernel waits /proc/sys/fs/lease-break-time seconds (45) for us; we answer within RegionOptions::acknowledge_max.
  [[nodiscard]] virtual Result<std::unique_ptr<Watch>> watch(int fd, std::string path) = 0;
};

/// Tries it out, on a file in /dev/shm or TMPDIR.
[[nodiscard]] SourceReport explain_lease();

}  // namespace rbt::transport::coherence
