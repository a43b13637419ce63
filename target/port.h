#pragma once
// A listener as its hosts see it: a path to every namespace, as good as its access state says.

#include <atomic>
#include <cstdint>

#include "common/nvme/access.h"

namespace rbt::target {

/// Every namespace is in one group, whose state depends on the listener.
inline constexpr std::uint32_t kAccessGroup = 1;

/// Thread-safe. Outlives the connections that came through it. A queue that still sees the old state acts as if its command
/// had come a moment earlier.
class Port {
 public:
  [[nodiscard]] nvme::AccessState access() const noexcept { return access_.load(std::memory_order_relaxed); }
  /// One thread at a time.
  void set_access(nvme::AccessState state) noexcept {
    access_.store(state, std::memory_order_relaxed);
    changes_.fetch_add(1, std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t changes() const noexcept { return changes_.load(std::memory_order_relaxed); }

 private:
  std::atomic<nvme::AccessState> access_{nvme::AccessState::optimized};
  std::atomic<std::uint64_t> changes_{0};
};

}  // namespace rbt::target
