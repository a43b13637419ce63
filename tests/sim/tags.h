#pragma once
// Blocks that describe themselves: the same eight bytes from end to end.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace rbt::test {

inline void put_tag(std::span<std::byte> block, std::uint64_t tag) {
  for (std::size_t at = 0; at < block.size(); at += sizeof tag)
    std::memcpy(block.data() + at, &tag, sizeof tag);
}

/// The tag of a block; nothing if it is torn.
inline std::optional<std::uint64_t> tag_of(std::span<const std::byte> block) {
  std::uint64_t tag = 0;
  std::memcpy(&tag, block.data(), sizeof tag);
  for (std::size_t at = 0; at < block.size(); at += sizeof tag)
    if (std::memcmp(block.data() + at, &tag, sizeof tag) != 0) return std::nullopt;
  return tag;
}

}  // namespace rbt::test
