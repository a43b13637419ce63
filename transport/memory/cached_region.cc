#include "transport/memory/cached_region.h"

#include <fmt/format.h>

#include "transport/memory/registration_cache.h"

namespace rbt::transport {

CachedRegion::CachedRegion(RegistrationCache& cache, const MemorySpan& memory, Kind kind)
    : cache_(cache), memory_(memory), kind_(kind), domains_(cache.domains()) {
  const bool kept = kind == Kind::kept;
  (kept ? cache_.kept_ : cache_.alive_).fetch_add(1);
  (kept ? cache_.kept_bytes_ : cache_.alive_bytes_).fetch_add(memory.size);
}

CachedRegion::~CachedRegion() {
  region_.reset();  // fences; calls us while we are still whole
  const bool kept = kind_ == Kind::kept;
  (kept ? cache_.kept_ : cache_.alive_).fetch_sub(1);
  (kept ? cache_.kept_bytes_ : cache_.alive_bytes_).fetch_sub(memory_.size);
}

bool CachedRegion::holds(const std::byte* data, std::size_t size) const noexcept {
  return address_of(data) >= address_of(begin()) && address_of(data) < address_of(end()) &&
         size <= address_of(end()) - address_of(data);
}

bool CachedRegion::overlaps(const std::byte* from, const std::byte* to) const noexcept {
  return address_of(begin()) < address_of(to) && address_of(from) < address_of(end());
}

Result<void> CachedRegion::fence() {
  const std::lock_guard lock(mutex_);
  if (registered_ != nullptr) registered_->fence();
  return {};
}

Result<void> CachedRegion::restore() {
  registering_.store(true, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  registered_.reset();
  for (ProtectionDomain* domain : domains_)
    if (auto done = register_with(*domain); !done) {
      registered_.reset();
      return done;
    }
  restored_before_ = true;
  return {};
}

// Anonymous memory, or memory whose descriptor the caller told us, if the domain takes that; else by the descriptor that
// this process has of what is mapped there now.
Result<void> CachedRegion::register_with(ProtectionDomain& domain) {
  if (registered_ == nullptr) {
    MemorySpan span = memory_;
    if (restored_before_) span.fd = -1;  // the caller's descriptor was of what was mapped then
    registered_ = std::make_unique<RegisteredMemory>(span, RemoteAccess::read_write);
  }
  auto done = registered_->ensure(domain);
  if (done || done.error().kind() != ErrorKind::unsupported || registered_->memory().fd >= 0) return done;
  shm::Descriptor descriptor;
  auto span = shareable(descriptor);
  if (!span) return failure(std::move(span.error()));
  auto shared = std::make_unique<RegisteredMemory>(*span, RemoteAccess::read_write);
  done = shared->ensure(domain);  // which duplicates the descriptor
  if (done) registered_ = std::move(shared);
  return done;
}

Result<MemorySpan> CachedRegion::shareable(shm::Descriptor& holds) const {
  const auto mapping = cache_.mappings_.find(address_of(begin()));
  if (!mapping || !mapping->shared || mapping->inode == 0 || mapping->end < address_of(end()))
    return failure(ErrorKind::unsupported,
                   fmt::format("{} bytes are not one shared mapping of a memfd, which is all that can be shared with a "
                               "peer over shm",
                               memory_.size));
  holds = MappingTable::descriptor_of(*mapping);
  if (!holds.valid())
    return failure(ErrorKind::unsupported, "this process has no descriptor open for writing of the memfd behind it");
  return MemorySpan{memory_.data, memory_.size, holds.get(), mapping->offset + (address_of(begin()) - mapping->begin)};
}

std::optional<RegisteredMemory::Keys> CachedRegion::keys(ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  if (registered_ == nullptr) return std::nullopt;
  if (const auto known = registered_->keys(domain)) return known;
  if (!registered_->ensure(domain)) return std::nullopt;
  return registered_->keys(domain);
}

Result<void> CachedRegion::add_domain(ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  if (registered_ != nullptr)
    if (auto done = registered_->ensure(domain); !done) return done;
  domains_.push_back(&domain);
  return {};
}

}  // namespace rbt::transport
