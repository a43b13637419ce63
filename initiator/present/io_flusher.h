#pragma once
// Marks a thread that memory reclaim waits for.

#include <sys/prctl.h>

#include <cerrno>

#include "common/result.h"

// Newer than some C libraries' headers (linux/prctl.h has them since Linux 5.6).
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#define PR_GET_IO_FLUSHER 58
#endif

namespace rbt::initiator {

/// The thread is one that memory reclaim waits for: its allocations must not wait for reclaim (Linux: PF_MEMALLOC_NOIO). As it was,
/// in the end.
class IoFlusher {
 public:
  IoFlusher() noexcept = default;
  ~IoFlusher() {
    if (ours_) ::prctl(PR_SET_IO_FLUSHER, 0UL, 0UL, 0UL, 0UL);
  }
  IoFlusher(const IoFlusher&) = delete;
  IoFlusher& operator=(const IoFlusher&) = delete;
  // The last three arguments must be 0: else EINVAL, and nothing else tells.
  [[nodiscard]] Result<void> begin() {
    if (::prctl(PR_GET_IO_FLUSHER, 0UL, 0UL, 0UL, 0UL) == 1) return {};
    if (::prctl(PR_SET_IO_FLUSHER, 1UL, 0UL, 0UL, 0UL) != 0)
      return errno_failure(errno, "telling the kernel that memory reclaim waits for this thread (PR_SET_IO_FLUSHER)",
                           "it takes CAP_SYS_RESOURCE: run it as root");
    ours_ = true;
    return {};
  }

 private:
  bool ours_ = false;
};

}  // namespace rbt::initiator
