#pragma once
// One range of a RegistrationCache: what is registered, with whom, and how it is registered again after a change.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "common/result.h"
#include "transport/coherence/region.h"
#include "transport/memory/mapping.h"
#include "transport/memory/registered_memory.h"

namespace rbt::transport {

class RegistrationCache;

/// One range of a cache. Shared by the cache and the views that have used it; the last one to let go ends it, on its own
/// thread. Thread-safe.
class CachedRegion final : coherence::Registration {
 public:
  enum class Kind : std::uint8_t {
    automatic,  ///< made by a use; whole pages; goes when there is need for room
    kept,       ///< the caller's explicit registration, exactly as given
  };
  CachedRegion(RegistrationCache& cache, const MemorySpan& memory, Kind kind);
  ~CachedRegion() override;

  [[nodiscard]] const std::byte* begin() const noexcept { return memory_.data; }
  [[nodiscard]] const std::byte* end() const noexcept { return memory_.data + memory_.size; }
  [[nodiscard]] bool holds(const std::byte* data, std::size_t size) const noexcept;
  [[nodiscard]] bool overlaps(const std::byte* from, const std::byte* to) const noexcept;
  [[nodiscard]] const MemorySpan& span() const noexcept { return memory_; }
  [[nodiscard]] Kind kind() const noexcept { return kind_; }
  /// Null: nobody watches it; it is registered from the beginning to the end.
  [[nodiscard]] coherence::Region* region() const noexcept { return region_.get(); }
  /// The keys in `domain`, registered if it was not yet; nothing if it cannot be, or is fenced.
  [[nodiscard]] std::optional<RegisteredMemory::Keys> keys(ProtectionDomain& domain);
  /// For the choice of what goes: used since somebody looked.
  void mark_used() noexcept {
    if (!used_.load(std::memory_order_relaxed)) used_.store(true, std::memory_order_relaxed);
  }

 private:
  friend class RegistrationCache;
  [[nodiscard]] Result<void> fence() override;
  [[nodiscard]] Result<void> restore() override;
  [[nodiscard]] Result<void> register_with(ProtectionDomain& domain);
  [[nodiscard]] Result<void> add_domain(ProtectionDomain& domain);
  [[nodiscard]] Result<MemorySpan> shareable(shm::Descriptor& holds) const;

  RegistrationCache& cache_;
  const MemorySpan memory_;
  const Kind kind_;
  std::atomic<bool> used_{true};
  std::atomic<bool> registering_{false};  // restore() got as far as that: what failed was not the watch
  std::uint32_t conflicts_ = 0;           // the cache's mutex
  bool restored_before_ = false;          // restore()
  std::mutex mutex_;  // guards what follows; never held by the monitor while others allocate under it
  std::vector<ProtectionDomain*> domains_;
  std::unique_ptr<RegisteredMemory> registered_;  // null: fenced
  std::unique_ptr<coherence::Region> region_;
};

}  // namespace rbt::transport
