#include "target/background.h"

#include <utility>

#include "common/quiet_thread.h"

namespace rbt::target {

Background::~Background() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Result<void> Background::start() {
  const std::lock_guard lock(mutex_);
  if (thread_.joinable()) return {};
  auto thread = start_quiet_thread([this] { work(); });
  if (!thread) return failure(std::move(thread.error()));
  thread_ = std::move(*thread);
  return {};
}

void Background::submit(transport::Task task) {
  {
    const std::lock_guard lock(mutex_);
    if (thread_.joinable()) {
      waiting_.push_back(std::move(task));
      wanted_.notify_one();
      return;
    }
  }
  task();
}

void Background::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wanted_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    transport::Task next = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    next();
    lock.lock();
  }
}

}  // namespace rbt::target
