#pragma once
// Memory that the stores of one process share, so that thousands of small ones need neither a descriptor nor a mapping each.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "common/result.h"
#include "common/units.h"
#include "transport/memory/shared_memory.h"
#include "transport/memory_region.h"

namespace rbt::target {

class SharedArena;
struct NullMemory;  // null_store.h

/// The memory of one store: zeroes at first. A memfd of its own, or a part of one that others have parts of, too; never
/// shown to a peer, which would see all of the file.
class StoreMemory {
 public:
  /// `arena` may be null. What is larger than SharedArena::kPartMax, or gets huge pages, has a memfd of its own in any case.
  /// Errors: SharedMemory::create()'s.
  [[nodiscard]] static Result<StoreMemory> create(Bytes size, const transport::SharedMemory::Options& options,
                                                  SharedArena* arena);
  StoreMemory(StoreMemory&& other) noexcept;
  StoreMemory& operator=(StoreMemory&&) = delete;
  ~StoreMemory();

  [[nodiscard]] const transport::MemorySpan& span() const noexcept { return span_; }
  [[nodiscard]] std::byte* data() const noexcept { return span_.data; }

 private:
  friend class SharedArena;
  StoreMemory() noexcept = default;
  transport::SharedMemory own_;
  SharedArena* arena_ = nullptr;  // null: it is own_
  transport::MemorySpan span_;
};

/// What lies behind StoreMemory::create(): memfds of kChunk, sparse, cut into parts of whole pages. Thread-safe; slow path.
/// Outlives the stores.
class SharedArena {
 public:
  static constexpr std::uint64_t kChunk = 256 * kMiB;
  static constexpr std::uint64_t kPartMax = 16 * kMiB;

  SharedArena() = default;
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;
  ~SharedArena();

  /// What all `null` stores of the process lend to everybody; there as long as somebody has it.
  [[nodiscard]] Result<std::shared_ptr<NullMemory>> null_memory();

 private:
  friend class StoreMemory;
  struct Chunk {
    transport::SharedMemory memory;
    std::map<std::uint64_t, std::uint64_t> free;  // offset to length; neighbours are one
  };
  [[nodiscard]] Result<StoreMemory> take(std::uint64_t size);
  void give(const transport::MemorySpan& part) noexcept;
  [[nodiscard]] StoreMemory part_of(Chunk& chunk, std::map<std::uint64_t, std::uint64_t>::iterator hole,
                                    std::uint64_t size);

  std::mutex mutex_;                            // guards what follows
  std::vector<std::unique_ptr<Chunk>> chunks_;  // those with parts in use
  std::weak_ptr<NullMemory> null_memory_;
};

}  // namespace rbt::target
