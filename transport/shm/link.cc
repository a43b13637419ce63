#include "transport/shm/link.h"

#include <fcntl.h>
#include <sys/socket.h>

namespace rbt::transport::shm {

Sent Link::try_send(const Item& item, int fd) noexcept {
  if (const auto* announcement = std::get_if<AnnounceMessage>(&item.message)) return send(socket_, *announcement, fd);
  return send(socket_, std::get<RevokeMessage>(item.message));
}

void Link::say(Item item, int fd) {
  const std::scoped_lock lock(mutex_);
  if (queue_.empty() && try_send(item, fd) != Sent::full) return;  // gone: the reactor will see it by itself
  if (fd >= 0) item.descriptor = Descriptor(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (queue_.size() >= kWaitingMax || (fd >= 0 && !item.descriptor.valid())) {
    cut();
    return;
  }
  queue_.push_back(std::move(item));
  waiting_.store(true, std::memory_order_release);
  reactor_.post([] {});  // it may sleep: it has to watch for room in the socket now
}

void Link::announce(const AnnounceMessage& message, int fd) {
  say({message, {}}, fd);
}

void Link::revoke(std::uint32_t key) {
  ring_->control(side_).fence.fetch_add(2, std::memory_order_seq_cst);
  RevokeMessage message;
  message.key = key;
  say({message, {}}, -1);
}

void Link::fence_all() noexcept {
  ring_->control(side_).fence.fetch_or(1, std::memory_order_seq_cst);
}

bool Link::flush() {
  const std::scoped_lock lock(mutex_);
  while (!queue_.empty()) {
    if (try_send(queue_.front(), queue_.front().descriptor.get()) == Sent::full) return false;
    queue_.pop_front();
  }
  waiting_.store(false, std::memory_order_release);
  return true;
}

void Link::cut() noexcept {
  ::shutdown(socket_, SHUT_RDWR);
}

std::uint32_t Link::copying() const noexcept {
  // Partner: CopySection. Either we see the peer's odd number here, or it sees our fence before it copies.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return ring_->control(1 - side_).copying.load(std::memory_order_acquire);
}

}  // namespace rbt::transport::shm
