#pragma once
// Blocks that say who they are: what --verify writes and looks for.

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "common/units.h"

namespace rbt::tools {

/// Fills one logical block: magic, LBA, generation and run, then bytes that follow from these, under a crc32c of all.
void stamp(std::span<std::byte> block, Lba lba, std::uint64_t generation, std::uint64_t run);

/// Nothing if `block` is what stamp() made of these; else what is wrong, in words.
[[nodiscard]] std::optional<std::string> mismatch(std::span<const std::byte> block, Lba lba, std::uint64_t generation,
                                                  std::uint64_t run);

}  // namespace rbt::tools
