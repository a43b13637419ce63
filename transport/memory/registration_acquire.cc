// The slow path of a registration cache: a use that is not covered.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "transport/memory/registration_cache.h"
#include "transport/memory/registration_view.h"

namespace rbt::transport {

namespace {

// Uses that overlap a range without lying in it are copied; after so many the range makes way. So ranges that take turns
// cost a registration in eight uses, not in each.
constexpr std::uint32_t kConflictsMax = 8;
// Ranges that one use may push out to get room.
constexpr int kEvictionsMax = 4;

// What it stood for is not there any more: no reason to keep it.
bool over(const CachedRegion& entry) {
  const coherence::Region* const region = entry.region();
  if (region == nullptr || region->state() == coherence::RegionState::coherent) return false;
  if (region->state() == coherence::RegionState::gone) return true;
  const coherence::Change change = region->counters().last_change;
  return change == coherence::Change::unmapped || change == coherence::Change::moved;
}

}  // namespace

RegistrationCache::Acquired RegistrationCache::acquire(const std::byte* data, std::size_t size,
                                                       const std::function<void()>& let_go, Mapping& mapping) {
  const auto mapped = mappings_.covering(address_of(data), size);
  if (!mapped) return Acquired::unmapped;
  mapping = *mapped;
  if (const Entry entry = find_holding(data, size); entry != nullptr) {
    if (entry->region() == nullptr) return Acquired::copy;
    if (entry->kind() == CachedRegion::Kind::kept || !over(*entry)) return restore(entry);
  }
  if (!automatic() || size < options_.size_min) return Acquired::copy;
  refused_.fetch_add(1, std::memory_order_relaxed);  // taken back if it is not
  if (mappings_.allocators(mapping, address_of(data))) return Acquired::never;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t slack = address_of(data) % page;
  std::byte* const begin = const_cast<std::byte*>(data) - slack;  // NOLINT: what the transfer does with it, it knows
  const std::size_t bytes = (slack + size + page - 1) / page * page;
  if (!clear_way(begin, begin + bytes, let_go)) return Acquired::copy;
  if (!make_room(bytes, let_go)) return Acquired::no_room;
  const auto entry = std::make_shared<CachedRegion>(*this, MemorySpan{begin, bytes}, CachedRegion::Kind::automatic);
  if (auto opened = open(entry, Watched::yes); !opened) return judge(entry, opened.error());
  if (!insert(entry)) return Acquired::copy;
  const Acquired outcome = restore(entry);
  if (outcome == Acquired::registered) refused_.fetch_sub(1, std::memory_order_relaxed);
  return outcome;
}

RegistrationCache::Entry RegistrationCache::find_holding(const std::byte* data, std::size_t size) const {
  const std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_)
    if (entry->holds(data, size)) return entry;
  return nullptr;
}

// Registers what is mapped there now. Not from a handler of the change: this is a use, after it.
RegistrationCache::Acquired RegistrationCache::restore(const Entry& entry) {
  entry->registering_.store(false);
  if (auto done = entry->region()->restore(); !done) return judge(entry, done.error());
  if (entry->kind() == CachedRegion::Kind::automatic) registered_.fetch_add(1, std::memory_order_relaxed);
  return Acquired::registered;
}

RegistrationCache::Acquired RegistrationCache::judge(const Entry& entry, const Error& error) {
  if (error.kind() == ErrorKind::in_use) return Acquired::copy;  // the change is not over yet
  if (entry->kind() == CachedRegion::Kind::automatic) retire(entry);
  if (entry->registering_.load()) {
    if (error.kind() == ErrorKind::unsupported) return Acquired::never;
    tell_once(told_registration_, error, "their data is copied");
    return error.kind() == ErrorKind::resource ? Acquired::no_room : Acquired::never;
  }
  const bool for_good = error.kind() == ErrorKind::permission || error.kind() == ErrorKind::unsupported;
  if (for_good) automatic_.store(false, std::memory_order_relaxed);
  if (!for_good && error.kind() != ErrorKind::resource) return Acquired::copy;  // not as it was when we looked
  tell_once(told_watch_, error, "their data is copied");
  return Acquired::no_room;
}

// A page can have one watch: what overlaps must go first. False: it may not, yet.
bool RegistrationCache::clear_way(const std::byte* from, const std::byte* to, const std::function<void()>& let_go) {
  bool clear = true;
  std::vector<Entry> gone;
  {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = entries_.size(); i-- > 0;) {
      CachedRegion& entry = *entries_[i];
      const bool automatic = entry.kind() == CachedRegion::Kind::automatic;
      if (automatic && over(entry)) {  // wherever it is: mremap() takes the watch along to a new address
        gone.push_back(unlist(i));
      } else if (entry.overlaps(from, to)) {
        if (automatic && ++entry.conflicts_ >= kConflictsMax)
          gone.push_back(unlist(i));
        else
          clear = false;
      }
    }
  }
  if (gone.empty()) return clear;
  gone.clear();
  let_go();
  return clear;
}

void RegistrationCache::forget(const coherence::Region& region) {
  Entry gone;
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&region](const Entry& entry) { return entry->region() == &region; });
  if (found == entries_.end() || (*found)->kind() == CachedRegion::Kind::kept || !over(**found)) return;
  gone = unlist(static_cast<std::size_t>(found - entries_.begin()));
}

bool RegistrationCache::full(std::size_t bytes) const noexcept {
  return alive_.load() >= options_.regions_max || alive_bytes_.load() > options_.bytes_max - bytes;
}

bool RegistrationCache::make_room(std::size_t bytes, const std::function<void()>& let_go) {
  if (bytes > options_.bytes_max) return false;
  if (full(bytes)) let_go();  // what made way while it was in use
  for (int i = 0; full(bytes); ++i) {
    if (i == kEvictionsMax || !unlist_unused()) return false;
    let_go();  // what nobody else holds is gone now; what others are using goes when they have noticed
  }
  return true;
}

// The second-chance clock: what has been used since the hand came by stays for another round.
bool RegistrationCache::unlist_unused() {
  Entry gone;
  const std::lock_guard lock(mutex_);
  for (std::size_t looked = 0; looked < 2 * entries_.size(); ++looked) {
    hand_ = (hand_ + 1) % entries_.size();
    CachedRegion& entry = *entries_[hand_];
    if (entry.kind() == CachedRegion::Kind::kept || entry.used_.exchange(false, std::memory_order_relaxed)) continue;
    gone = unlist(hand_);
    evicted_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace rbt::transport
