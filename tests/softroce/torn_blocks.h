#pragma once
// What the writer and the reader of torn_blocks have agreed on.

#include <cstddef>
#include <cstdint>

#include "tests/sim/tags.h"

namespace rbt::test::torn {

inline constexpr std::size_t kBlock = 4096;
inline constexpr std::size_t kTransferBlocks = 64;  // 256 packets of 1024 bytes: to be cut off in the middle of them
inline constexpr std::size_t kTransfer = kTransferBlocks * kBlock;
/// Of one connection, at a time.
inline constexpr std::size_t kWrites = 24;
/// Connections that write to the same blocks.
inline constexpr std::size_t kSharers = 2;

[[nodiscard]] constexpr std::uint64_t first_block(std::size_t connection) {
  return connection / kSharers * kTransferBlocks;
}

/// What a block says from end to end: who wrote it, and where to.
struct Tag {
  std::uint64_t round = 0;
  std::uint64_t buffer = 0;  ///< one of its writer's
  std::uint64_t lba = 0;
  [[nodiscard]] constexpr std::uint64_t word() const { return round << 32 | buffer << 16 | lba; }
  [[nodiscard]] static constexpr Tag of(std::uint64_t word) { return {word >> 32, word >> 16 & 0xffff, word & 0xffff}; }
};

}  // namespace rbt::test::torn
