#include "transport/memory/registered_memory.h"

#include <fmt/format.h>

namespace rbt::transport {

Result<void> RegisteredMemory::ensure(ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  if (knows(domain)) return {};
  for (Entry& entry : entries_) {
    if (entry.domain.load(std::memory_order_relaxed) != nullptr) continue;
    if (!fenced_) {
      auto region = domain.register_memory(memory_, access_);
      if (!region) return failure(std::move(region.error()));
      entry.region = std::move(*region);
    }
    entry.domain.store(&domain, std::memory_order_release);
    return {};
  }
  return failure(ErrorKind::resource,
                 fmt::format("registering memory with {}: it is registered with {} devices already, "
                             "the most that is supported",
                             domain.name(), kDomainsMax));
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

void RegisteredMemory::drop(const ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    if (entry.domain.load(std::memory_order_relaxed) != &domain) continue;
    entry.domain.store(nullptr, std::memory_order_release);
    entry.region.reset();
  }
}

void RegisteredMemory::fence() {
  const std::lock_guard lock(mutex_);
  fenced_ = true;
  for (Entry& entry : entries_)
    entry.region.reset();
}

Result<void> RegisteredMemory::restore() {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    ProtectionDomain* const domain = entry.domain.load(std::memory_order_relaxed);
    if (domain == nullptr || entry.region != nullptr) continue;
    auto region = domain->register_memory(memory_, access_);
    if (!region) {
      for (Entry& other : entries_)
        other.region.reset();
      return failure(std::move(region.error()));
    }
    entry.region = std::move(*region);
  }
  fenced_ = false;
  return {};
}

}  // namespace rbt::transport
