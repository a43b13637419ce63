#include "transport/coherence/lease.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "transport/coherence/lease_source.h"

namespace rbt::transport::coherence {

namespace {

constexpr std::string_view kRemedy =
    "serve it with file: (which copies), or put it on tmpfs, ext4 or xfs, where nobody else has it open";

Error lease_error(int error, const std::string& path) {
  const std::string what = fmt::format("write lease on '{}'", path);
  switch (error) {
    case EAGAIN:
      return {ErrorKind::in_use, what +
                                     ": somebody else has the file open (EAGAIN); it can be had when they have closed "
                                     "it (`fuser -v` says who; memfds never can, they are sealed instead)"};
    case EINVAL:
      return {ErrorKind::unsupported,
              fmt::format("{}: its file system has no leases, or it is no regular file (EINVAL); {}", what, kRemedy)};
    case EACCES:
      return {ErrorKind::permission,
              what + ": the file is another user's (EACCES); run as its owner or with CAP_LEASE"};
    default: return Error::from_errno(error, what, kRemedy);
  }
}

}  // namespace

class LeaseWatch final : public Watch {
 public:
  LeaseWatch(Leases& leases, int fd, std::string path, int bell)
      : leases_(leases), fd_(fd), path_(std::move(path)), bell_(bell) {
    const std::lock_guard lock(leases_.mutex_);
    next_ = leases_.first_;
    leases_.first_ = this;
  }
  ~LeaseWatch() override {
    {
      const std::lock_guard lock(leases_.mutex_);
      for (LeaseWatch** at = &leases_.first_; *at != nullptr; at = &(*at)->next_)
        if (*at == this) {
          *at = next_;
          break;
        }
    }
    if (armed_.load(std::memory_order_acquire)) ::fcntl(fd_, F_SETLEASE, F_UNLCK);
    ::close(bell_);
  }
  [[nodiscard]] std::string_view source() const noexcept override { return "lease"; }
  [[nodiscard]] int descriptor() const noexcept override { return bell_; }
  [[nodiscard]] bool knows_the_end() const noexcept override { return true; }

  [[nodiscard]] bool changing() noexcept override {
    quiet();  // or a bell that was rung for what has been answered meanwhile would wake the monitor for ever
    return broken();
  }

  Change acknowledge() noexcept override {
    armed_.store(false, std::memory_order_release);
    ::fcntl(fd_, F_SETLEASE, F_UNLCK);
    quiet();
    return Change::lease_broken;
  }

  [[nodiscard]] Result<void> arm() override {
    if (armed_.load(std::memory_order_acquire)) return {};
    const f_owner_ex owner{F_OWNER_TID, leases_.thread_};
    if (::fcntl(fd_, F_SETOWN_EX, &owner) != 0 || ::fcntl(fd_, F_SETSIG, leases_.signal_) != 0)
      return errno_failure(errno, fmt::format("directing the signal of a lease on '{}'", path_));
    if (::fcntl(fd_, F_SETLEASE, F_WRLCK) != 0) return failure(lease_error(errno, path_));
    armed_.store(true, std::memory_order_release);
    if (broken()) ring();  // broken in between, when on_signal() took it for somebody else's
    return {};
  }

  /// While a break is pending the kernel says what the lease will become: anything but F_WRLCK.
  [[nodiscard]] bool broken() const noexcept {
    return armed_.load(std::memory_order_acquire) && ::fcntl(fd_, F_GETLEASE) != F_WRLCK;
  }
  void ring() noexcept {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(bell_, &one, sizeof one);
  }

 private:
  friend class Leases;
  void quiet() noexcept {
    std::uint64_t rung = 0;
    [[maybe_unused]] const auto got = ::read(bell_, &rung, sizeof rung);
  }
  Leases& leases_;
  int fd_;
  std::string path_;
  int bell_;
  std::atomic<bool> armed_{false};
  LeaseWatch* next_ = nullptr;
};

Leases::Leases(int signal_number) noexcept : signal_(signal_number != 0 ? signal_number : SIGRTMAX - 2) {}

Leases::~Leases() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<void> Leases::start() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal_);
  sigaddset(&set, SIGIO);  // comes instead when the queue of real-time signals is full
  thread_ = ::gettid();
  descriptor_ = ::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
  if (descriptor_ < 0) return errno_failure(errno, "signalfd for file leases");
  return {};
}

void Leases::on_signal() noexcept {
  std::array<signalfd_siginfo, 16> signals;
  while (::read(descriptor_, signals.data(), sizeof signals) > 0) {
  }
  const std::lock_guard lock(mutex_);
  for (LeaseWatch* watch = first_; watch != nullptr; watch = watch->next_)
    if (watch->broken()) watch->ring();
}

Result<std::unique_ptr<Watch>> Leases::watch(int fd, std::string path) {
  if (descriptor_ < 0) return failure(ErrorKind::unsupported, "a lease needs a monitor with threads of its own");
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return errno_failure(errno, fmt::format("a lease on '{}'", path));
  if ((flags & O_ACCMODE) != O_RDWR)
    return failure(ErrorKind::invalid_argument, fmt::format("a write lease on '{}': it is not open read-write", path));
  const int bell = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (bell < 0) return errno_failure(errno, "eventfd for a lease");
  return std::make_unique<LeaseWatch>(*this, fd, std::move(path), bell);
}

SourceReport explain_lease() {
  const char* const folder = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  std::string path = fmt::format("{}/rbt-lease.XXXXXX", folder);
  const int fd = ::mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0)
    return {"lease", false,
            errno_failure(errno, fmt::format("a file to try a lease on, in {}", folder)).value().message()};
  ::unlink(path.c_str());
  const int error = ::fcntl(fd, F_SETLEASE, F_WRLCK) == 0 ? 0 : errno;
  ::close(fd);
  if (error != 0) return {"lease", false, lease_error(error, path).message()};
  return {"lease", true,
          fmt::format("files on {} can be leased: whoever opens or truncates a mapped file by its path waits until its "
                      "registration is gone",
                      folder)};
}

}  // namespace rbt::transport::coherence
