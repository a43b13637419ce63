#include "transport/memory/registered_memory.h"

#include <fmt/format.h>

namespace rbt::transport {

Result<void> RegisteredMemory::ensure(ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  if (knows(domain)) return {};
  for (Entry& entry : entries_) {
    if (entry.domain.load(std::memory_order_relaxed) != nullptr) continue;
    if (!fenced_)
      if (auto registered = register_in(entry, domain); !registered) return registered;
    entry.domain.store(&domain, std::memory_order_release);
    return {};
  }
  return failure(ErrorKind::resource,
                 fmt::format("registering memory with {}: it is registered with {} devices already, "
                             "the most that is supported",
                             domain.name(), kDomainsMax));
}

Result<void> RegisteredMemory::register_in(Entry& entry, ProtectionDomain& domain) {
  auto region = domain.register_memory(memory_, access_);
  if (!region) return failure(std::move(region.error()));
  entry.region = std::move(*region);
  entry.keys.store(std::uint64_t{entry.region->lkey()} << 32 | entry.region->rkey(), std::memory_order_release);
  return {};
}

void RegisteredMemory::deregister(Entry& entry) noexcept {
  entry.keys.store(0, std::memory_order_release);
  entry.region.reset();
}

bool RegisteredMemory::knows(const ProtectionDomain& domain) const noexcept {
  for (const Entry& entry : entries_)
    if (entry.domain.load(std::memory_order_relaxed) == &domain) return true;
  return false;
}

const MemoryRegion* RegisteredMemory::in(const ProtectionDomain& domain) const noexcept {
  for (const Entry& entry : entries_)
    if (entry.domain.load(std::memory_order_acquire) == &domain) return entry.region.get();
  return nullptr;
}

std::optional<RegisteredMemory::Keys> RegisteredMemory::keys(const ProtectionDomain& domain) const noexcept {
  for (const Entry& entry : entries_) {
    if (entry.domain.load(std::memory_order_acquire) != &domain) continue;
    const std::uint64_t keys = entry.keys.load(std::memory_order_acquire);
    if (keys == 0) return std::nullopt;
    return Keys{static_cast<std::uint32_t>(keys >> 32), static_cast<std::uint32_t>(keys)};
  }
  return std::nullopt;
}

void RegisteredMemory::drop(const ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    if (entry.domain.load(std::memory_order_relaxed) != &domain) continue;
    entry.domain.store(nullptr, std::memory_order_release);
    deregister(entry);
  }
}

void RegisteredMemory::fence() {
  const std::lock_guard lock(mutex_);
  fenced_ = true;
  for (Entry& entry : entries_)
    deregister(entry);
}

Result<void> RegisteredMemory::restore() {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    ProtectionDomain* const domain = entry.domain.load(std::memory_order_relaxed);
    if (domain == nullptr || entry.region != nullptr) continue;
    auto registered = register_in(entry, *domain);
    if (registered) continue;
    for (Entry& other : entries_)
      deregister(other);
    return registered;
  }
  fenced_ = false;
  return {};
}

}  // namespace rbt::transport
