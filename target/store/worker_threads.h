#pragma once
// Threads that carry out work which blocks.

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "common/quiet_thread.h"
#include "common/result.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// `Work` has a `next` of its own. Thread-safe; the destructor waits for what was submitted.
template <typename Work>
class WorkerThreads {
 public:
  explicit WorkerThreads(std::function<void(Work&)> body) : body_(std::move(body)) {}
  ~WorkerThreads() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_)
      thread.join();
  }
  WorkerThreads(const WorkerThreads&) = delete;
  WorkerThreads& operator=(const WorkerThreads&) = delete;

  [[nodiscard]] Result<void> start(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      auto thread = start_quiet_thread([this] { work(); });
      if (!thread) return failure(std::move(thread.error()));
      threads_.push_back(std::move(*thread));
    }
    return {};
  }

  void submit(Work& work) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push(work);
    }
    wanted_.notify_one();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      wanted_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      Work& next = waiting_.pop();
      lock.unlock();
      body_(next);
      lock.lock();
    }
  }

  std::function<void(Work&)> body_;
  std::mutex mutex_;  // guards the three below
  std::condition_variable wanted_;
  RecordQueue<Work> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace rbt::target
