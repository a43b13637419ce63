#pragma once
// Makes operations of a store fail, those that it is told to and no others.

#include <cstdint>
#include <memory>
#include <optional>

#include "target/store/layer.h"

namespace rbt::target {

struct ErrorOptions {
  /// Bit per StoreOperation. `write` fails before data is moved and leaves the blocks as they were; `commit` after.
  std::uint32_t operations = 0;
  /// Only those that touch it; a flush touches nothing.
  std::optional<BlockRange> range = {};
  /// Which of the operations that the two above let through: the n-th since the store was opened (from 1) alone, every
  /// n-th, or each by chance, once in 2^32 / chance. None set: all. At most one is set.
  std::uint64_t nth = 0;
  std::uint64_t every = 0;
  std::uint64_t chance = 0;  ///< out of 2^32
  std::uint64_t seed = 1;
  /// None: read_error for reads, write_error for all others.
  std::optional<StoreStatus> status = {};
};

/// What fails is not passed on. The same seed and the same order of operations fail the same ones.
[[nodiscard]] std::unique_ptr<Store> make_error_layer(std::unique_ptr<Store> below, const ErrorOptions& options);

}  // namespace rbt::target
