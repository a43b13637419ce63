#pragma once
// One piece of memory and its registration in every protection domain that has asked for it.

#include <array>
#include <atomic>
#include <memory>
#include <mutex>

#include "common/result.h"
#include "transport/memory_region.h"

namespace rbt::transport {

/// Registers lazily, once per domain, for good. Does not own the memory. Thread-safe.
class RegisteredMemory {
 public:
  /// More devices than this on one machine are refused with a clear error.
  static constexpr std::size_t kDomainsMax = 16;

  RegisteredMemory(const MemorySpan& memory, RemoteAccess access) noexcept : memory_(memory), access_(access) {}

  /// Makes sure that `domain` can reach the memory. Slow path: when a connection comes.
  [[nodiscard]] Result<void> ensure(ProtectionDomain& domain);
  /// The region in `domain`; null if ensure() has not succeeded for it. Data path: a short scan, no lock.
  [[nodiscard]] const MemoryRegion* in(const ProtectionDomain& domain) const noexcept;
  /// Forgets `domain` (its device went away); its region is deregistered.
  void drop(const ProtectionDomain& domain);
  [[nodiscard]] const MemorySpan& memory() const noexcept { return memory_; }

 private:
  struct Entry {
    std::atomic<const ProtectionDomain*> domain{nullptr};  // released after `region` is set; acquired by in()
    std::unique_ptr<MemoryRegion> region;
  };
  MemorySpan memory_;
  RemoteAccess access_;
  std::mutex mutex_;  // guards changes of entries_
  std::array<Entry, kDomainsMax> entries_;
};

}  // namespace rbt::transport
