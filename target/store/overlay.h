#pragma once
// Blocks that lie over a store and hide its own: what drop-unflushed keeps until it must be durable.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "common/result.h"
#include "common/units.h"
#include "transport/memory/shared_memory.h"
#include "transport/memory_region.h"

namespace rbt::target {

/// Thread-safe. Every function is short: it copies at most a transfer. Allocates nothing once as many blocks have been
/// held together as ever will.
class Overlay {
 public:
  /// Counts what has been put in: of two blocks, the one put in later has the higher version.
  using Version = std::uint64_t;
  using Segments = std::span<const transport::Segment>;

  /// A read that will look again: nothing of its range disappears between begin_read() and end_read(), so that what it
  /// gets from the store below meanwhile cannot be older than what it does not find here any more.
  struct Reading {
    BlockRange range;
    Reading* next = nullptr;
  };

  [[nodiscard]] static Result<std::unique_ptr<Overlay>> create(Bytes memory, BlockShift block_shift);

  /// Some block of the range is here.
  [[nodiscard]] bool covers(const BlockRange& range);
  /// False, and nothing begun: no block of the range is here.
  [[nodiscard]] bool begin_read(Reading& reading, const BlockRange& range);
  /// Copies what is here over `data`, which holds the range as the store below had it. Returns the bytes copied.
  std::uint64_t end_read(Reading& reading, Segments data);

  /// All of it or, without room, nothing (false). Empty `data`: zeroes.
  [[nodiscard]] bool put(const BlockRange& range, Segments data);

  /// The next run of blocks, of at most `most`, in [from, end) that the store below does not have yet.
  [[nodiscard]] std::optional<BlockRange> next_dirty(Lba from, Lba end, Blocks most);
  /// Copies a run to where the store below wants it. Nothing: it has been forgotten. Only one at a time may write out.
  [[nodiscard]] std::optional<Version> copy_out(const BlockRange& run, Segments to);
  /// The store below has `run` as it was at `version`: what has not changed since need not be here.
  void written(const BlockRange& run, Version version);
  /// The store below reads zeroes there since `version`.
  void zeroed(const BlockRange& range, Version version);
  [[nodiscard]] Version version();

  /// All of it is gone, for good: nothing can be put in any more.
  void forget() noexcept;
  [[nodiscard]] bool forgotten() noexcept;

 private:
  struct Block {
    std::byte* data = nullptr;
    Version version = 0;
    bool dirty = true;
  };
  using Blocks_ = std::map<std::uint64_t, Block>;  // by LBA

  Overlay(transport::SharedMemory memory, BlockShift block_shift);
  [[nodiscard]] std::size_t missing(const BlockRange& range) const;
  Block& place(std::uint64_t lba);
  [[nodiscard]] bool pinned(std::uint64_t lba) const noexcept;
  Blocks_::iterator erase(Blocks_::iterator block);

  transport::SharedMemory memory_;
  BlockShift shift_;
  std::mutex mutex_;  // guards everything below
  Blocks_ blocks_;
  std::vector<Blocks_::node_type> spare_;  // nodes for blocks to come, each with its memory
  Reading* readings_ = nullptr;
  Version version_ = 0;
  bool forgotten_ = false;
};

}  // namespace rbt::target
