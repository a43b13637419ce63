#pragma once
// Filling ranges of a store's own memory with zeroes, a slice per turn of the reactor: for stores that must not give pages
// back, because a page that is punched out under a registration leaves the adapter with memory that is no longer the store's.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/units.h"
#include "target/store/store.h"
#include "target/store/store_request.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

/// What is left of a discard (`ranges`, from the one in work on) or of a write_zeroes (`range`).
struct ZeroingRest {
  std::span<const BlockRange> ranges;
  BlockRange range;
  StoreQueue::Deallocate deallocate = StoreQueue::Deallocate::no;
  Durability durability = Durability::cached;
};

/// The memory that is zeroed, as its queue sees it. Called on the reactor's thread.
class ZeroedMemory {
 public:
  virtual ~ZeroedMemory() = default;
  /// From true on nobody else reads or writes the range (in bytes), until unclaim(). False: somebody does; then
  /// Zeroing::resume() is to be called when asking again for the same range would be answered with true.
  [[nodiscard]] virtual bool claim([[maybe_unused]] std::uint64_t offset, [[maybe_unused]] std::uint64_t length) {
    return true;
  }
  virtual void unclaim() noexcept {}
  /// Zeroes `length` bytes at `offset`, durably where that is possible at all. False: the memory cannot be used any more
  /// (its file is somebody else's for the moment); take_over() follows.
  [[nodiscard]] virtual bool zero(std::uint64_t offset, std::uint64_t length) = 0;
  /// The first byte in [offset, end) that might be something else than zero, else `end`: zeroing what was never touched
  /// would only allocate it.
  [[nodiscard]] virtual std::uint64_t next_data(std::uint64_t offset, std::uint64_t end) noexcept = 0;
  /// Does the rest by other means, after zero() said no.
  virtual Progress take_over(const ZeroingRest& rest, StoreRequest& request) = 0;
};

/// The requests of one queue. Belongs to its reactor's thread; destroy it when nothing is pending.
class Zeroing final : private transport::Source {
 public:
  /// A turn zeroes this much at the most: about 50 µs of memset, so that keep-alive and everybody else's commands go on
  /// beside a discard of the whole store.
  static constexpr std::uint64_t kSliceMax = 512 * kKiB;

  Zeroing(ZeroedMemory& memory, BlockShift block_shift, transport::Reactor& reactor) noexcept
      : memory_(memory), block_shift_(block_shift), reactor_(reactor) {}
  ~Zeroing() override;

  /// As StoreQueue's; the first slice at once if nobody else is being served, what is longer goes on turn by turn.
  /// A write_zeroes of at most kSliceMax happens under one claim: all at once for whoever looks.
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request);
  Progress write_zeroes(BlockRange range, StoreQueue::Deallocate deallocate, Durability durability,
                        StoreRequest& request);
  /// What ZeroedMemory::claim() had to wait for has come.
  void resume();

 private:
  struct Work {
    Work* next = nullptr;
    StoreRequest* request = nullptr;
    const BlockRange* ranges = nullptr;  // discard: the one in work first
    std::size_t ranges_left = 0;
    std::uint64_t offset = 0;  // of the range in work, in bytes
    std::uint64_t end = 0;
    StoreQueue::Deallocate deallocate = StoreQueue::Deallocate::no;
    Durability durability = Durability::cached;
  };
  enum class Slice : std::uint8_t { more, done, refused, waits };

  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept { return lba.value() << block_shift_.value(); }
  Progress begin(Work& work, StoreRequest& request);
  Progress give_up(const Work& work, StoreRequest& request);
  void load(Work& work) const noexcept;
  [[nodiscard]] Slice zero_some(Work& work, std::uint64_t& budget);
  void list();
  [[nodiscard]] Slice zero_slice(Work& work);
  std::size_t poll() override;
  [[nodiscard]] bool arm() override { return work_.empty(); }  // it is a source only while there is work

  ZeroedMemory& memory_;
  BlockShift block_shift_;
  transport::Reactor& reactor_;
  RecordQueue<Work> work_;
  bool listed_ = false;  // a source of the reactor
  bool parked_ = false;  // the first of `work_` waits for its claim; resume() comes
};

/// For ZeroedMemory::next_data(): what the file system says about `fd`.
[[nodiscard]] std::uint64_t next_data_in_file(int fd, std::uint64_t offset, std::uint64_t end) noexcept;

}  // namespace rbt::target
