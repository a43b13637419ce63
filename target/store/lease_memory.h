#pragma once
// For stores whose leases point into memory of their own.

#include "common/check.h"
#include "target/store/store.h"
#include "transport/memory/registered_memory.h"

namespace rbt::target {

/// The key of `memory` for this lease's domain.
inline std::uint32_t lease_key(const transport::RegisteredMemory& memory, const Lease& lease) noexcept {
  if (lease.domain == nullptr) return 0;
  const transport::MemoryRegion* const region = memory.in(*lease.domain);
  check(region != nullptr, "a store is prepared for a domain before its first lease there");
  return region->lkey();
}

}  // namespace rbt::target
