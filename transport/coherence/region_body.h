#pragma once
// What a region is made of inside, and the queues it stands in. Guarded by the engine's one mutex, which is held for pointer
// operations and for turns of the watch thread, and never while anybody allocates, logs, registers or deregisters.

#include <mutex>

#include "transport/coherence/region.h"

namespace rbt::transport::coherence {

/// How far the watch thread is with a change. A region that is not idle is on its list.
enum class Phase : std::uint8_t {
  idle,      ///< nothing to handle
  begun,     ///< quiescing; users that are running may not have seen it yet
  draining,  ///< all see it: waits until their counters are zero, or for drain_max
  fencing,   ///< waits for the fence thread, or for acknowledge_max
};

enum class FenceOutcome : std::uint8_t { pending, up, failed };

struct RegionBody {
  RegionBody(Region& r, RegionWord& w, const RegionOptions& o, Registration& reg,
             std::vector<std::unique_ptr<Watch>> list)
      : region(r), word(w), options(o), registration(reg), watches(std::move(list)) {}

  [[nodiscard]] RegionState state() const noexcept {
    return RegionWord::state(word.value.load(std::memory_order_relaxed));
  }
  enum class Epoch : std::uint8_t { same, next };
  /// The only writer of the state; aborts on a transition that is not in the table.
  void advance(RegionState to, Epoch epoch = Epoch::same) noexcept;
  [[nodiscard]] bool changing() noexcept;
  Change acknowledge() noexcept;
  [[nodiscard]] bool drained() const noexcept;
  enum Notice : std::uint32_t { overdue = 1, fenced = 2, coherent = 4 };
  void notify(Notice notice) noexcept;
  /// Those with requests in flight; returns how many.
  std::uint64_t notify_overdue() noexcept;

  Region& region;
  RegionWord& word;
  const RegionOptions& options;
  Registration& registration;
  std::vector<std::unique_ptr<Watch>> watches;

  // the watch thread's
  Phase phase = Phase::idle;
  Instant since{};  ///< when the change was heard of
  Change change = Change::none;
  std::uint64_t tag = 0;  ///< what epoll knows it by
  // the fence thread's
  bool fence_running = false;
  FenceOutcome fence = FenceOutcome::pending;
  // restoring
  bool restore_queued = false;
  bool restore_running = false;  ///< by the restore thread
  bool owner_holds = false;      ///< since invalidate(): not by itself before the owner says so
  bool restore_wanted = false;   ///< by itself, at restore_at
  Instant restore_at{};
  Duration pause{};
  bool failure_told = false;   ///< of restoring: in the log once per change
  const char* news = nullptr;  ///< for the log, a literal
  // what the restore thread has taken out to do now; its own
  bool restore_now = false;
  const char* news_to_tell = nullptr;

  RegionCounters counters;
  Use* uses = nullptr;
  RegionBody* next_active = nullptr;
  RegionBody* next_to_fence = nullptr;
  RegionBody* next_to_restore = nullptr;

  /// Held by whoever is in restore(): one at a time calls the registration. Taken before the engine's mutex.
  std::mutex restoring;
};

/// Regions linked through a member of theirs: nothing to allocate.
template <RegionBody* RegionBody::*Link>
class RegionQueue {
 public:
  [[nodiscard]] RegionBody* first() const noexcept { return first_; }
  void push(RegionBody& body) noexcept {
    RegionBody** at = &first_;
    while (*at != nullptr)
      at = &((*at)->*Link);
    body.*Link = nullptr;
    *at = &body;
  }
  void remove(RegionBody& body) noexcept {
    for (RegionBody** at = &first_; *at != nullptr; at = &((*at)->*Link))
      if (*at == &body) {
        *at = body.*Link;
        return;
      }
  }
  RegionBody* pop() noexcept {
    RegionBody* const body = first_;
    if (body != nullptr) first_ = body->*Link;
    return body;
  }

 private:
  RegionBody* first_ = nullptr;
};

}  // namespace rbt::transport::coherence
