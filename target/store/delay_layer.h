#pragma once
// Makes a store slow: every operation waits, then is passed on.

#include <array>
#include <memory>

#include "common/result.h"
#include "target/store/layer.h"

namespace rbt::target {

struct DelayOptions {
  /// Uniformly chosen for each operation; equal: always the same; zero: none.
  struct Range {
    Duration least{};
    Duration most{};
  };
  std::array<Range, kStoreOperations> of{};  ///< by StoreOperation
  std::uint64_t seed = 1;
};

/// On timers of the queue's reactor. Operations under way wait side by side, not behind each other. Allocates nothing
/// once as many have waited together as ever will.
[[nodiscard]] std::unique_ptr<Store> make_delay_layer(std::unique_ptr<Store> below, const DelayOptions& options);

}  // namespace rbt::target
