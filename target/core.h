#pragma once
// What the parts of one target share. Configured before the start; after that only what is marked changes.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "common/uri.h"
#include "target/controller_table.h"
#include "target/reactor_context.h"
#include "target/subsystem.h"
#include "target/target.h"

namespace rbt::target {

/// Where hosts can come in: what the discovery log names.
struct ListenAddress {
  std::string fabric;  ///< Fabric::name()
  Uri uri;
};

/// Counts what must have ended before the target can: connections, and messages between reactors. One number for all
/// reactors: a sum of several could miss what moves from one to another. Thread-safe.
class Gate {
 public:
  void enter() noexcept { inside_.fetch_add(1, std::memory_order_relaxed); }
  /// Releases what was done inside to whoever finds the gate empty.
  void leave() noexcept {
    if (inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) inside_.notify_all();
  }
  [[nodiscard]] bool empty() const noexcept { return inside_.load(std::memory_order_acquire) == 0; }
  void wait_until_empty() const noexcept {
    for (auto seen = inside_.load(std::memory_order_acquire); seen != 0; seen = inside_.load(std::memory_order_acquire))
      inside_.wait(seen, std::memory_order_acquire);
  }

 private:
  std::atomic<int> inside_{0};
};

struct Core {
  Core(const Clock& clock_, Logger& logger_, const TargetLimits& limits_)
      : clock(clock_), logger(logger_), limits(limits_) {}

  const Clock& clock;
  Logger& logger;
  const TargetLimits limits;
  std::vector<std::unique_ptr<Subsystem>> subsystems;  ///< the first is the discovery subsystem
  std::vector<ListenAddress> addresses;
  std::size_t namespaces = 0;
  std::vector<std::unique_ptr<ReactorContext>> reactors;
  Instant started{};

  Gate gate;                                           // thread-safe
  ControllerTable controllers;                         // thread-safe
  std::atomic<bool> draining{false};                   // set once; the acceptor refuses from then on
  std::atomic<std::uint64_t> connections_accepted{0};  // relaxed: statistics
  std::atomic<std::uint64_t> connections_refused{0};

  [[nodiscard]] const Subsystem* find(const nvme::Nqn& nqn) const noexcept {
    for (const auto& subsystem : subsystems)
      if (subsystem->nqn() == nqn) return subsystem.get();
    return nullptr;
  }
};

}  // namespace rbt::target
