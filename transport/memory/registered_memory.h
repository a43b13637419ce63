#pragma once
// One piece of memory and its registration in every protection domain that has asked for it.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "common/result.h"
#include "transport/memory_region.h"

namespace rbt::transport {

/// Registers lazily, once per domain, for good, unless fence() says otherwise. Does not own the memory. Thread-safe.
class RegisteredMemory {
 public:
  /// More devices than this on one machine are refused with a clear error.
  static constexpr std::size_t kDomainsMax = 16;

  struct Keys {
    std::uint32_t lkey = 0;
    std::uint32_t rkey = 0;
  };

  RegisteredMemory(const MemorySpan& memory, RemoteAccess access) noexcept : memory_(memory), access_(access) {}

  /// Makes sure that `domain` can reach the memory (while fenced: from restore() on). Slow path: when a connection comes.
  [[nodiscard]] Result<void> ensure(ProtectionDomain& domain);
  /// The region in `domain`; null if ensure() has not succeeded for it. Data path: a short scan, no lock. Not for memory
  /// that is ever fenced: keys().
  [[nodiscard]] const MemoryRegion* in(const ProtectionDomain& domain) const noexcept;
  /// The keys in `domain`; nothing if it is not registered there. May run beside fence() and restore(): whoever is late
  /// gets keys that are of no use any more, which costs the connection that uses them. Data path.
  [[nodiscard]] std::optional<Keys> keys(const ProtectionDomain& domain) const noexcept;
  /// Forgets `domain` (its device went away); its region is deregistered.
  void drop(const ProtectionDomain& domain);
  /// Deregisters from every domain, but remembers them: no keys until restore(). For memory whose pages are about to
  /// change (transport/coherence/region.h).
  void fence();
  /// Registers with every domain that ensure() was called for, with new keys. All or nothing: fenced again on error.
  [[nodiscard]] Result<void> restore();
  [[nodiscard]] const MemorySpan& memory() const noexcept { return memory_; }

 private:
  struct Entry {
    std::atomic<ProtectionDomain*> domain{nullptr};  // released after `region` is set; acquired by in()
    std::atomic<std::uint64_t> keys{0};              // lkey << 32 | rkey of `region`; 0: fenced
    std::unique_ptr<MemoryRegion> region;            // null: fenced
  };
  [[nodiscard]] Result<void> register_in(Entry& entry, ProtectionDomain& domain);
  static void deregister(Entry& entry) noexcept;
  [[nodiscard]] bool knows(const ProtectionDomain& domain) const noexcept;
  MemorySpan memory_;
  RemoteAccess access_;
  std::mutex mutex_;     // guards changes of entries_, and:
  bool fenced_ = false;  // ensure() only remembers the domain
  std::array<Entry, kDomainsMax> entries_;
};

}  // namespace rbt::transport
