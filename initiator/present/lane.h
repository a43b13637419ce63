#pragma once
// One queue pair with a thread of its own, and the way in for other threads: a job is handed over without a lock and
// without an allocation, and whoever hands it over sleeps until it is done.

#include <sys/uio.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

#include "common/log.h"
#include "initiator/initiator.h"

namespace rbt::initiator {

class Lane;

/// A request and the registered memory for its data. One thread's from before Lane::submit() to after Lane::wait(), the
/// lane's between.
struct Job {
  Lane* lane = nullptr;         ///< whose memory `buffer` is
  std::span<std::byte> buffer;  ///< of the queue pair: moved without another copy
  Request request;              ///< to be filled in, but for `done` and `context`
  iovec data{};                 ///< for request.data to point to
  BlockRange range;             ///< for request.ranges to point to

 private:
  friend class Lane;
  Job* next_ = nullptr;
  std::atomic<int> done_{0};  // an int is what futexes wait for; released by the lane, acquired by wait()
};

/// The thread that opens it owns everything but submit() and wait(); reactor and queue pair are its own thread's from
/// start() to the destructor.
class Lane final : private transport::Source {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Lane>> open(Session& session, const Clock& clock, Logger& logger,
                                                          const QueuePairOptions& options);
  /// Ends the thread and closes the queue pair. No job is with the lane, and its jobs' buffers are not used any more.
  ~Lane() override;
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  /// Before start(): memory for a job, for the life of the lane; empty when QueuePairOptions::buffers is used up.
  [[nodiscard]] std::span<std::byte> buffer(std::size_t size) { return queue_->buffers()->allocate(size); }
  void start();

  /// Any thread.
  void submit(Job& job) noexcept;
  /// The thread that submitted it: sleeps until it is done. The queue pair ends every command in its time.
  static void wait(Job& job) noexcept;

  /// Any thread: why the queue pair ended; nothing until a job has found that out.
  [[nodiscard]] std::optional<Error> failure() const;

 private:
  explicit Lane(std::unique_ptr<transport::Reactor> reactor) noexcept : reactor_(std::move(reactor)) {}
  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  void disarm() override { sleeping_.store(false, std::memory_order_relaxed); }
  void collect() noexcept;
  [[nodiscard]] bool submit_first();
  void finish(Job& job);

  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<QueuePair> queue_;
  Job* first_ = nullptr;  // collected, not submitted yet: the queue pair was full
  Job* last_ = nullptr;
  std::thread thread_;
  std::atomic<Job*> arrived_{nullptr};  // a stack: released by submit(), acquired by collect()
  // submit() looks at it after its push, arm() looks at the stack after setting it (both seq_cst): one sees the other.
  std::atomic<bool> sleeping_{false};
  mutable std::mutex failure_mutex_;
  std::optional<Error> failure_;  // guarded by failure_mutex_
};

}  // namespace rbt::initiator
