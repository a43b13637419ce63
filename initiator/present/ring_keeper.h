#pragma once
// Keeps an io_uring open beyond the death of the thread that uses it.

#include <sys/types.h>

#include <memory>

#include "common/result.h"

namespace rbt::initiator {

/// Against a defect of Linux (seen in Debian's 6.12.95; mended in 6.15 by "ublk: fix race between io_uring_cmd_complete_in_task and
/// ublk_cancel_cmd"): a ublk command that a dying thread cancels may still have work queued for that thread, which looks at the
/// command, and at the ring, when the ring may have been freed: the machine oopses (io_fallback_tw), and every ublk device with it. A
/// process that is killed under load closes its ring first, then, slowly, its RDMA devices, and does that work last: it died of
/// it within three kills. So somebody else has the ring open until then: a task without a life of its own that shares this process's
/// memory, has nothing open but the ring, and is killed by the kernel when the thread that made it has come to its end.
/// docs/block_devices.md has what was measured. Belongs to the thread that made it.
class RingKeeper {
 public:
  [[nodiscard]] static Result<std::unique_ptr<RingKeeper>> start(int ring);
  ~RingKeeper();
  RingKeeper(const RingKeeper&) = delete;
  RingKeeper& operator=(const RingKeeper&) = delete;

 private:
  struct Task;
  RingKeeper();
  std::unique_ptr<Task> task_;
  pid_t pid_ = -1;
};

}  // namespace rbt::initiator
