#pragma once
// The loop that hears of changes under registered memory and takes the regions through quiesce, fence, acknowledge and
// restore (region.h). Three threads, so that nobody waits for the wrong one:
//
//  * the watch thread sleeps in epoll, quiesces and acknowledges. It never allocates, logs, registers, deregisters or takes
//    a lock that is held across any of these, because whoever is blocked on us may hold malloc's lock.
//  * the fence thread deregisters. If that does not answer, the watch thread acknowledges at the bound all the same.
//  * the restore thread registers again (which may take seconds), and writes the log.

#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/result.h"
#include "transport/coherence/region.h"
#include "transport/coherence/watch.h"

namespace rbt::transport::coherence {

class Engine;
class LeaseSource;

struct MonitorOptions {
  /// own: start() makes the three threads. manual: the caller turns (tests with a ManualClock); nothing happens otherwise.
  enum class Threads : std::uint8_t { own, manual } threads = Threads::own;
  /// For broken leases: a signal that nobody else in this process uses, blocked on and directed to the watch thread only.
  /// 0: the highest real-time signal but two, SIGRTMAX - 2.
  int lease_signal = 0;
};

/// One per program that watches regions, made by those who wire it together. Thread-safe. Outlives its regions.
class Monitor {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Monitor>> start(const Clock& clock, Logger& logger,
                                                              const MonitorOptions& options = {});
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  /// A region that hears from all of `watches` (none: only from its owner's invalidate()); fenced until
  /// Region::restore() (what `registration` had registered is deregistered). `registration` outlives the region. Errors: `invalid_argument` for restore_by_itself with a
  /// watch that does not know the end of a change.
  [[nodiscard]] Result<std::unique_ptr<Region>> add(Registration& registration,
                                                    std::vector<std::unique_ptr<Watch>> watches, RegionOptions options);

  /// For lease.h: whose thread the signals of broken leases go to.
  [[nodiscard]] LeaseSource& leases() noexcept;

  /// Every source: there, or what is missing and what would enable it. Tries them out; slow path.
  [[nodiscard]] std::vector<SourceReport> explain() const;

  // Threads::manual only. Each does what its thread would do now, without waiting; true if it did something.
  bool turn_watch();
  bool turn_fence();
  bool turn_restore();

 private:
  friend class Region;
  friend class Use;
  explicit Monitor(std::unique_ptr<Engine> engine) noexcept;
  [[nodiscard]] Engine& engine() noexcept { return *engine_; }
  std::unique_ptr<Engine> engine_;
};

}  // namespace rbt::transport::coherence
