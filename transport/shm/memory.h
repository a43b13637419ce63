#pragma once
// Our own registered memory: keys, and who has been told of them.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "common/random.h"
#include "common/units.h"
#include "transport/memory_region.h"
#include "transport/shm/descriptor.h"
#include "transport/shm/key_table.h"
#include "transport/shm/link.h"

namespace rbt::transport::shm {

/// Regions that may be announced to one connection. A protocol constant: a peer that announces more is cut off.
inline constexpr std::size_t kRegionsMax = 1024;

/// A region as its own side's data path sees it.
struct LocalRegion {
  std::byte* data = nullptr;
  std::size_t size = 0;
  Landing* landing = nullptr;

  /// Whether [at, at + length) lies inside.
  [[nodiscard]] bool contains(const std::byte* at, std::size_t length) const noexcept {
    const auto offset = reinterpret_cast<std::uintptr_t>(at) - reinterpret_cast<std::uintptr_t>(data);
    return offset <= size && length <= size - offset;
  }
};
using LocalKeys = KeyTable<LocalRegion>;

/// The one protection domain of a shm fabric. Thread-safe.
class Domain final : public ProtectionDomain {
 public:
  /// `revoke_timeout`: how long a region's destructor waits for a peer that is in the middle of a copy.
  Domain(Random random, Duration revoke_timeout) : random_(random), revoke_timeout_(revoke_timeout) {}

  [[nodiscard]] Result<std::unique_ptr<MemoryRegion>> register_memory(const MemorySpan& memory,
                                                                      RemoteAccess access) override;
  [[nodiscard]] bool uses_landings() const noexcept override { return true; }
  [[nodiscard]] std::string_view name() const noexcept override { return "shm"; }

  /// Announces everything there is to `link`, and everything that comes, until detach().
  void attach(Link& link);
  void detach(Link& link);

  /// Data path: brings `keys`, a poll group's copy of the lkeys made at `version`, up to date. One load if it is.
  void refresh(LocalKeys& keys, std::uint64_t& version) {
    if (version_.load(std::memory_order_acquire) != version) copy_keys(keys, version);
  }
  /// True if `rkey` is one of ours that peers may use.
  [[nodiscard]] bool announced(std::uint32_t rkey);

 private:
  friend class Region;
  struct Announced {
    AnnounceMessage message;
    Descriptor descriptor;  // our own: connections that come later need it
  };
  void copy_keys(LocalKeys& keys, std::uint64_t& version);
  void deregister(std::uint32_t lkey, std::uint32_t rkey);
  std::uint32_t new_key();

  std::atomic<std::uint64_t> version_{1};  // counts changes of local_; released with mutex_ held
  std::mutex mutex_;                       // guards what follows
  Random random_;
  LocalKeys local_;
  KeyTable<std::shared_ptr<Announced>> remote_;
  std::vector<Link*> links_;
  const Duration revoke_timeout_;
};

}  // namespace rbt::transport::shm
