#include "transport/coherence/userfault.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>

#include "transport/coherence/page_marks.h"

namespace rbt::transport::coherence {

namespace {

constexpr std::uint64_t kAsynchronous = 1U << 15;  // UFFD_FEATURE_WP_ASYNC, Linux 6.7; not in Debian 12's headers
constexpr std::uint64_t kEvents = UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP;

struct Opened {
  int fd = -1;
  bool asynchronous = false;
};

/// Without UFFD_FEATURE_EVENT_FORK, which needs CAP_SYS_PTRACE: a child has its own copies, the parent keeps its pages.
Result<Opened> open_userfaultfd() {
  for (const std::uint64_t mode : {kAsynchronous, std::uint64_t{UFFD_FEATURE_PAGEFAULT_FLAG_WP}}) {
    const int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    if (fd < 0) {
      const int error = errno;
      if (error == ENOSYS) return errno_failure(error, "userfaultfd", "the kernel needs CONFIG_USERFAULTFD");
      if (error == EINVAL) return errno_failure(error, "userfaultfd in user mode only", "Linux 5.11 or later has it");
      if (error == EPERM)
        return errno_failure(error, "userfaultfd", "a seccomp profile refuses it: allow the system call userfaultfd");
      return errno_failure(error, "userfaultfd");
    }
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = kEvents | mode;
    if (::ioctl(fd, UFFDIO_API, &api) == 0) return Opened{fd, mode == kAsynchronous};
    ::close(fd);
  }
  return failure(
      ErrorKind::unsupported,
      "userfaultfd: this kernel has no write-protect mode (UFFDIO_API refuses it); Linux 5.7 or later has it "
      "for anonymous memory, 6.7 for any mapping");
}

/// What madvise() has been let go on to discard, until it surely has.
class Discards {
 public:
  explicit Discards(Duration settle) noexcept : settle_(settle) {}
  /// The watch thread; the lock is held by nobody who allocates.
  void add(std::uint64_t start, std::uint64_t end, bool marked, Instant now) noexcept {
    const std::lock_guard lock(mutex_);
    for (Range& range : ranges_)
      if (now >= range.since + settle_ * UserfaultOptions::kSettleMax) range = {};
    Range* free = std::find_if(ranges_.begin(), ranges_.end(), [](const Range& range) { return range.end == 0; });
    if (free == ranges_.end()) {  // too many: one range for two
      --free;
      start = std::min(start, free->start);
      end = std::max(end, free->end);
      marked = marked && free->marked;
    }
    *free = {start, end, marked, now};
  }
  /// Any thread.
  [[nodiscard]] bool over(Instant now) const noexcept {
    std::array<Range, 8> ranges;
    {
      const std::lock_guard lock(mutex_);
      ranges = ranges_;
    }
    return std::none_of(ranges.begin(), ranges.end(), [&](const Range& range) {
      if (range.end == 0 || now >= range.since + settle_ * UserfaultOptions::kSettleMax) return false;
      return now < range.since + settle_ || (range.marked && marked_page_there(range.start, range.end - range.start));
    });
  }

 private:
  struct Range {
    std::uint64_t start = 0;
    std::uint64_t end = 0;  ///< 0: none
    bool marked = false;
    Instant since{};
  };
  const Duration settle_;
  mutable std::mutex mutex_;
  std::array<Range, 8> ranges_;
};

class UserfaultWatch final : public Watch {
 public:
  UserfaultWatch(Opened opened, std::uint64_t start, std::uint64_t length, const Clock& clock,
                 const UserfaultOptions& options)
      : opened_(opened),
        start_(start),
        length_(length),
        clock_(clock),
        settle_(options.settle),
        discards_(options.settle) {}
  /// Whoever is blocked goes on.
  ~UserfaultWatch() override { ::close(opened_.fd); }
  [[nodiscard]] std::string_view source() const noexcept override { return "userfault"; }
  [[nodiscard]] int descriptor() const noexcept override { return opened_.fd; }
  [[nodiscard]] bool knows_the_end() const noexcept override { return false; }

  [[nodiscard]] bool changing() noexcept override {
    pollfd ready{opened_.fd, POLLIN, 0};
    return ::poll(&ready, 1, 0) == 1 && (ready.revents & POLLIN) != 0;
  }

  /// Reading an event is what lets its actor go on.
  Change acknowledge() noexcept override {
    Change most = Change::none;
    // What madvise() is about to drop is marked while it still waits for us; all of it, for what it is, reading tells.
    marked_ = settle_ > Duration::zero() && opened_.asynchronous && mark_pages(start_, length_);
    std::array<uffd_msg, 8> messages;
    for (;;) {
      const ssize_t got = ::read(opened_.fd, messages.data(), sizeof messages);
      if (got <= 0) return most;
      for (std::size_t i = 0; i < static_cast<std::size_t>(got) / sizeof(uffd_msg); ++i)
        most = std::max(most, take(messages[i]));
    }
  }

