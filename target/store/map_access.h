#pragma once
// One reactor's way to the blocks of a map store by copying: what its buffers are filled from and emptied into.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "target/store/map_store.h"
#include "target/store/region_use.h"

namespace rbt::target {

/// At memory's speed, on the reactor's thread: the kernel copies, so that blocks stay whole (mapping.h). Nobody else may touch the range meanwhile. What is written lasts as far as
/// the medium can make it last, files on fs-dax apart that somebody else has open: those until flush.
class MapAccess {
 public:
  /// Both outlive it.
  MapAccess(MapStore& store, RegionUse& use) noexcept : store_(store), use_(use) {}
  [[nodiscard]] StoreStatus read(std::uint64_t offset, std::span<std::byte> data);
  [[nodiscard]] StoreStatus write(std::uint64_t offset, std::span<const std::byte> data);
  [[nodiscard]] StoreStatus zero(std::uint64_t offset, std::uint64_t length);
  /// Whether write() has gone through the descriptor of a file on fs-dax since this was asked last.
  [[nodiscard]] bool take_unsynced() noexcept { return std::exchange(unsynced_, false); }

 private:
  [[nodiscard]] bool mapped(std::uint64_t end) const noexcept;
  [[nodiscard]] StoreStatus ended(std::uint64_t end, std::uint64_t length, std::int64_t moved, Intent intent) const;

  MapStore& store_;
  RegionUse& use_;
  bool unsynced_ = false;
};

}  // namespace rbt::target
