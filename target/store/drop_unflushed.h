#pragma once
// A write cache that is honest about itself: what was not made durable is in memory only, and dies with the process.

#include <memory>
#include <mutex>
#include <vector>

#include "common/result.h"
#include "target/store/layer.h"
#include "target/store/overlay.h"

namespace rbt::target {

class DropQueue;
struct DropWork;

struct DropUnflushedOptions {
  Bytes memory = Bytes(64 * kMiB);  ///< for blocks that are not durable; at least kMemoryMin
  static constexpr std::uint64_t kMemoryMin = 4 * kMiB;
};

/// Writes, and Write Zeroes of up to 2 MiB, stay in memory until a flush, or FUA for their own blocks, writes them to the
/// store below; a full memory is written down early. Discards and longer zeroing go down at once: a cache may keep more
/// than it has promised. Where nothing is in memory, reads are the store's own leases; else they are copied. Kill the
/// process, and what is lost is what a power failure may take. A layer for tests: data is copied, under a lock.
/// Thread-safe.
class DropUnflushed final : public LayerStore {
 public:
  [[nodiscard]] static Result<std::unique_ptr<DropUnflushed>> create(std::unique_ptr<Store> below,
                                                                     const DropUnflushedOptions& options);

  [[nodiscard]] Geometry geometry() const override;
  /// What it forgets is lost with the process, whatever the store below keeps.
  [[nodiscard]] Endurance endurance() const override { return {}; }
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override;
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

  /// What kill -9 would do, without dying: everything in memory is forgotten, what is being written down stops where it
  /// is, and every operation from now on says `unavailable`.
  void crash() noexcept { overlay_->forget(); }

 private:
  friend class DropQueue;
  /// Who may write down: one at a time, of all reactors.
  class Turns {
   public:
    [[nodiscard]] bool ask(DropWork& work);  ///< true: it is `work`'s turn now
    [[nodiscard]] DropWork* pass();          ///< the next one, whose turn it is from now on

   private:
    std::mutex mutex_;  // guards both
    std::vector<DropWork*> waiting_;
    bool taken_ = false;
  };

  DropUnflushed(std::unique_ptr<Store> below, std::unique_ptr<Overlay> overlay)
      : LayerStore(std::move(below)), overlay_(std::move(overlay)) {}
  void forget(DropQueue& queue) noexcept;

  std::unique_ptr<Overlay> overlay_;
  Turns turns_;
  std::mutex mutex_;  // guards both
  std::vector<transport::ProtectionDomain*> domains_;
  std::vector<DropQueue*> queues_;
};

}  // namespace rbt::target
