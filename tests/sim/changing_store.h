#pragma once
// A store of which a test decides how large it is and when it fails to open; it notes what it is asked for.

#include <cstdint>
#include <memory>
#include <optional>

#include "target/store/store.h"

namespace rbt::test {

/// The hand on a store. One thread. Outlives the store.
struct StoreHand {
  std::optional<std::uint64_t> blocks = {};       ///< instead of the inner store's; no more than it has
  std::optional<BlockShift> block_shift = {};     ///< instead of the inner store's
  std::optional<target::Identity> identity = {};  ///< instead of the inner store's
  bool write_cache = false;
  std::uint32_t opened = 0, prepared = 0;          ///< calls
  std::optional<std::uint32_t> fail_open_at = {};  ///< the n-th open_queue() fails, from 0 on
  std::optional<std::uint32_t> fail_prepare_at = {};
  std::uint32_t queues = 0;  ///< open now
  bool exists = true;
  target::Durability last_durability = target::Durability::cached;
  target::StoreObserver* observer = nullptr;

  void resize(std::uint64_t to) {
    blocks = to;
    if (observer != nullptr) observer->on_geometry_changed();
  }
};

[[nodiscard]] std::unique_ptr<target::Store> make_changing_store(std::unique_ptr<target::Store> inner, StoreHand& hand);

}  // namespace rbt::test
