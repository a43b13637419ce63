#include "initiator/present/ring_keeper.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstddef>

namespace rbt::initiator {

struct RingKeeper::Task {
  alignas(64) std::array<std::byte, 16384> stack;
  unsigned ring = 0;
  pid_t parent = 0;
};

RingKeeper::RingKeeper() : task_(std::make_unique<Task>()) {}

namespace {

// The parent's memory and thread-local storage are this task's, too: system calls only, and none that fails, for errno is his.
__attribute__((no_sanitize("address", "thread", "undefined"))) int keep(unsigned ring, pid_t parent) {
  ::syscall(SYS_prctl, PR_SET_NAME, "rbt-ublk-ring", 0, 0, 0);
  ::syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);  // of the thread that made this one
  if (ring > 0) ::syscall(SYS_close_range, 0, ring - 1, 0);
  ::syscall(SYS_close_range, ring + 1, UINT_MAX, 0);
  while (::syscall(SYS_getppid) == parent)  // else he was dead before the second line
    ::syscall(SYS_pause);
  return 0;
}

}  // namespace

Result<std::unique_ptr<RingKeeper>> RingKeeper::start(int ring) {
  std::unique_ptr<RingKeeper> keeper(new RingKeeper);
  Task& task = *keeper->task_;
  task.ring = static_cast<unsigned>(ring);
  task.parent = ::getpid();
  // It inherits the mask: SIGTERM to all of a service's processes is not for it.
  sigset_t all{};
  sigset_t before{};
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  keeper->pid_ = ::clone(
      [](void* argument) {
        const auto& mine = *static_cast<const Task*>(argument);
        return keep(mine.ring, mine.parent);
      },
      task.stack.data() + task.stack.size(), CLONE_VM, &task);
  const int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (keeper->pid_ < 0)
    return errno_failure(error, "making a task that keeps ublk's io_uring open",
                         "raise the limit of processes (`ulimit -u`, TasksMax=)");
  return keeper;
}

RingKeeper::~RingKeeper() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, __WALL) < 0 && errno == EINTR) {
  }
}

}  // namespace rbt::initiator
