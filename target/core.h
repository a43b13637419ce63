#pragma once
// What the parts of one target share. Configured before the start; after that only what is marked changes.

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/nvme/recovery.h"
#include "common/uri.h"
#include "target/background.h"
#include "target/controller_table.h"
#include "target/host_table.h"
#include "target/namespaces.h"
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
      : clock(clock_), logger(logger_), limits(limits_), hosts(limits_) {}

  const Clock& clock;
  Logger& logger;
  const TargetLimits limits;
  bool own_reactors = false;                           ///< written by open()
  nvme::InstanceId instance{};                         ///< this target, for as long as it runs
  std::vector<std::unique_ptr<Subsystem>> subsystems;  ///< the first is the discovery subsystem
  std::vector<ListenAddress> addresses;
  Background background;         ///< thread-safe; its tasks are inside the gate
  Namespaces namespaces{*this};  ///< thread-safe; outlives the reactors' ways into the stores
  HostTable hosts;               ///< thread-safe; outlives the connections
  std::vector<std::unique_ptr<ReactorContext>> reactors;
  Instant started{};

  std::atomic<bool> serving{false};          ///< set by start(), for good
  std::atomic<bool> threads_running{false};  ///< of our own; written by start() and stop()
  std::vector<std::thread::id> threads;      ///< of our own; written by start() before it sets threads_running

  Gate gate;                                           // thread-safe
  ControllerTable controllers;                         // thread-safe
  std::atomic<bool> draining{false};                   // set once; the acceptor refuses from then on
  std::atomic<std::uint64_t> connections_accepted{0};  // relaxed: statistics
  std::atomic<std::uint64_t> connections_refused{0};

  /// For authentication, beside `background`, which nobody's exponents may keep waiting. Its tasks are in the gate, and it goes first.
  Background authenticating;

  [[nodiscard]] const Subsystem* find(const nvme::Nqn& nqn) const noexcept {
    for (const auto& subsystem : subsystems)
      if (subsystem->nqn() == nqn) return subsystem.get();
    return nullptr;
  }

  /// The caller is one of our own threads: waiting for a reactor would be waiting for itself.
  [[nodiscard]] bool on_own_thread() const noexcept {
    return threads_running.load(std::memory_order_acquire) &&
           std::find(threads.begin(), threads.end(), std::this_thread::get_id()) != threads.end();
  }
  /// Runs `body` for every reactor, on its thread if that is ours, and waits for all of them.
  template <typename Body>
  void on_each_reactor(const Body& body) {
    if (!threads_running.load(std::memory_order_acquire)) {
      for (const auto& reactor : reactors)
        body(*reactor);
      return;
    }
    std::vector<std::promise<void>> done(reactors.size());
    for (std::size_t i = 0; i < done.size(); ++i)
      reactors[i]->post([&body, &promise = done[i], reactor = reactors[i].get()] {
        body(*reactor);
        promise.set_value();
      });
    for (auto& promise : done)
      promise.get_future().wait();
  }
};

}  // namespace rbt::target
