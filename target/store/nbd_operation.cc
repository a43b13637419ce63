#include "target/store/nbd_operation.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/check.h"

namespace rbt::target {

NbdInbox::~NbdInbox() {
  check(operations_.empty(), "an inbox is empty when it goes");
  if (event_fd_ < 0) return;
  reactor_.unwatch(event_fd_);
  ::close(event_fd_);
}

Result<void> NbdInbox::open(std::function<void()> woken) {
  event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_fd_ < 0) return errno_failure(errno, "creating an eventfd", "raise the limit of open files (`ulimit -n`)");
  // Whoever is listed as a source looks into the inbox every turn. The others are woken by what comes.
  asleep_ = true;
  return reactor_.watch(event_fd_, EPOLLIN, [this, woken = std::move(woken)](std::uint32_t) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(event_fd_, &count, sizeof count);
    woken();
  });
}

void NbdInbox::put(NbdOperation& operation) {
  bool ring = false;
  {
    const std::lock_guard lock(mutex_);
    operations_.push(operation);
    filled_.store(true, std::memory_order_release);  // acquired by take()
    ring = std::exchange(asleep_, false);
  }
  if (!ring) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto rung = ::write(event_fd_, &one, sizeof one);  // cannot fail: the count is tiny
}

void NbdInbox::take(RecordQueue<NbdOperation>& into) {
  if (!filled_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  into.take(operations_);
  filled_.store(false, std::memory_order_relaxed);
}

bool NbdInbox::arm() {
  const std::lock_guard lock(mutex_);
  asleep_ = operations_.empty();
  return asleep_;
}

}  // namespace rbt::target
