#pragma once
// How hosts' data gets into the pages of a map store where a CPU copies it (shm): by the kernel, once, straight out of the
// host's memory.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "target/store/store.h"
#include "transport/memory_region.h"

namespace rbt::target {

class MapStore;

/// A fabric ends the connection of whoever's data it cannot move; a medium that is full is no reason to. So what a write has
/// met is kept here until the queue that has lent the place asks for it. Thread-safe.
class MapLanding final : public transport::Landing {
 public:
  explicit MapLanding(MapStore& store) noexcept : store_(store) {}
  /// At places that are lent for writing. Blocks that lie across two pages of the host's are copied together first, the only
  /// ones that are copied twice.
  [[nodiscard]] std::size_t land(std::byte* at, std::span<const std::byte> data) noexcept override;
  /// How the writes into [offset, offset + length) ended since it was lent; forgets it. One load while nothing has failed.
  [[nodiscard]] StoreStatus take(std::uint64_t offset, std::uint64_t length) noexcept;

 private:
  struct Failed {
    std::uint64_t offset;
    StoreStatus status;
  };
  [[nodiscard]] bool put(std::uint64_t offset, std::span<const std::byte> data);
  [[nodiscard]] std::int64_t write(std::uint64_t offset, std::span<const std::byte> data) const noexcept;
  void fail(std::uint64_t offset, std::uint64_t length, int error);

  MapStore& store_;
  std::atomic<std::size_t> failures_{0};  // of failed_; who lands and who takes are one thread for one place
  std::mutex mutex_;                      // guards:
  std::vector<Failed> failed_;
};

}  // namespace rbt::target
