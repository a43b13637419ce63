#pragma once
// Files and devices that a killed program has not let go of yet.

#include <sys/stat.h>

#include <functional>
#include <string>

#include "common/log.h"

namespace rbt::target {

/// A killed process is gone before the kernel has given back all that its io_uring held, locks among it, and that is not
/// before its last I/O has ended: milliseconds, or as long as a slow disk takes. Calls `attempt` until it returns true; for
/// a second in any case, and for 30 if nobody who could be seen has `about` (stat(2) of it) open except `own_fd` (-1:
/// none). False: it is somebody else's. `name` is for the log. Slow path, blocks.
[[nodiscard]] bool attempt_patiently(const std::function<bool()>& attempt, const struct stat& about, int own_fd,
                                     const std::string& name, Logger& logger);

/// Whether a process that this one can see (its user's, or all for root) has it open.
[[nodiscard]] bool is_open_somewhere(const struct stat& about, int own_fd);

}  // namespace rbt::target