  [[nodiscard]] Result<void> arm() override {
    if (!discards_.over(clock_.now()))
      return failure(ErrorKind::in_use, "its pages are being discarded (madvise) and may not all be gone yet");
    forget_moved();
    // UFFDIO_REGISTER skips holes; msync(2) in this mode does nothing but look for them.
    if (::msync(reinterpret_cast<void*>(start_), length_, MS_ASYNC) != 0)
      return failure(ErrorKind::not_found,
                     fmt::format("not all of the {} bytes at {:#x} is mapped any more", length_, start_));
    uffdio_register request{};
    request.range = {start_, length_};
    request.mode = UFFDIO_REGISTER_MODE_WP;
    if (::ioctl(opened_.fd, UFFDIO_REGISTER, &request) == 0) return {};
    const int error = errno;
    const std::string what = fmt::format("watching {} bytes at {:#x} with userfaultfd", length_, start_);
    if (error == EBUSY)
      return errno_failure(error, what, "another userfaultfd watches a page of it: one region for both");
    if (error == EINVAL && !opened_.asynchronous)
      return failure(ErrorKind::unsupported, what +
                                                 ": this kernel can watch anonymous memory, shmem and hugetlbfs only; "
                                                 "Linux 6.7 or later any mapping");
    return errno_failure(error, what);
  }

 private:
  Change take(const uffd_msg& message) noexcept {
    switch (message.event) {
      case UFFD_EVENT_UNMAP:
        return overlaps(message.arg.remove.start, message.arg.remove.end) ? Change::unmapped : Change::none;
      case UFFD_EVENT_REMOVE: {
        const std::uint64_t from = std::max<std::uint64_t>(start_, message.arg.remove.start);
        const std::uint64_t to = std::min<std::uint64_t>(start_ + length_, message.arg.remove.end);
        if (from < to) discards_.add(from, to, marked_, clock_.now());
        return Change::discarded;
      }
      case UFFD_EVENT_REMAP:
        moved_to_.store(message.arg.remap.to, std::memory_order_relaxed);
        moved_length_.store(message.arg.remap.len, std::memory_order_release);
        return Change::moved;
      default: return Change::none;
    }
  }
  [[nodiscard]] bool overlaps(std::uint64_t start, std::uint64_t end) const noexcept {
    return start < start_ + length_ && start_ < end;
  }
  /// What was moved away is still watched, at its new place, where it is none of ours.
  void forget_moved() noexcept {
    const std::uint64_t length = moved_length_.exchange(0, std::memory_order_acquire);
    if (length == 0) return;
    uffdio_range range{moved_to_.load(std::memory_order_relaxed), length};
    ::ioctl(opened_.fd, UFFDIO_UNREGISTER, &range);  // fails if it is gone by now, which is as good
  }

  Opened opened_;
  std::uint64_t start_;
  std::uint64_t length_;
  const Clock& clock_;
  Duration settle_;
  Discards discards_;
  bool marked_ = false;                     // acknowledge()
  std::atomic<std::uint64_t> moved_to_{0};  // published by moved_length_
  std::atomic<std::uint64_t> moved_length_{0};
};

}  // namespace

Result<std::unique_ptr<Watch>> make_userfault_watch(const MemorySpan& memory, const Clock& clock,
                                                    const UserfaultOptions& options) {
  if (memory.data == nullptr || memory.size == 0)
    return failure(ErrorKind::invalid_argument, "watching memory with userfaultfd: there is none");
  auto opened = open_userfaultfd();
  if (!opened) return failure(std::move(opened.error()));
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uint64_t>(memory.data);
  const std::uint64_t start = begin / page * page;
  const std::uint64_t end = (begin + memory.size + page - 1) / page * page;
  return std::make_unique<UserfaultWatch>(*opened, start, end - start, clock, options);
}

SourceReport explain_userfault() {
  auto opened = open_userfaultfd();
  if (!opened) return {"userfault", false, opened.error().message()};
  ::close(opened->fd);
  return {"userfault", true,
          opened->asynchronous ? "munmap, mmap over, mremap and madvise on any mapping of this process are heard of"
                               : "munmap, mmap over, mremap and madvise are heard of, on anonymous memory, shmem and "
                                 "hugetlbfs only: Linux 6.7 or later covers other mappings"};
}

}  // namespace rbt::transport::coherence
