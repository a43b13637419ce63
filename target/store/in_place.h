#pragma once
// Blocks that are read and written where they lie, each of them whole at every moment: what ram and map share.
//
// Commands on overlapping ranges are serialised (range_lock.h). A block that packets could leave half new, because the
// connection's path MTU is smaller, or that a copying CPU could, because the memory outlives the process and has no landing
// (transport/memory_region.h), is written by way of a buffer: nothing is in its place before all of it is there.

#include <cstdint>
#include <span>

#include "target/store/hand_over.h"
#include "target/store/range_lock.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// What a store's queue says about its memory. On the reactor's thread.
class InPlaceMemory {
 public:
  virtual ~InPlaceMemory() = default;
  /// Where byte `offset` of the store lies; all of it in one piece.
  [[nodiscard]] virtual std::byte* at(std::uint64_t offset) noexcept = 0;
  /// The key of that memory for the lease's domain.
  [[nodiscard]] virtual std::uint32_t lkey(const Lease& lease) noexcept = 0;
  /// Whether it goes by way of a buffer: as a rule, if it writes and tears() (atomicity.h).
  [[nodiscard]] virtual bool stages(const Lease& lease) noexcept = 0;
  /// For reads that do: fills `data` with what is at `offset`; nobody writes there meanwhile.
  virtual StoreStatus fetch(std::uint64_t offset, std::span<std::byte> data);
  /// Puts whole blocks into their place at `offset`; nobody else touches the range meanwhile. Must not leave a block half
  /// new whoever is killed in the middle: for a file, pwrite(2), which the kernel does not leave in the middle of a page.
  virtual StoreStatus land(std::uint64_t offset, std::span<const std::byte> data) = 0;
  /// New data is in place: what remains of StoreQueue::commit(), which this is the end of.
  virtual Progress landed(Lease& lease, Durability durability, StoreRequest& request) = 0;
  /// InPlace::claim() said no, and now it would say yes.
  virtual void on_claimed() = 0;
};

/// One queue's share. Belongs to its reactor's thread; destroy it when nothing is pending.
class InPlace final : private HandOver::Receiver, private transport::BufferWaiter {
 public:
  InPlace(InPlaceMemory& memory, RangeLock& lock, BlockShift block_shift, const StoreQueueContext& context) noexcept
      : memory_(memory),
        lock_(lock),
        block_shift_(block_shift),
        buffers_(context.buffers),
        hand_over_(context.reactor, *this) {}

  // As StoreQueue's.
  Progress acquire(Lease& lease, StoreRequest& request);
  Progress commit(Lease& lease, Durability durability, StoreRequest& request);
  void release(Lease& lease) noexcept;
  [[nodiscard]] std::uint64_t bytes_copied() const noexcept { return bytes_copied_; }

  /// For writes by the queue itself (zeroes): true, if nobody else touches `range` until unclaim(). False: on_claimed()
  /// comes when asking again for the same range says yes. One claim at a time.
  [[nodiscard]] bool claim(BlockRange range);
  void unclaim() noexcept;

 private:
  /// A request that waits.
  struct Wait : RangeLock::Claim {
    enum class Step : std::uint8_t { range, buffer, fetch, commit };
    StoreRequest* request = nullptr;
    Lease* lease = nullptr;
    Step step = Step::range;
    Durability durability = Durability::cached;
  };
  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept { return lba.value() << block_shift_.value(); }
  [[nodiscard]] std::uint64_t length(const Lease& lease) const noexcept {
    return lease.range.count.value() << block_shift_.value();
  }
  Progress stage(Lease& lease, StoreRequest& request);
  void hold_buffer(Lease& lease, std::span<std::byte> buffer) const noexcept;
  void hold_range(Lease& lease) noexcept;
  Progress buffered(Lease& lease, StoreRequest& request);
  Progress fetch(Lease& lease);
  Progress land(Lease& lease, Durability durability, StoreRequest& request);
  Wait& wait_for(const RangeLock::Claim& claim, Wait::Step step, Lease& lease, StoreRequest& request) noexcept;
  void on_handed_over(HandOver::Record& record) override;
  void on_buffer_available() override;

  InPlaceMemory& memory_;
  RangeLock& lock_;
  BlockShift block_shift_;
  transport::BufferPool& buffers_;
  HandOver hand_over_;
  WaitingLine<Wait> waiting_for_buffer_;
  RangeLock::Claim own_;  // claim()'s
  enum class Own : std::uint8_t { none, waiting, held };
  Own own_state_ = Own::none;
  std::uint64_t bytes_copied_ = 0;
};

}  // namespace rbt::target
