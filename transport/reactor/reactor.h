#pragma once
// A thread and what it owns. It polls its sources while there is work and for a short adaptive time after, then arms
// their doorbells and sleeps: an idle reactor uses no CPU.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/result.h"
#include "transport/reactor/mailbox.h"
#include "transport/reactor/timer.h"

namespace rbt::transport {

class Reactor;

/// Something to look at every turn: a poll group, an io_uring. Called on the reactor's thread only.
class Source {
 public:
  virtual ~Source() = default;
  /// Does what there is to do, never blocks. Returns how many things it did; 0 lets the reactor think of sleeping.
  virtual std::size_t poll() = 0;
  /// The reactor is about to sleep: from now on new work must make one of the watched descriptors readable.
  /// False: there is work already (or might be); the reactor polls again instead of sleeping.
  [[nodiscard]] virtual bool arm() = 0;
  /// The reactor has woken up after a successful arm().
  virtual void disarm() {}
};

/// How a reactor waits when nothing is to be done. The default sleeps in epoll; a simulation moves the world instead.
class Waiter {
 public:
  virtual ~Waiter() = default;
  /// Returns when something may have happened, at `until` at the latest (none: no timer is pending).
  virtual void wait(Reactor& reactor, std::optional<Instant> until) = 0;
};

struct ReactorOptions {
  Duration spin_max = std::chrono::microseconds(50);  ///< longest fruitless polling before sleep
  int cpu = -1;                                       ///< run() pins its thread there; -1: the scheduler's choice
  Waiter* waiter = nullptr;                           ///< null: epoll
};

/// Written by the reactor's thread; readable from others as a snapshot.
struct ReactorCounters {
  std::atomic<std::uint64_t> turns{0};
  std::atomic<std::uint64_t> busy_turns{0};
  std::atomic<std::uint64_t> sleeps{0};
  std::atomic<std::uint64_t> descriptor_polls{0};
};

/// Belongs to one thread: the one that calls run(), turn() or run_until(). Only post(), wake(), stop() and counters() may
/// be called from elsewhere.
class Reactor {
 public:
  using DescriptorHandler = std::function<void(std::uint32_t epoll_events)>;

  [[nodiscard]] static Result<std::unique_ptr<Reactor>> create(const Clock& clock, Logger& logger,
                                                               const ReactorOptions& options = {});
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  /// Polled every turn until removed. `source` must outlive its stay. Both may be called from within poll().
  void add(Source& source);
  void remove(Source& source);

  /// Calls `handler` when `fd` shows `epoll_events` (EPOLLIN, …; level-triggered). One handler per fd.
  [[nodiscard]] Result<void> watch(int fd, std::uint32_t epoll_events, DescriptorHandler handler);
  /// May be called from within any handler, also the fd's own. Unknown descriptors are ignored.
  void unwatch(int fd);

  /// Runs `task` on this reactor's thread, soon. Thread-safe. Tasks of one sender run in order.
  void post(Task task);
  /// Ends its sleep, if it sleeps: for a Source that other threads gave work. Thread-safe; a system call, no allocation.
  void wake() noexcept { mailbox_.ring(); }

  /// Timers of this reactor: timer.h.
  [[nodiscard]] TimerQueue& timers() noexcept { return timers_; }
  [[nodiscard]] const Clock& clock() const noexcept { return clock_; }
  /// The time at the start of this turn: cheap, and the same for everything done in it.
  [[nodiscard]] Instant now() const noexcept { return now_; }
  [[nodiscard]] Logger& logger() const noexcept { return logger_; }
  [[nodiscard]] const ReactorCounters& counters() const noexcept { return counters_; }

  /// One pass over mailbox, timers, sources and, now and then, descriptors; never sleeps. True if anything was done.
  bool turn();
  /// True from within turn(): nobody may turn it again before that has returned.
  [[nodiscard]] bool turning() const noexcept { return turning_; }
  /// Turns and sleeps until stop().
  void run();
  /// Turns and sleeps until `done` returns true (then true), or `deadline` has passed or stop() was called (then false).
  /// Not from within a handler of the same reactor.
  [[nodiscard]] bool run_until(const std::function<bool()>& done, Instant deadline);
  /// Ends run(); thread-safe; counts also if run() has not begun yet.
  void stop();

 private:
  friend class EpollWaiter;
  struct Watched;
  Reactor(const Clock& clock, Logger& logger, const ReactorOptions& options);
  std::size_t poll_descriptors(int timeout_ms);
  void wait_for_work(std::optional<Instant> until);
  void learn_spin(Instant idle_since);

  const Clock& clock_;
  Logger& logger_;
  ReactorOptions options_;
  Instant now_{};
  Instant next_descriptor_poll_{};
  Duration spin_{};
  int epoll_fd_ = -1;
  std::atomic<bool> stopping_{false};
  Mailbox mailbox_;
  TimerQueue timers_;
  std::vector<Source*> sources_;  // null: removed during the pass
  std::vector<std::unique_ptr<Watched>> watched_;
  bool in_pass_ = false;
  bool turning_ = false;
  ReactorCounters counters_;
};

}  // namespace rbt::transport
