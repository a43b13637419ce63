#include "transport/coherence/region.h"

#include "common/check.h"
#include "transport/coherence/region_body.h"

namespace rbt::transport::coherence {

namespace {

/// Any state may become `gone`.
constexpr bool legal(RegionState from, RegionState to) noexcept {
  using enum RegionState;
  switch (from) {
    case coherent: return to == quiescing || to == gone;
    case quiescing: return to == quiescing || to == fenced || to == gone;  // to itself: the epoch goes up
    case fenced: return to == restoring || to == gone;
    case restoring: return to == coherent || to == fenced || to == gone;
    case gone: return false;
  }
  return false;
}

}  // namespace

std::string_view name(RegionState state) noexcept {
  switch (state) {
    case RegionState::coherent: return "coherent";
    case RegionState::quiescing: return "quiescing";
    case RegionState::fenced: return "fenced";
    case RegionState::restoring: return "restoring";
    case RegionState::gone: return "gone";
  }
  return "?";
}

std::string_view name(Change change) noexcept {
  switch (change) {
    case Change::none: return "nothing";
    case Change::unmapped: return "unmapped";
    case Change::discarded: return "discarded";
    case Change::moved: return "moved";
    case Change::lease_broken: return "lease broken";
    case Change::by_owner: return "changed by its owner";
  }
  return "?";
}

Result<void> MemoryRegistration::fence() {
  memory_.fence();
  return {};
}
Result<void> MemoryRegistration::restore() {
  return memory_.restore();
}

void RegionBody::advance(RegionState to, Epoch epoch) noexcept {
  const std::uint64_t now = word.value.load(std::memory_order_relaxed);
  check(legal(RegionWord::state(now), to), "a region's state changes as its table says");
  const std::uint64_t next = RegionWord::epoch(now) + (epoch == Epoch::next ? 1 : 0);
  word.value.store(RegionWord::make(next, to), std::memory_order_seq_cst);
}

bool RegionBody::changing() noexcept {
  bool any = false;
  for (const auto& watch : watches)
    any |= watch->changing();
  return any;
}

Change RegionBody::acknowledge() noexcept {
  Change most = Change::none;
  for (const auto& watch : watches)
    if (watch->changing()) most = std::max(most, watch->acknowledge());
  return most;
}

bool RegionBody::drained() const noexcept {
  for (const Use* use = uses; use != nullptr; use = use->next_of_region_)
    if (use->in_flight_.load(std::memory_order_acquire) != 0) return false;
  return true;
}

void RegionBody::notify(Notice notice) noexcept {
  for (Use* use = uses; use != nullptr; use = use->next_of_region_) {
    // fenced and coherent are each other's end; overdue stays until it was heard
    use->notices_.fetch_and(notice == overdue ? ~0U : std::uint32_t{overdue}, std::memory_order_relaxed);
    use->notices_.fetch_or(notice, std::memory_order_release);
    use->user_.ring();
  }
}

std::uint64_t RegionBody::notify_overdue() noexcept {
  std::uint64_t told = 0;
  for (Use* use = uses; use != nullptr; use = use->next_of_region_) {
    if (use->in_flight_.load(std::memory_order_acquire) == 0) continue;
    use->notices_.fetch_or(overdue, std::memory_order_release);
    use->user_.ring();
    ++told;
  }
  return told;
}

}  // namespace rbt::transport::coherence
