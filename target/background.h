#pragma once
// What blocks, or computes for long, and is not a store's: done off the reactors, one after the other.

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "common/result.h"
#include "transport/reactor/mailbox.h"

namespace rbt::target {

/// Thread-safe. Whoever submits makes sure that it outlives the task (the target's gate).
class Background {
 public:
  Background() = default;
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  /// From now on tasks have a thread of their own. Any number of times. Error: the limit of processes.
  [[nodiscard]] Result<void> start();
  /// Without a thread: here and now.
  void submit(transport::Task task);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<transport::Task> waiting_;  // guarded by mutex_
  bool stopping_ = false;                // guarded by mutex_
  std::thread thread_;                   // guarded by mutex_
};

}  // namespace rbt::target
