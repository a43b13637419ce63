#pragma once
// Blocks that are never written where they lie: what ram and map (atomic=shadow) do with a BlockTable.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "target/store/block_table.h"
#include "target/store/hand_over.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// How much there is to land in: an eighth of the store, so that writes of many commands can be on their way at a time,
/// within bounds; no more than the store itself, whose longest command they always hold.
inline constexpr Bytes kLandingMin(4 * kMiB);
inline constexpr Bytes kLandingMax(64 * kMiB);
[[nodiscard]] constexpr Bytes landing_size(Bytes store) noexcept {
  return std::min(store, std::clamp(Bytes(store.value() / 8), kLandingMin, kLandingMax));
}

/// Arrays of segments for leases that have many, kept for use again: the heap is asked for a new peak only. One thread.
class SegmentArrays {
 public:
  /// At least `count`. `size_class` is for give().
  [[nodiscard]] transport::Segment* take(std::size_t count, unsigned& size_class);
  void give(transport::Segment* array, unsigned size_class) noexcept;

 private:
  static constexpr unsigned kClasses = 14;  // 1 << 13 segments
  struct Class {
    std::vector<std::unique_ptr<transport::Segment[]>> all;
    std::vector<transport::Segment*> free;
  };
  std::array<Class, kClasses> classes_;
};

/// What a store's queue says about its memory. On the reactor's thread.
class ShadowMemory {
 public:
  virtual ~ShadowMemory() = default;
  /// A piece of memory: places [first, first + count) one after the other.
  struct Piece {
    std::byte* data = nullptr;
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    std::uint32_t lkey = 0;  ///< for the lease's domain
  };
  /// The one that `place` lies in.
  [[nodiscard]] virtual Piece piece(BlockTable::Place place, const Lease& lease) noexcept = 0;
  /// Where kZeroes lies for reads: `first` is of no matter, `count` blocks of zeroes. Who never has such blocks has none.
  [[nodiscard]] virtual Piece zeroes(const Lease& lease) noexcept;
  /// The place that begins at `data`; kZeroes for all that lies in zeroes().
  [[nodiscard]] virtual BlockTable::Place place_of(const std::byte* data) noexcept = 0;
  /// The blocks from `first` on lie at `places`, which hold their new data, from now on: changes the table, and whatever
  /// has to know before it. If it fails, the places stay away: nobody can tell what refers to them.
  [[nodiscard]] virtual StoreStatus move(Lba first, std::span<const BlockTable::Place> places) = 0;
  /// Shadow::claim() said no, and now it would say yes.
  virtual void on_claimed() = 0;
};

/// One queue's share. Belongs to its reactor's thread; destroy it when nothing is pending.
class Shadow final : private HandOver::Receiver {
 public:
  /// The longest lease.
  static constexpr std::size_t kBlocksMax = transport::BufferPool::kBlockMax >> BlockShift::kMin;

  Shadow(ShadowMemory& memory, BlockTable& table, BlockShift block_shift, transport::Reactor& reactor)
      : memory_(memory),
        table_(table),
        block_shift_(block_shift),
        hand_over_(reactor, *this),
        places_(std::make_unique<BlockTable::Place[]>(kBlocksMax)) {}

  // As StoreQueue's.
  Progress acquire(Lease& lease, StoreRequest& request);
  [[nodiscard]] StoreStatus commit(Lease& lease);
  void release(Lease& lease) noexcept;

  // For zeroes: places for `count` blocks of the queue's own, which then become blocks.
  /// False: on_claimed() comes when asking again for as many says yes. One claim at a time.
  [[nodiscard]] bool claim(std::uint64_t count);
  /// Zeroes the claimed places and makes them the blocks of `range`, no longer than the claim.
  void zero(BlockRange range);
  void unclaim() noexcept;

 private:
  struct Wait : BlockTable::Wait {
    StoreRequest* request = nullptr;
    Lease* lease = nullptr;
  };
  void hold(Lease& lease, std::size_t count);
  std::size_t hold_zeroes(const Lease& lease, transport::Segment& segment, std::size_t i, std::size_t count);
  template <typename Each>
  void for_each_place(const Lease& lease, Each each) const;
  void on_handed_over(HandOver::Record& record) override;

  ShadowMemory& memory_;
  BlockTable& table_;
  BlockShift block_shift_;
  HandOver hand_over_;
  SegmentArrays arrays_;
  std::unique_ptr<BlockTable::Place[]> places_;  // of the lease that is being made
  std::vector<BlockTable::Place> own_;           // claim()'s
  std::size_t own_used_ = 0;
  BlockTable::Wait own_wait_;
  bool own_waits_ = false;
};

}  // namespace rbt::target
