#pragma once
// The memory of one NBD connection: what one client holds cannot be in another's way, not even by lying where it lies.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "transport/memory/buffer_pool.h"

namespace rbt::initiator::nbd {

/// Pieces of 4 KiB to 2 MiB, powers of two, each aligned to its size within its block of a pool. One thread. Nothing is
/// allocated on the heap after construction.
class Arena {
 public:
  static constexpr std::size_t kPage = transport::BufferPool::kBlockMin;
  static constexpr std::size_t kBlock = transport::BufferPool::kBlockMax;

  /// As many of `blocks` as the pool has.
  Arena(transport::BufferPool& pool, std::size_t blocks);
  /// Everything has been freed.
  ~Arena();
  Arena(Arena&& other) noexcept = default;
  Arena& operator=(Arena&&) = delete;

  /// At least `size` bytes, 1 to kBlock; empty: no room.
  [[nodiscard]] std::span<std::byte> allocate(std::size_t size) noexcept;
  /// As allocate() returned it.
  void free(std::span<std::byte> piece) noexcept;
  [[nodiscard]] std::size_t blocks() const noexcept { return blocks_.size(); }

 private:
  static constexpr std::size_t kWords = kBlock / kPage / 64;
  using Word = std::uint64_t;  // a bit per page: taken
  struct Block {
    std::span<std::byte> memory;
    std::array<Word, kWords> taken{};
  };
  static constexpr std::size_t kNowhere = ~std::size_t{0};
  [[nodiscard]] static std::size_t find(const Block& block, std::size_t pages) noexcept;
  static void mark(Block& block, std::size_t page, std::size_t pages, bool taken) noexcept;

  transport::BufferPool* pool_;
  std::vector<Block> blocks_;
};

}  // namespace rbt::initiator::nbd
