#pragma once
// What a monitor is made of inside: the three threads and what they share.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "transport/coherence/lease_source.h"
#include "transport/coherence/monitor.h"
#include "transport/coherence/region_body.h"

namespace rbt::transport::coherence {

class Engine {
 public:
  Engine(const Clock& clock, Logger& logger, const MonitorOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  [[nodiscard]] Result<void> start();

  [[nodiscard]] Result<void> add(RegionBody& body);
  void remove(RegionBody& body);
  void attach(RegionBody& body, Use& use) noexcept;
  void detach(RegionBody& body, Use& use) noexcept;

  enum class By : std::uint8_t { owner, itself };
  [[nodiscard]] Result<void> restore(RegionBody& body, By whom);
  void restore_when_possible(RegionBody& body);
  [[nodiscard]] Result<void> invalidate(RegionBody& body);
  [[nodiscard]] RegionCounters counters(const RegionBody& body);

  /// `timeout_ms` as epoll_wait(2).
  bool turn_watch(int timeout_ms);
  bool turn_fence();
  bool turn_restore();

  [[nodiscard]] bool fence_needed() const noexcept { return fence_needed_; }
  [[nodiscard]] LeaseSource& leases() noexcept { return leases_; }

 private:
  static constexpr std::uint64_t kWakeTag = ~std::uint64_t{0};
  static constexpr std::uint64_t kSignalTag = kWakeTag - 1;
  struct Slot {
    RegionBody* body = nullptr;
    std::uint32_t generation = 0;
  };
  // the watch thread's turn, all with mutex_ held
  bool hear(RegionBody& body, Instant now) noexcept;
  void begin(RegionBody& body, Instant now) noexcept;
  void quiesce() noexcept;
  bool step(RegionBody& body, Instant now) noexcept;
  void begin_fence(RegionBody& body) noexcept;
  void finish(RegionBody& body, RegionState to, Instant now) noexcept;
  Change answer(RegionBody& body) noexcept;
  void listen_again(RegionBody& body) noexcept;
  [[nodiscard]] RegionBody* find(std::uint64_t tag) noexcept;
  [[nodiscard]] int sleep_ms() noexcept;

  void queue_for_restore(RegionBody& body) noexcept;
  [[nodiscard]] RegionBody* take_due(Instant now) noexcept;
  void try_restore(RegionBody& body);
  void tell_news(RegionBody& body);
  void wake_watch() noexcept;
  void watch_thread();
  void fence_thread();
  void restore_thread();

  const Clock& clock_;
  Logger& logger_;
  MonitorOptions options_;
  Leases leases_;
  int epoll_ = -1;
  int wake_ = -1;  // an eventfd: somebody has something for the watch thread
  bool fence_needed_ = false;
  std::mutex mutex_;  // guards what follows, and the bodies of all regions
  std::condition_variable fence_work_, restore_work_, settled_;
  bool stopping_ = false;
  std::vector<Slot> slots_;
  RegionQueue<&RegionBody::next_active> active_;
  RegionQueue<&RegionBody::next_to_fence> to_fence_;
  RegionQueue<&RegionBody::next_to_restore> to_restore_;
  std::thread watch_, fence_, restore_;
};

}  // namespace rbt::transport::coherence
