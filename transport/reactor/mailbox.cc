#include "transport/reactor/mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

namespace rbt::transport {

Mailbox::Mailbox() : event_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Mailbox::~Mailbox() {
  if (event_fd_ >= 0) ::close(event_fd_);
}

void Mailbox::put(Task task) {
  bool was_pending;
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    was_pending = pending_.exchange(true, std::memory_order_release);
  }
  if (!was_pending) ring();  // whoever set it before has rung already, and the reader has not looked since
}

std::size_t Mailbox::run() {
  if (!pending()) return 0;
  std::vector<Task> batch;
  {
    const std::lock_guard lock(mutex_);
    batch.swap(tasks_);
    pending_.store(false, std::memory_order_relaxed);
  }
  quiet();
  // A task may post another one: that one waits for the next turn, so that nobody can keep the reactor here.
  for (Task& task : batch)
    task();
  return batch.size();
}

void Mailbox::ring() noexcept {
  const std::uint64_t one = 1;
  // Fails only when the counter is full, and then the descriptor is readable anyway.
  [[maybe_unused]] const auto written = ::write(event_fd_, &one, sizeof one);
}

void Mailbox::quiet() noexcept {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(event_fd_, &count, sizeof count);
}

}  // namespace rbt::transport
