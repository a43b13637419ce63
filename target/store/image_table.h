#pragma once
// The table of a shadow image, in memory and in its file: changed together, the file's first.

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>

#include "common/result.h"
#include "target/store/block_table.h"
#include "target/store/shadow_image.h"
#include "target/store/store.h"

namespace rbt::target {

/// One queue's way to the table in the file. On its reactor's thread.
class TableMedium {
 public:
  virtual ~TableMedium() = default;
  /// The entries from `first` on are these from now on: each of them old or new at every moment, whoever dies, and as
  /// lasting when it returns as the medium can make it. Not before anything that was made lasting earlier.
  [[nodiscard]] virtual StoreStatus write_entries(Lba first, std::span<const std::uint64_t> entries) = 0;
};

/// Thread-safe. The order that a crash relies on is made here:
///   1. the caller has made the data in the new places last;
///   2. the entries in the file are exchanged, and last;
///   3. the entries in memory are exchanged, and with them the old places become free: not before, as the next data would
///      land there while the file still calls them blocks.
/// Blocks change one by one: of a longer write a crash may leave any of its blocks old.
class ImageTable {
 public:
  explicit ImageTable(const ShadowLayout& layout) : layout_(layout), table_(layout.blocks, layout.landing) {}

  /// Fills the bytes with what the image has at that offset.
  using Read = std::function<Result<void>(std::uint64_t offset, std::span<std::byte> bytes)>;
  /// Before anybody else has it. The file may say anything: errors name the first entry that cannot be.
  [[nodiscard]] Result<void> load(const Read& read);
  /// Whether the file still says what this table does. If somebody else has written there, it is broken().
  [[nodiscard]] Result<void> compare(const Read& read);

  [[nodiscard]] BlockTable& blocks() noexcept { return table_; }
  [[nodiscard]] const ShadowLayout& layout() const noexcept { return layout_; }
  /// The blocks from `first` on lie at `places`. On failure some do, and it is broken().
  [[nodiscard]] StoreStatus move(Lba first, std::span<const BlockTable::Place> places, TableMedium& medium);
  /// The blocks are all zeroes. On failure some are, and it is broken().
  [[nodiscard]] StoreStatus zero(BlockRange range, TableMedium& medium);
  /// File and memory do not agree any more, and nobody knows which is right: nothing may be read or written until it
  /// has been opened again.
  [[nodiscard]] bool broken() const noexcept { return broken_.load(std::memory_order_acquire); }

 private:
  static constexpr std::uint64_t kGroup = 512;  // entries that are written at a time: 4 KiB, a page of the table
  using Entries = std::array<std::uint64_t, kGroup>;
  template <typename Change, typename Entry>
  StoreStatus change(BlockRange range, TableMedium& medium, Entry entry, Change apply);
  [[nodiscard]] std::mutex& lock_of(Lba lba) noexcept { return locks_[lba.value() / kGroup % locks_.size()]; }

  const ShadowLayout layout_;
  BlockTable table_;
  std::atomic<bool> broken_{false};   // released by who sees it
  std::array<std::mutex, 64> locks_;  // per group: who exchanges its entries, in the file and in memory
};

}  // namespace rbt::target
