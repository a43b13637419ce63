#include "transport/memory/registration_view.h"

#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace rbt::transport {

namespace {

// A mapping that cannot be registered is asked after again once in so many uses, where asking is expensive.
constexpr std::uint32_t kAskAgain = 256;
// Misses that are copied after one for which there was no room.
constexpr std::uint32_t kPause = 16;

}  // namespace

RegistrationView::RegistrationView(RegistrationCache& cache, ProtectionDomain& domain, Reactor& reactor,
                                   std::function<void()> on_overdue)
    : cache_(cache),
      domain_(domain),
      reactor_(reactor),
      on_overdue_(std::move(on_overdue)),
      user_(*this),
      self_(std::make_shared<RegistrationView*>(this)) {
  cache_.attach(*this);
}

RegistrationView::~RegistrationView() {
  cache_.detach(*this);
  *self_ = nullptr;
  if (watched_) reactor_.unwatch(user_.descriptor());
}

Result<void> RegistrationView::start() {
  auto watched = reactor_.watch(user_.descriptor(), EPOLLIN, [this](std::uint32_t) { user_.dispatch(); });
  watched_ = watched.has_value();
  return watched;
}

void RegistrationView::add_own(RegisteredMemory& memory) {
  const MemoryRegion* const region = memory.in(domain_);
  check(region != nullptr, "a queue pair's own memory is registered with its domain");
  own_.push_back({.begin = memory.memory().data,
                  .end = memory.memory().data + memory.memory().size,
                  .region{},
                  .use{},
                  .lkey = region->lkey(),
                  .rkey = region->rkey(),
                  .keyed = true});
}

// ---- a use

RegistrationView::Slot* RegistrationView::lookup(const std::byte* data, std::size_t size) noexcept {
  const auto after = std::upper_bound(sorted_.begin(), sorted_.end(), data, [](const std::byte* at, const Slot& slot) {
    return address_of(at) < address_of(slot.begin);
  });
  if (after == sorted_.begin()) return nullptr;
  Slot& slot = *std::prev(after);
  return address_of(data) < address_of(slot.end) && size <= address_of(slot.end) - address_of(data) ? &slot : nullptr;
}

bool RegistrationView::load_keys(Slot& slot) {
  const auto keys = slot.region->keys(domain_);
  if (!keys) return false;
  slot.lkey = keys->lkey;
  slot.rkey = keys->rkey;
  slot.keyed = true;
  return true;
}

bool RegistrationView::enter(Slot& slot, Reached& out) {
  if (slot.region != nullptr && slot.region->region() != nullptr) {
    if (slot.use == nullptr) slot.use = std::make_unique<coherence::Use>(*slot.region->region(), user_);
    out.pass = slot.use->enter();
    if (!out.pass) return false;
    const std::uint64_t epoch = coherence::RegionWord::epoch(out.pass.word);
    if (!slot.keyed || epoch != slot.epoch) {
      slot.keyed = false;
      slot.epoch = epoch;
      if (!load_keys(slot)) {
        (void)slot.use->leave(out.pass);
        return false;
      }
    }
    slot.region->mark_used();
    out.use = slot.use.get();
  } else if (!slot.keyed && !load_keys(slot)) {
    return false;
  }
  out.lkey = slot.lkey;
  out.rkey = slot.rkey;
  out.permanent = slot.region == nullptr;
  return true;
}

Reach RegistrationView::find(const void* data, std::size_t size, Reached& out) {
  const auto* const begin = static_cast<const std::byte*>(data);
  out = {};
  // An explicit registration that is being destroyed meanwhile is never used: no request may name that memory any more,
  // and the removal is seen before the address can be anybody else's.
  if (generation_ != cache_.generation()) refresh();
  Slot* const slot = lookup(begin, size);
  if (slot != nullptr && enter(*slot, out)) return Reach::direct;
  const bool known = slot != nullptr;
  if (!known && (size < cache_.options().size_min || !cache_.automatic())) return Reach::copy;
  return miss(begin, size, known, out);
}

