#pragma once
// The file of map:…,atomic=shadow: a header that says what it is, a table of where each block lies, and the places. What
// it looks like, its invariants and what holds after a crash: docs/shadow_image.md.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "common/result.h"
#include "common/units.h"
#include "target/store/block_table.h"
#include "target/store/store.h"

namespace rbt::target {

/// What the header says: all of it, for good.
struct ShadowLayout {
  static constexpr std::uint64_t kHeaderSize = 4096;
  static constexpr std::uint64_t kEntrySize = 8;

  BlockShift block_shift;
  Blocks blocks;
  Blocks landing;  ///< places that are no block's at any time
  Identity identity{};

  /// For a disk of `blocks`, with as many landing blocks as suit it. Error: more than a table can hold.
  [[nodiscard]] static Result<ShadowLayout> plan(Blocks blocks, BlockShift block_shift, const Identity& identity);

  // Bytes.
  [[nodiscard]] std::uint64_t entry_offset(Lba lba) const noexcept { return kHeaderSize + lba.value() * kEntrySize; }
  [[nodiscard]] std::uint64_t data_offset() const noexcept {
    return (entry_offset(Lba(blocks.value())) + kHeaderSize - 1) / kHeaderSize * kHeaderSize;
  }
  [[nodiscard]] std::uint64_t place_offset(std::uint64_t place) const noexcept {
    return data_offset() + (place << block_shift.value());
  }
  /// Of the image.
  [[nodiscard]] std::uint64_t size() const noexcept { return place_offset(blocks.value() + landing.value()); }
};

using ShadowHeader = std::array<std::byte, ShadowLayout::kHeaderSize>;

[[nodiscard]] ShadowHeader encode_header(const ShadowLayout& layout) noexcept;
/// Whether the bytes say that they are the beginning of such an image, damaged or not.
[[nodiscard]] bool begins_like_shadow_image(std::span<const std::byte> beginning) noexcept;
/// `bytes` come from a file that may hold anything. Errors say what was seen and what is allowed.
[[nodiscard]] Result<ShadowLayout> parse_header(std::span<const std::byte> bytes);

/// An entry of the table as a number; its bytes in the file are little-endian. 0: the block lies at the place of its own
/// number.
[[nodiscard]] constexpr std::uint64_t encode_entry(Lba lba, const BlockTable::Entry& entry) noexcept {
  return (lba.value() ^ entry.place) | (entry.zeroes ? std::uint64_t{1} << 63 : 0);
}
/// Nothing: there is no such place.
[[nodiscard]] constexpr std::optional<BlockTable::Entry> decode_entry(Lba lba, std::uint64_t value,
                                                                      const ShadowLayout& layout) noexcept {
  const std::uint64_t place = (value & ~(std::uint64_t{1} << 63)) ^ lba.value();
  if (place >= layout.blocks.value() + layout.landing.value()) return std::nullopt;
  return BlockTable::Entry{static_cast<BlockTable::Place>(place), (value >> 63) != 0};
}

}  // namespace rbt::target
