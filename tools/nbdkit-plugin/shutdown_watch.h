#pragma once
// nbdkit ends when no request is left, and tells plugins nothing before: who lets requests wait has to ask whether it wants to.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace rbt::tools {

/// A thread that asks nbdkit, as long as requests may be waiting for a path: nbdkit_nanosleep() ends early when nbdkit has been
/// told to end. Asked at other times it would leave a line in the log of every nbdkit that ends.
class ShutdownWatch {
 public:
  /// `on_shutdown` is called once at most, on the watch's thread, while nbdkit ends.
  explicit ShutdownWatch(std::function<void()> on_shutdown);
  /// Ends the thread.
  ~ShutdownWatch();
  ShutdownWatch(const ShutdownWatch&) = delete;
  ShutdownWatch& operator=(const ShutdownWatch&) = delete;

  /// Thread-safe.
  void watch(bool requests_may_wait);

 private:
  void run();

  std::function<void()> on_shutdown_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool watching_ = false;  // guarded by mutex_, as the next
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace rbt::tools