// ---- a miss

Reach RegistrationView::miss(const std::byte* data, std::size_t size, bool known, Reached& out) {
  Reach reach = Reach::copy;
  if (!known && (hopeless(data, size, reach) || (pause_ != 0 && pause_-- != 0))) return reach;
  Mapping mapping;
  switch (cache_.acquire(
      data, size, [this] { refresh(); }, mapping)) {
    case RegistrationCache::Acquired::registered: break;
    case RegistrationCache::Acquired::copy: return Reach::copy;
    case RegistrationCache::Acquired::no_room: pause_ = kPause; return Reach::copy;
    case RegistrationCache::Acquired::never:
      hopeless_[next_hopeless_++ % hopeless_.size()] = {mapping, 0};
      return Reach::copy;
    case RegistrationCache::Acquired::unmapped: return Reach::unmapped;
  }
  if (generation_ != cache_.generation()) refresh();
  Slot* const slot = lookup(data, size);
  return slot != nullptr && enter(*slot, out) ? Reach::direct : Reach::copy;
}

// Whether it lies in a mapping that could not be registered, and is still the same one.
bool RegistrationView::hopeless(const std::byte* data, std::size_t size, Reach& reach) {
  const std::uintptr_t begin = address_of(data);
  for (Hopeless& known : hopeless_) {
    if (begin < known.mapping.begin || begin >= known.mapping.end || size > known.mapping.end - begin) continue;
    if (!cache_.mappings().quick()) return ++known.uses % kAskAgain != 0;
    const auto now = cache_.mappings().find(begin);
    if (!now) reach = Reach::unmapped;
    return !now || now->same_as(known.mapping);
  }
  return false;
}

// ---- what the cache and the monitor say

void RegistrationView::refresh() {
  generation_ = cache_.generation();  // before copy(): a change in between is seen next time
  cache_.copy(listed_);
  std::erase_if(leaving_, [](const Slot& slot) { return slot.use == nullptr || slot.use->in_flight() == 0; });
  std::vector<Slot> before = std::exchange(sorted_, {});
  for (Slot& slot : before) {
    if (slot.region == nullptr) continue;  // own_ has it
    if (std::find(listed_.begin(), listed_.end(), slot.region) != listed_.end())
      sorted_.push_back(std::move(slot));
    else if (slot.use != nullptr && slot.use->in_flight() != 0)
      leaving_.push_back(std::move(slot));
  }
  const std::size_t kept = sorted_.size();
  for (auto& region : listed_) {
    const auto end = sorted_.begin() + static_cast<std::ptrdiff_t>(kept);
    if (std::none_of(sorted_.begin(), end, [&](const Slot& slot) { return slot.region == region; }))
      sorted_.push_back({.begin = region->begin(), .end = region->end(), .region = std::move(region), .use{}});
  }
  listed_.clear();
  for (const Slot& own : own_)
    sorted_.push_back(
        {.begin = own.begin, .end = own.end, .region{}, .use{}, .lkey = own.lkey, .rkey = own.rkey, .keyed = true});
  std::sort(sorted_.begin(), sorted_.end(),
            [](const Slot& a, const Slot& b) { return address_of(a.begin) < address_of(b.begin); });
}

void RegistrationView::ask_to_let_go() {
  if (asked_.exchange(true)) return;
  reactor_.post([self = self_] {
    RegistrationView* const view = *self;
    if (view == nullptr) return;
    view->asked_.store(false);
    if (view->generation_ != view->cache_.generation()) view->refresh();
  });
}

void RegistrationView::on_region_overdue(coherence::Use&) {
  on_overdue_();
}

// Unmapped for good, it holds a descriptor and a place for nothing.
void RegistrationView::on_region_fenced(coherence::Use& use) {
  cache_.forget(use.region());
  if (generation_ != cache_.generation()) refresh();
}

}  // namespace rbt::transport
