#include "transport/memory/registered_memory.h"

#include <fmt/format.h>

namespace rbt::transport {

Result<void> RegisteredMemory::ensure(ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  if (in(domain) != nullptr) return {};
  for (Entry& entry : entries_) {
    if (entry.domain.load(std::memory_order_relaxed) != nullptr) continue;
    auto region = domain.register_memory(memory_, access_);
    if (!region) return failure(std::move(region.error()));
    entry.region = std::move(*region);
    entry.domain.store(&domain, std::memory_order_release);
    return {};
  }
  return failure(ErrorKind::resource,
                 fmt::format("registering memory with {}: it is registered with {} devices already, "
                             "the most that is supported",
                             domain.name(), kDomainsMax));
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

}  // namespace rbt::transport
