#pragma once
// Keys, regions and protection domains, checked the way an HCA checks them. lkeys and rkeys are different numbers here,
// so that confusing them is noticed.

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/random.h"
#include "transport/memory_region.h"

namespace rbt::transport::sim {

class World;
class Domain;

/// Every key of the simulated world. A key is never given twice until its 8-bit tag comes round by chance, as on mlx5.
/// Belongs to the thread that made it: registering and deregistering on another aborts. So a coherence monitor beside a
/// simulated fabric is turned by hand (MonitorOptions::Threads::manual), which is what keeps a run the same.
class KeyTable {
 public:
  struct Entry {
    std::uint32_t key = 0;  ///< 0: free
    const Domain* domain = nullptr;
    std::byte* data = nullptr;
    std::size_t size = 0;
    RemoteAccess access = RemoteAccess::none;
    bool invalidated = false;  ///< by the peer: the rkey is of no use any more, the lkey is
  };
  static constexpr std::uint32_t kLocalBit = 0x80000000;

  explicit KeyTable(Random random) noexcept : random_(random) {}
  /// The rkey; the lkey is the same with kLocalBit.
  [[nodiscard]] std::uint32_t add(const Domain& domain, std::byte* data, std::size_t size, RemoteAccess access);
  void remove(std::uint32_t rkey) noexcept;

  /// Where a peer's access lands, or null: unknown or foreign key, bounds, rights.
  [[nodiscard]] std::byte* remote(const Domain& domain, std::uint32_t rkey, std::uint64_t address, std::uint64_t length,
                                  RemoteAccess wanted) const noexcept;
  /// True if `segment` lies within the region of its lkey.
  [[nodiscard]] bool local(const Domain& domain, const Segment& segment) const noexcept;
  /// Send with invalidate: false for an unknown, foreign or already invalid key, or one that was never remote.
  [[nodiscard]] bool invalidate(const Domain& domain, std::uint32_t rkey) noexcept;

 private:
  [[nodiscard]] const Entry* find(const Domain& domain, std::uint32_t rkey) const noexcept;
  const std::thread::id owner_ = std::this_thread::get_id();
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
  Random random_;
};

/// One device's protection domain.
class Domain final : public ProtectionDomain {
 public:
  Domain(World& world, std::string machine, std::string name) noexcept
      : world_(world), machine_(std::move(machine)), name_(std::move(name)) {}
  [[nodiscard]] Result<std::unique_ptr<MemoryRegion>> register_memory(const MemorySpan& memory,
                                                                      RemoteAccess access) override;
  [[nodiscard]] std::string_view name() const noexcept override { return name_; }
  [[nodiscard]] std::size_t regions() const noexcept { return regions_; }
  void remove_device() noexcept { removed_ = true; }

 private:
  friend class Region;
  World& world_;
  std::string machine_;
  std::string name_;
  std::size_t regions_ = 0;
  bool removed_ = false;
};

}  // namespace rbt::transport::sim
