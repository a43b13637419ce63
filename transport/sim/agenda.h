#pragma once
// What will happen when, in virtual time. Events that have become pointless are dropped without moving the clock.

#include <cstdint>
#include <optional>
#include <vector>

#include "common/clock.h"

namespace rbt::transport::sim {

/// Names an actor for good: an id is never given twice, so an event for one that has gone finds nobody.
using ActorId = std::uint64_t;
inline constexpr ActorId kNobody = 0;

struct Event {
  Instant at{};
  std::uint64_t sequence = 0;  ///< order among events of the same instant: that of their scheduling
  ActorId actor = kNobody;
  std::uint32_t kind = 0;   ///< the actor's own enumeration
  std::uint32_t epoch = 0;  ///< the actor's own: lets it disown events that it scheduled earlier
};

/// Somebody to whom things happen.
class Actor {
 public:
  virtual ~Actor() = default;
  /// False: the event is obsolete and may be dropped now.
  [[nodiscard]] virtual bool expects(const Event& event) const noexcept = 0;
  virtual void on_event(const Event& event) = 0;
};

/// Clock, event queue and directory of actors of one simulated world. No allocation once grown to its working size.
class Agenda {
 public:
  [[nodiscard]] ManualClock& clock() noexcept { return clock_; }
  [[nodiscard]] Instant now() const noexcept { return clock_.now(); }

  [[nodiscard]] ActorId enroll(Actor& actor);
  void leave(ActorId id) noexcept;
  /// Null if it has left.
  [[nodiscard]] Actor* find(ActorId id) const noexcept;

  void schedule(Instant at, ActorId actor, std::uint32_t kind, std::uint32_t epoch = 0);
  /// When the next event that anybody still expects happens.
  [[nodiscard]] std::optional<Instant> next();
  /// Moves the clock to the next event and lets it happen. There must be one.
  void deliver_next();

 private:
  struct Slot {
    Actor* actor = nullptr;
    std::uint32_t generation = 1;
  };
  void pop() noexcept;

  ManualClock clock_;
  std::vector<Event> heap_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  std::uint64_t next_sequence_ = 0;
};

}  // namespace rbt::transport::sim
