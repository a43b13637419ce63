#pragma once
// A thread for what would keep a reactor from everybody's I/O.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "common/result.h"
#include "target/store/quiet_thread.h"

namespace rbt::target {

/// Thread-safe. Jobs run in order; the destructor runs those that are left.
class HelperThread {
 public:
  using Job = std::function<void()>;
  ~HelperThread() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_one();
    if (thread_.joinable()) thread_.join();
  }
  /// Error: the limit of processes.
  [[nodiscard]] Result<void> start() {
    auto thread = start_quiet_thread([this] { work(); });
    if (!thread) return failure(std::move(thread.error()));
    thread_ = std::move(*thread);
    return {};
  }
  void submit(Job job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    wanted_.notify_one();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      wanted_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }
  std::mutex mutex_;  // guards the two below
  std::deque<Job> jobs_;
  bool stopping_ = false;
  std::condition_variable wanted_;
  std::thread thread_;
};

}  // namespace rbt::target
