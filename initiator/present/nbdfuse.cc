#include "initiator/present/nbdfuse.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <utility>
#include <vector>

namespace rbt::initiator {

namespace {

constexpr int kExecFailed = 127;

// In the child, whose memory is its parent's until it is another program: nothing but system calls.
[[noreturn]] void become_nbdfuse(char* const* arguments, pid_t parent) noexcept {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(kExecFailed);
  ::setpgid(0, 0);  // a terminal's Ctrl-C is for its parent, who takes it down in order
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null >= 0) ::dup2(null, STDIN_FILENO);
  ::execvp(arguments[0], arguments);
  ::_exit(kExecFailed);
}

std::string describe_status(int status) {
  return WIFSIGNALED(status) ? fmt::format("was killed by signal {}", WTERMSIG(status))
                             : fmt::format("ended with status {}", WEXITSTATUS(status));
}

}  // namespace

// ---- its directory

Result<std::unique_ptr<FuseDirectory>> FuseDirectory::create(const std::string& parent) {
  std::string path = parent + "/fuse-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr)
    return errno_failure(errno, fmt::format("making a directory in {}", parent), "it must be there and writable");
  std::unique_ptr<FuseDirectory> out(new FuseDirectory(std::move(path)));
  if (::mkdir(out->mount_point().c_str(), 0700) != 0)
    return errno_failure(errno, fmt::format("making {}", out->mount_point()));
  return out;
}

FuseDirectory::~FuseDirectory() {
  ::umount2(mount_point().c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);  // fails when nothing is mounted
  ::unlink(socket().c_str());
  ::rmdir(mount_point().c_str());
  ::rmdir(path_.c_str());
}

// ---- the process

Result<std::unique_ptr<NbdFuse>> NbdFuse::start(const FuseDirectory& directory, std::uint32_t connections,
                                                bool read_only) {
  std::vector<std::string> words{"nbdfuse", "-C", fmt::format("{}", connections)};
  if (read_only) words.emplace_back("-r");
  words.insert(words.end(), {directory.file(), "--unix", directory.socket()});
  std::vector<char*> arguments;
  for (std::string& word : words)
    arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t parent = ::getpid();
  // Not fork(): memory that an adapter reads and writes must not become copy-on-write.
  const pid_t pid = ::vfork();
  if (pid == 0) become_nbdfuse(arguments.data(), parent);
  if (pid < 0) return errno_failure(errno, "starting nbdfuse");
  const int pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  std::unique_ptr<NbdFuse> out(new NbdFuse(pid, pidfd));
  if (pidfd < 0) return errno_failure(errno, "watching nbdfuse: pidfd_open");
  return out;
}

NbdFuse::~NbdFuse() {
  if (ended() == nullptr) {
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  if (pidfd_ >= 0) ::close(pidfd_);
}

void NbdFuse::terminate() const noexcept {
  if (ended_ == nullptr) ::kill(pid_, SIGTERM);
}

const Error* NbdFuse::ended() {
  int status = 0;
  if (ended_ != nullptr || ::waitpid(pid_, &status, WNOHANG) != pid_) return ended_.get();
  if (WIFEXITED(status) && WEXITSTATUS(status) == kExecFailed)
    ended_ = std::make_unique<Error>(ErrorKind::unsupported,
                                     "the program nbdfuse is not there: install it (Debian: libnbd-bin, fuse3)");
  else
    ended_ = std::make_unique<Error>(
        ErrorKind::disconnected,
        fmt::format("nbdfuse {}{}", describe_status(status),
                    ::access("/dev/fuse", F_OK) == 0 ? "" : "; there is no /dev/fuse: `modprobe fuse`"));
  return ended_.get();
}

}  // namespace rbt::initiator
