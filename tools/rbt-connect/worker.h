#pragma once
// A thread for calls that may block, one after the other, and the way back to a reactor.

#include <functional>
#include <memory>
#include <thread>

#include "common/result.h"
#include "transport/reactor/reactor.h"

namespace rbt::tools {

/// Belongs to its reactor's thread.
class Worker {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Worker>> create(transport::Reactor& reactor);
  /// Waits for the call that is under way; those behind it are not made, and nobody is told any more.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// `call` on the thread, then `done` from within a turn of the reactor.
  void start(std::function<void()> call, std::function<void()> done);

 private:
  struct Shared;
  explicit Worker(std::shared_ptr<Shared> shared) noexcept : shared_(std::move(shared)) {}
  std::shared_ptr<Shared> shared_;  // with the thread, and with the tasks that are on their way to the reactor
  std::thread thread_;
};

}  // namespace rbt::tools
