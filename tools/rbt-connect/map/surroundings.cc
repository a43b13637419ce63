#include "tools/rbt-connect/map/surroundings.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/prctl.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syslog.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

namespace rbt::tools::map {

namespace {

// A thread's whole stack is locked with everything else: 8 MiB, the default, is a thousand times what a reactor uses.
constexpr std::size_t kStack = 512 * 1024;
// So much of the heap is there, and locked, beyond what is in use when memory is locked: connecting again allocates.
constexpr int kHeapReserve = 4 << 20;

void note(Logger& logger, std::string_view what, int error) {
  logger.debug("{}", Error::from_errno(error, what).message());
}

// Slave, not private: what the machine unmounts must not stay mounted in here, its device would stay busy with it.
void leave_mounts(Logger& logger) {
  if (::unshare(CLONE_NEWNS) != 0) return note(logger, "a mount namespace of our own", errno);
  if (::mount("none", "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) note(logger, "making mounts slaves", errno);
}

void survive(Logger& logger) {
  const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || ::write(fd, "-1000", 5) != 5) note(logger, "setting oom_score_adj to -1000", errno);
  if (fd >= 0) ::close(fd);
}

}  // namespace

void prepare_surroundings(Logger& logger) {
  leave_mounts(logger);
  survive(logger);
  if (::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) note(logger, "prctl(PR_SET_IO_FLUSHER)", errno);
  pthread_attr_t attributes{};
  if (::pthread_attr_init(&attributes) == 0) {
    ::pthread_attr_setstacksize(&attributes, kStack);
    ::pthread_setattr_default_np(&attributes);
    ::pthread_attr_destroy(&attributes);
  }
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  ::mallopt(M_TOP_PAD, kHeapReserve);
  ::mallopt(M_ARENA_MAX, 2);
}

// MCL_FUTURE alone would populate every mapping to come, thread arenas of 64 MiB among them; ONFAULT locks what is touched. MCL_CURRENT
// populates, and sets the future aside: it comes first.
void lock_memory(Logger& logger) {
  if (::mlockall(MCL_CURRENT) == 0 && ::mlockall(MCL_FUTURE | MCL_ONFAULT) == 0) return;
  logger.warning("{}",
                 Error::from_errno(errno, "locking memory",
                                   "under memory pressure the disk may wait for itself: raise `ulimit -l` or run it "
                                   "as root")
                     .message());
}

ErrorsElsewhere::~ErrorsElsewhere() {
  keep();
}

void ErrorsElsewhere::keep() noexcept {
  if (before_ >= 0) ::close(std::exchange(before_, -1));
}

Result<void> ErrorsElsewhere::redirect(const std::string& identifier, const std::string& log) {
  int fd = ::sd_journal_stream_fd(identifier.c_str(), LOG_INFO, 1);
  if (fd < 0) fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return errno_failure(errno, fmt::format("opening {}", log));
  if (before_ < 0) before_ = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  const bool fine = ::dup2(fd, STDERR_FILENO) >= 0;
  const int error = errno;
  ::close(fd);
  if (!fine) return errno_failure(error, "redirecting standard error");
  return {};
}

void ErrorsElsewhere::restore() noexcept {
  if (before_ < 0) return;
  ::dup2(before_, STDERR_FILENO);
  keep();
}

}  // namespace rbt::tools::map
