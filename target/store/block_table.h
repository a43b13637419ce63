#pragma once
// Where each block of a store lies: the table behind atomic=shadow. New data lands in a free place, one exchange of a table
// entry makes it the block, and the old place is free again when its last reader has left. A block is whole at any
// moment, whatever the size of packets; nobody waits for anybody on the same block.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "common/units.h"
#include "target/store/hand_over.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// Thread-safe: one for all queues of a store. At first each block lies at the place of its own number; behind those are
/// the spare ones. A block always has one place to itself, also while it is all zeroes and nobody looks there, so that as
/// many places as were spare at the beginning are on their way at any time. Memory: 8 bytes per block, which come with
/// use, and 8 per spare place.
class BlockTable {
 public:
  /// A place's number.
  using Place = std::uint32_t;
  /// Where a block lies that is all zeroes.
  static constexpr Place kZeroes = ~Place{0};
  /// Blocks and spare places together.
  static constexpr std::uint64_t kPlacesMax = std::uint64_t{1} << 31;

  BlockTable(Blocks blocks, Blocks spare);
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  [[nodiscard]] std::uint64_t blocks() const noexcept { return blocks_; }
  [[nodiscard]] std::uint64_t spare() const noexcept { return spare_; }

  /// For a table that was kept somewhere, before anybody else has it: the block lies at `place`, of those that there are.
  void restore(Lba lba, Place place, bool zeroes) noexcept;
  /// ... and that was all: places that are no block's are free. If two blocks lie at one place, the second of them, and
  /// the table is of no use.
  [[nodiscard]] std::optional<Lba> restored();

  /// Where the block lies now, or kZeroes. What is there stays as it is until unpin(). Lock-free.
  [[nodiscard]] Place pin(Lba lba) noexcept;
  /// Without pinning it: the block's own place, and whether nobody looks there because it is all zeroes.
  struct Entry {
    Place place;
    bool zeroes;
  };
  [[nodiscard]] Entry look(Lba lba) const noexcept;
  /// The first block in [first, end) that does not lie at the place of its own number, or is all zeroes; else `end`.
  [[nodiscard]] Lba first_moved(Lba first, Lba end) const noexcept;

  /// Places that have become free are collected here, and given to the table together.
  class Freed {
   public:
    explicit Freed(BlockTable& table) noexcept : table_(table) {}
    ~Freed() { give(); }
    Freed(const Freed&) = delete;
    Freed& operator=(const Freed&) = delete;
    void add(Place place) noexcept {
      if (count_ == places_.size()) give();
      places_[count_++] = place;
    }

   private:
    void give() noexcept;
    BlockTable& table_;
    std::size_t count_ = 0;
    std::array<Place, 64> places_;
  };
  /// kZeroes is fine.
  void unpin(Place place, Freed& freed) noexcept;
  /// The block lies at `place`, which was taken, from now on.
  void commit(Lba lba, Place place, Freed& freed) noexcept;
  /// The block is all zeroes from now on; whoever has pinned its place keeps what he reads.
  void zero(Lba lba) noexcept;

  /// Who waits for free places; lies in the request.
  struct Wait : HandOver::Record {
    Wait* next = nullptr;
    HandOver* hand_over = nullptr;
    std::uint32_t count = 0;
  };
  /// `places.size()` free ones, in the order in which they became free. False: not as many, or others have waited longer.
  [[nodiscard]] bool take(std::span<Place> places) noexcept;
  /// As take(), but where that fails `wait` stands in line for them (false; the caller expects that of `hand_over`). When it
  /// has been given, take_reserved() gets them.
  [[nodiscard]] bool take_or_wait(std::span<Place> places, Wait& wait, HandOver& hand_over) noexcept;
  void take_reserved(std::span<Place> places) noexcept;
  [[nodiscard]] std::uint64_t free() noexcept;
  /// How often somebody had to wait.
  [[nodiscard]] std::uint64_t waits() const noexcept { return waits_.load(std::memory_order_relaxed); }

 private:
  struct Release {
    void operator()(void* memory) const noexcept;
  };
  using Numbers = std::unique_ptr<std::uint32_t[], Release>;
  [[nodiscard]] static Numbers numbers(std::uint64_t count);
  [[nodiscard]] std::atomic_ref<std::uint32_t> entry(Lba lba) const noexcept {
    return std::atomic_ref(table_[lba.value()]);
  }
  [[nodiscard]] std::atomic_ref<std::uint32_t> users(Place place) const noexcept {
    return std::atomic_ref(users_[place]);
  }
  void touch(Lba lba) noexcept;
  void free_places(std::span<const Place> places) noexcept;
  void pop(std::span<Place> places) noexcept;

  static constexpr std::uint64_t kRegion = 65536;  // blocks; first_moved() skips regions where nothing has moved
  std::uint64_t blocks_;
  std::uint64_t spare_;
  // Per block: its place, exclusive-or its own number, so that fresh zeroes mean "at home"; bit 31: it is all zeroes.
  Numbers table_;
  Numbers users_;                               // per place: twice its readers, and 1 if it is no block any more
  std::unique_ptr<std::atomic<bool>[]> moved_;  // per region

  std::mutex mutex_;               // guards what follows
  std::unique_ptr<Place[]> ring_;  // free places, first in, first out: runs of neighbours stay together
  std::uint64_t ring_first_ = 0;
  std::uint64_t ring_count_ = 0;
  std::uint64_t reserved_ = 0;  // of these, for those who have been told
  RecordQueue<Wait> waiting_;
  std::atomic<std::uint64_t> waits_{0};
};

}  // namespace rbt::target
