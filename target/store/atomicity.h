#pragma once
// How a store that serves from mapped memory keeps every logical block whole: never torn by a lost connection, a killed
// process or a concurrent command. See docs/stores.md.

#include <cstdint>

#include "common/units.h"

namespace rbt::target {

enum class Atomicity : std::uint8_t {
  automatic,  ///< the one of the others that keeps the promise without a copy at the first connection's path MTU
  in_place,   ///< data lands in the blocks; packets do so whole and in order, commands on the same blocks take turns
  shadow,     ///< data lands in free blocks, and a table says where the blocks lie
};

/// Whether a write of a connection of `path_mtu` (Lease::path_mtu) could leave a block half new if it went straight into
/// its place. `outlives_process`: the memory is a file's; a process that is killed while it copies (path MTU 0) leaves there
/// what it has done.
[[nodiscard]] constexpr bool tears(std::uint32_t path_mtu, BlockShift block_shift, bool outlives_process) noexcept {
  return path_mtu == 0 ? outlives_process : path_mtu < block_shift.block_size();
}

}  // namespace rbt::target
