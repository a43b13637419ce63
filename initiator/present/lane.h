#pragma once
// A volume with a thread of its own, and the way in for other threads: a job is handed over without a lock and without an
// allocation, and whoever hands it over sleeps until it is done.

#include <sys/uio.h>

#include <atomic>
#include <memory>
#include <span>
#include <thread>

#include "common/random.h"
#include "initiator/volume.h"

namespace rbt::initiator {

/// A request and the memory for its data. One thread's from before Lane::submit() to after Lane::wait(), the lane's between.
struct Job {
  std::span<std::byte> buffer;  ///< of the volume's: moved without another copy
  Request request;              ///< to be filled in, but for `done` and `context`
  iovec data{};                 ///< for request.data to point to
  BlockRange range;             ///< for request.ranges to point to

 private:
  friend class Lane;
  Job* next_ = nullptr;
  std::atomic<int> done_{0};  // an int is what futexes wait for; released by the lane, acquired by wait()
};

/// The thread that opens it owns everything but submit(), wait() and give_up_when_lost(); reactor and volume are its own
/// thread's from start() to close().
class Lane final : private transport::Source {
 public:
  /// VolumeOptions::requests says how many jobs there may be at a time. Errors: what Volume::open() says.
  [[nodiscard]] static Result<std::unique_ptr<Lane>> open(const Environment& environment, const Uri& uri,
                                                          const VolumeOptions& options);
  /// close().
  ~Lane() override;
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  /// Before start() and after close(); on the lane's thread, from within the volume's callbacks.
  [[nodiscard]] Volume& volume() noexcept { return *volume_; }
  void start();

  /// Any thread.
  void submit(Job& job);
  /// The thread that submitted it: sleeps until it is done, for as long as the volume waits for a path.
  static void wait(Job& job) noexcept;

  /// Any thread, also while another is in close(): from now on nobody waits for a path. When it is lost, or is already, the
  /// volume is closed.
  void give_up_when_lost();
  /// Closes the volume and ends the thread. Jobs that are with it end as `aborted`, later ones as `disconnected`.
  void close();

 private:
  enum class End : std::uint8_t { no, when_lost, now };

  Lane(std::unique_ptr<transport::Reactor> reactor, Random random) noexcept
      : reactor_(std::move(reactor)), random_(random) {}
  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  void disarm() override { sleeping_.store(false, std::memory_order_relaxed); }
  void run();
  void interrupt();
  [[nodiscard]] bool over() const noexcept;
  [[nodiscard]] static Job* in_order(Job* newest) noexcept;
  static void finish(Job& job);
  static void refuse(Job& job);
  [[nodiscard]] Job* gone() noexcept { return &gone_; }

  std::unique_ptr<transport::Reactor> reactor_;
  Random random_;  // the volume's, for the environment's is another thread's
  std::unique_ptr<Volume> volume_;
  std::thread thread_;
  std::atomic<End> end_{End::no};  // released by who sets it, acquired by the lane's thread
  // A stack: released by submit(), acquired by the lane's thread; gone(): nobody is there any more.
  std::atomic<Job*> arrived_{nullptr};
  Job gone_;
  // submit() looks at it after its push, arm() looks at the stack after setting it (both seq_cst): one sees the other.
  std::atomic<bool> sleeping_{false};
};

}  // namespace rbt::initiator
