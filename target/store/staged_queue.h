#pragma once
// What the queues of all stores have in common whose data goes through the pool's buffers: whoever waits for a buffer, and
// blocks that are whole.
//
// Nothing below promises that a read beside a write of the same block returns the old block or the new one: not a page
// cache (ext4 and xfs copy a page while another copies into it), not a disk whose other end is somebody's page cache, not
// an NBD server, not a plugin. So overlapping ranges take turns here (range_lock.h), whichever reactor they are on: reads
// share theirs while they fill their buffers, whatever changes blocks has them alone until it is done.
//
// The order is: a buffer first, then the range. Who has a range waits for the medium and for nobody else, so that it comes
// free; the other way round a read that had its range would wait for a buffer, and writes that had the buffers for its range.

#include <cstddef>
#include <cstdint>
#include <span>

#include "target/store/hand_over.h"
#include "target/store/range_lock.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// A request that a staged queue has not answered, as far as all of them are alike. Derived queues' records begin with it.
struct StagedRequest : RangeLock::Claim {
  enum class Wait : std::uint8_t {
    none,    ///< for what the derived queue has begun
    buffer,  ///< for a buffer; the pool wakes it
    range,   ///< for others to be done with its blocks; they wake it
  };
  StoreRequest* request = nullptr;
  Lease* lease = nullptr;  ///< of acquire() and commit()
  BlockRange left;         ///< what is still to be done of the range in work, behind Claim::range
  const BlockRange* ranges = nullptr;
  std::uint32_t ranges_left = 0;  ///< of `ranges`, not begun
  Wait wait = Wait::none;
  StoreStatus status = StoreStatus::ok;  ///< when it has ended
  bool has_range = false;
  bool returned = false;  ///< the call that began it: until then nobody may be told
  bool ended = false;
};

/// Belongs to its reactor's thread; destroy it when nothing is pending.
class StagedQueue : public StoreQueue, private HandOver::Receiver, private transport::BufferWaiter {
 public:
  /// Geometry::atomic_write: whoever has a range has all of it, whatever the medium does. As much as stores in memory say.
  static constexpr Bytes kAtomicWrite = Bytes(512 * kKiB);
  ~StagedQueue() override;
  StagedQueue(const StagedQueue&) = delete;
  StagedQueue& operator=(const StagedQueue&) = delete;

  Progress acquire(Lease& lease, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;

 protected:
  /// `lock`: the store's, for all its queues.
  StagedQueue(RangeLock& lock, BlockShift block_shift, const StoreQueueContext& context) noexcept
      : lock_(lock),
        block_shift_(block_shift),
        reactor_(context.reactor),
        buffers_(context.buffers),
        hand_over_(context.reactor, *this) {}

  // ---- what a derived queue does

  /// Writes are refused.
  [[nodiscard]] virtual bool read_only() const noexcept = 0;
  /// A record for the read of a lease, that stands for `request`.
  [[nodiscard]] virtual StagedRequest& make_read(StoreRequest& request) = 0;
  /// `request` has the blocks of Claim::range (at most RangeLock::kBlocksMax, or none if it was begun without): what it is
  /// about happens there now. Later: done() says so.
  [[nodiscard]] virtual Progress start(StagedRequest& request) = 0;
  /// A record that the derived queue has handed over is back on this thread.
  virtual void on_back([[maybe_unused]] StagedRequest& request) {}
  /// The record is not used any more.
  virtual void forget([[maybe_unused]] StagedRequest& request) noexcept {}

  // ---- what it does it with

  /// Makes a fresh `record` stand for `request`. One of the begin() follows, and what it says is returned.
  void adopt(StagedRequest& record, StoreRequest& request) noexcept;
  /// Read or write all of `range`, one start() after the other for pieces of it.
  Progress begin(StagedRequest& request, BlockRange range, Intent intent);
  /// Change `ranges`, which stay valid until it has ended.
  Progress begin(StagedRequest& request, std::span<const BlockRange> ranges);
  /// Something that touches no blocks.
  Progress begin(StagedRequest& request);
  /// What a call has to say that has begun `request`, but not with begin().
  Progress returned(StagedRequest& request) noexcept;
  /// What start() began has ended so; `request` goes on, or is answered and does not exist any more.
  void done(StagedRequest& request, StoreStatus status);
  /// The piece in work is not the last one.
  [[nodiscard]] static bool has_more(const StagedRequest& request) noexcept;

  [[nodiscard]] transport::Reactor& reactor() const noexcept { return reactor_; }
  [[nodiscard]] HandOver& hand_over() noexcept { return hand_over_; }
  [[nodiscard]] BlockShift block_shift() const noexcept { return block_shift_; }
  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept { return lba.value() << block_shift_.value(); }

 private:
  void go(StagedRequest& request);
  [[nodiscard]] bool next(StagedRequest& request, StoreStatus status);
  [[nodiscard]] bool claim_next(StagedRequest& request);
  void end(StagedRequest& request, StoreStatus status);
  void on_handed_over(HandOver::Record& record) override;
  void on_buffer_available() override;

  RangeLock& lock_;
  BlockShift block_shift_;
  transport::Reactor& reactor_;
  transport::BufferPool& buffers_;
  HandOver hand_over_;
  WaitingLine<StagedRequest> waiting_for_buffer_;
  std::size_t pending_ = 0;  // requests that have not been answered
};

}  // namespace rbt::target
