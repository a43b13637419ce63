#include "transport/memory/registration_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "transport/memory/registration_view.h"

namespace rbt::transport {

// ---- the list

RegistrationCache::RegistrationCache(coherence::Monitor* monitor, RegistrationCacheOptions options, Logger& logger)
    : monitor_(monitor),
      options_(std::move(options)),
      logger_(logger),
      automatic_(options_.automatic && monitor != nullptr) {}

RegistrationCache::~RegistrationCache() {
  check(views_.empty() && empty(), "a registration cache outlives its views and what was added");
  entries_.clear();
}

void RegistrationCache::tell_once(std::atomic<bool>& told, const Error& error, std::string_view consequence) {
  if (!told.exchange(true)) logger_.warning("buffers of the caller's: {}; {}", error.message(), consequence);
}

RegistrationCache::Entry RegistrationCache::unlist(std::size_t index) {
  Entry gone = std::move(entries_[index]);
  entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(index));
  generation_.fetch_add(1, std::memory_order_release);
  for (RegistrationView* view : views_)
    view->ask_to_let_go();
  return gone;
}

void RegistrationCache::retire(const Entry& entry) noexcept {
  Entry gone;
  const std::lock_guard lock(mutex_);
  const auto found = std::find(entries_.begin(), entries_.end(), entry);
  if (found != entries_.end()) gone = unlist(static_cast<std::size_t>(found - entries_.begin()));
}

bool RegistrationCache::insert(const Entry& entry) {
  const std::lock_guard lock(mutex_);
  for (const Entry& other : entries_)
    if (other->overlaps(entry->begin(), entry->end())) return false;
  const auto place = std::upper_bound(entries_.begin(), entries_.end(), entry, [](const Entry& a, const Entry& b) {
    return address_of(a->begin()) < address_of(b->begin());
  });
  entries_.insert(place, entry);
  generation_.fetch_add(1, std::memory_order_release);
  return true;
}

Result<void> RegistrationCache::open(const Entry& entry, Watched watched) {
  std::vector<std::unique_ptr<coherence::Watch>> watches;
  if (watched == Watched::yes && options_.make_watch) {
    auto watch = options_.make_watch(entry->span());
    if (!watch) return failure(std::move(watch.error()));
    watches.push_back(std::move(*watch));
  }
  auto region = monitor_->add(
      *entry, std::move(watches),
      {.name = fmt::format("a buffer of {} bytes at {}", entry->span().size, static_cast<const void*>(entry->begin())),
       .drain_max = options_.change_wait_max * 5 / 9,
       .acknowledge_max = options_.change_wait_max});
  if (!region) return failure(std::move(region.error()));
  entry->region_ = std::move(*region);
  return {};
}

void RegistrationCache::copy(std::vector<Entry>& out) const {
  const std::lock_guard lock(mutex_);
  out = entries_;
}

RegistrationCacheCounters RegistrationCache::counters() const {
  return {.registered = registered_.load(),
          .refused = refused_.load(),
          .evicted = evicted_.load(),
          .regions = alive_.load() + kept_.load(),
          .bytes = alive_bytes_.load() + kept_bytes_.load()};
}

std::vector<ProtectionDomain*> RegistrationCache::domains() const {
  const std::lock_guard lock(mutex_);
  return domains_;
}

bool RegistrationCache::empty() const {
  const std::lock_guard lock(mutex_);
  return std::none_of(entries_.begin(), entries_.end(),
                      [](const Entry& entry) { return entry->kind() == CachedRegion::Kind::kept; });
}

void RegistrationCache::attach(RegistrationView& view) {
  const std::lock_guard lock(mutex_);
  views_.push_back(&view);
}

void RegistrationCache::detach(RegistrationView& view) noexcept {
  const std::lock_guard lock(mutex_);
  std::erase(views_, &view);
}

// ---- explicit registrations

Result<std::shared_ptr<CachedRegion>> RegistrationCache::add(const MemorySpan& memory) {
  const auto entry = std::make_shared<CachedRegion>(*this, memory, CachedRegion::Kind::kept);
  std::vector<Entry> gone;
  {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = entries_.size(); i-- > 0;) {
      if (!entries_[i]->overlaps(entry->begin(), entry->end())) continue;
      if (entries_[i]->kind() == CachedRegion::Kind::kept)
        return failure(ErrorKind::in_use,
                       fmt::format("it overlaps a registered one of {} bytes", entries_[i]->span().size));
      gone.push_back(unlist(i));  // an automatic one that is in the way has had its day
    }
  }
  auto registered = monitor_ == nullptr ? entry->restore() : start_kept(entry);
  if (!registered) return failure(std::move(registered.error()));
  if (!insert(entry)) return failure(ErrorKind::in_use, "it overlaps a registered one");
  return entry;
}

// Watched if it can be. If not, it is registered all the same: that is what was asked for.
Result<void> RegistrationCache::start_kept(const Entry& entry) {
  auto done = open(entry, Watched::yes);
  if (done) done = entry->region_->restore();
  if (done || entry->registering_.load()) return done;
  tell_once(told_watch_, done.error(), "what was registered explicitly is not watched: do not change its mapping");
  entry->region_.reset();
  done = open(entry, Watched::no);
  return done ? entry->region_->restore() : done;
}

void RegistrationCache::remove(const Entry& entry) noexcept {
  retire(entry);
  if (entry->region() == nullptr) {
    (void)entry->fence();
  } else if (auto fenced = entry->region()->invalidate(); !fenced) {
    logger_.error("a registered buffer of {} bytes: {}", entry->span().size, fenced.error().message());
  }
}

Result<void> RegistrationCache::add_domain(ProtectionDomain& domain) {
  std::vector<Entry> listed;
  {
    const std::lock_guard lock(mutex_);
    if (std::find(domains_.begin(), domains_.end(), &domain) != domains_.end()) return {};
    domains_.push_back(&domain);
    listed = entries_;
  }
  for (const Entry& entry : listed) {
    if (entry->kind() != CachedRegion::Kind::kept) continue;  // others when they are used
    auto done = entry->add_domain(domain);
    if (done) continue;
    const std::lock_guard lock(mutex_);
    std::erase(domains_, &domain);
    return done;
  }
  generation_.fetch_add(1, std::memory_order_release);
  return {};
}

}  // namespace rbt::transport
