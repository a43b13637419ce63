#include "transport/sim/agenda.h"

#include <algorithm>

#include "common/check.h"

namespace rbt::transport::sim {

namespace {

bool later(const Event& a, const Event& b) noexcept {
  return a.at != b.at ? a.at > b.at : a.sequence > b.sequence;
}

}  // namespace

ActorId Agenda::enroll(Actor& actor) {
  std::uint32_t index;
  if (free_slots_.empty()) {
    index = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    index = free_slots_.back();
    free_slots_.pop_back();
  }
  slots_[index].actor = &actor;
  return (ActorId{slots_[index].generation} << 32) | index;
}

void Agenda::leave(ActorId id) noexcept {
  check(find(id) != nullptr, "an actor leaves once");
  const auto index = static_cast<std::uint32_t>(id);
  slots_[index].actor = nullptr;
  ++slots_[index].generation;
  free_slots_.push_back(index);
}

Actor* Agenda::find(ActorId id) const noexcept {
  const auto index = static_cast<std::uint32_t>(id);
  if (index >= slots_.size() || slots_[index].generation != id >> 32) return nullptr;
  return slots_[index].actor;
}

void Agenda::schedule(Instant at, ActorId actor, std::uint32_t kind, std::uint32_t epoch) {
  heap_.push_back({std::max(at, now()), next_sequence_++, actor, kind, epoch});
  std::push_heap(heap_.begin(), heap_.end(), later);
}

void Agenda::pop() noexcept {
  std::pop_heap(heap_.begin(), heap_.end(), later);
  heap_.pop_back();
}

std::optional<Instant> Agenda::next() {
  while (!heap_.empty()) {
    const Event& event = heap_.front();
    const Actor* actor = find(event.actor);
    if (actor != nullptr && actor->expects(event)) return event.at;
    pop();
  }
  return std::nullopt;
}

void Agenda::deliver_next() {
  check(next().has_value(), "there is an event to deliver");
  const Event event = heap_.front();
  pop();
  clock_.advance_to(event.at);
  find(event.actor)->on_event(event);
}

}  // namespace rbt::transport::sim
