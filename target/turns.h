#pragma once
// Who changes which blocks of a namespace while a fused Compare and Write (NVM 1.0, 3.3) is between its two halves: nobody
// else those. Stores keep their blocks whole and know nothing of pairs.
//
// As long as a namespace sees no pair, writers go freely: a count of their reactor's is all there is. The first pair makes the
// lock and tells every reactor; each lets its writers in by turns from then on, and is ready when the last one that went
// freely has ended. When all are, pairs begin. It stays so, as a host that has used pairs does so again.
//
// Who waits for his turn holds a buffer of the side pool at the most (ReactorContext::side_buffers()), and asks the store for
// memory only when he has it: so there is no circle.

#include <atomic>
#include <cstddef>
#include <memory>

#include "common/units.h"
#include "target/store/range_lock.h"

namespace rbt::target {

/// One namespace's, for all reactors. Thread-safe.
class Turns {
 public:
  /// Every reactor takes turns: pairs may.
  [[nodiscard]] bool complete() const noexcept { return complete_.load(std::memory_order_acquire); }
  /// True: the caller is the first, and tells `reactors` of them.
  [[nodiscard]] bool begin(Blocks blocks, std::size_t reactors) {
    if (begun_.exchange(true, std::memory_order_relaxed)) return false;
    made_ = std::make_unique<RangeLock>(blocks);
    missing_.store(reactors, std::memory_order_relaxed);
    lock_.store(made_.get(), std::memory_order_release);
    return true;
  }
  /// One of these has no writer any more that goes freely, and lets none in. True: it was the last one.
  [[nodiscard]] bool join() noexcept {
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) != 1) return false;
    complete_.store(true, std::memory_order_release);
    return true;
  }
  /// Not null for those who were told, and for whoever begins to serve the namespace after that.
  [[nodiscard]] RangeLock* lock() const noexcept { return lock_.load(std::memory_order_acquire); }

 private:
  std::unique_ptr<RangeLock> made_;  // by who begins
  std::atomic<RangeLock*> lock_{nullptr};
  std::atomic<bool> begun_{false};
  std::atomic<std::size_t> missing_{0};  // reactors; each releases what its writers did, the last one acquires it
  std::atomic<bool> complete_{false};
};

}  // namespace rbt::target
