#pragma once
// One piece of memory and its registration in every protection domain that has asked for it.

#include <array>
#include <atomic>
#include <memory>
#include <mutex>

#include "common/result.h"
#include "transport/memory_region.h"

namespace rbt::transport {

/// Registers lazily, once per domain, for good, unless fence() says otherwise. Does not own the memory. Thread-safe.
class RegisteredMemory {
 public:
  /// More devices than this on one machine are refused with a clear error.
  static constexpr std::size_t kDomainsMax = 16;

  RegisteredMemory(const MemorySpan& memory, RemoteAccess access) noexcept : memory_(memory), access_(access) {}

  /// Makes sure that `domain` can reach the memory (while fenced: from restore() on). Slow path: when a connection comes.
  [[nodiscard]] Result<void> ensure(ProtectionDomain& domain);
  /// The region in `domain`; null if ensure() has not succeeded for it. Data path: a short scan, no lock.
  [[nodiscard]] const MemoryRegion* in(const ProtectionDomain& domain) const noexcept;
  /// Forgets `domain` (its device went away); its region is deregistered.
  void drop(const ProtectionDomain& domain);
  /// Deregisters from every domain, but remembers them: in() says null until restore(). For memory whose pages are about
  /// to change (transport/coherence/region.h). The caller sees to it that nobody uses what in() gave.
  void fence();
  /// Registers with every domain that ensure() was called for, with new keys. All or nothing: fenced again on error.
  [[nodiscard]] Result<void> restore();
  [[nodiscard]] const MemorySpan& memory() const noexcept { return memory_; }

 private:
  struct Entry {
    std::atomic<ProtectionDomain*> domain{nullptr};  // released after `region` is set; acquired by in()
    std::unique_ptr<MemoryRegion> region;            // null: fenced
  };
  [[nodiscard]] bool knows(const ProtectionDomain& domain) const noexcept;
  MemorySpan memory_;
  RemoteAccess access_;
  std::mutex mutex_;     // guards changes of entries_, and:
  bool fenced_ = false;  // ensure() only remembers the domain
  std::array<Entry, kDomainsMax> entries_;
};

}  // namespace rbt::transport
