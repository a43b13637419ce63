#pragma once
// One reactor's way to an NBD store.

#include <cstdint>
#include <memory>
#include <span>

#include "common/log.h"
#include "common/result.h"
#include "target/store/nbd_link.h"
#include "target/store/nbd_operation.h"
#include "target/store/nbd_store.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// What a request is waiting for; one operation of the server's at a time.
struct NbdRequest : NbdOperation {
  enum class Step : std::uint8_t {
    buffer,   ///< wants a buffer; the pool wakes it
    ready,    ///< done well; poll() says so
    read,     ///< fills its buffer; woken by the link, as all that follow
    write,    ///< empties its buffer
    discard,  ///< forgets one range after the other
    zero,     ///< has the server zero a range, or writes zeroes over it
    flush,    ///< waits for a flush that begins after it has come; a write or zero without FUA is that far, too
  };
  StoreRequest* request = nullptr;
  union {
    Lease* lease = nullptr;    ///< buffer, read, write
    const BlockRange* ranges;  ///< discard: the one under way, and those behind it
  };
  union {
    std::uint32_t ranges_left = 0;  ///< discard
    std::uint32_t losses_seen;      ///< write, zero: NbdStore::losses() before it went out
  };
  Step step = Step::ready;
  Durability durability = Durability::cached;
};

/// Lives on its reactor's thread.
class NbdQueue final : public StoreQueue,
                       private NbdClient,
                       private transport::Source,
                       private transport::BufferWaiter {
 public:
  [[nodiscard]] static Result<std::unique_ptr<NbdQueue>> open(NbdStore& store, const StoreQueueContext& context);
  ~NbdQueue() override;

  Progress acquire(Lease& lease, StoreRequest& request) override;
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;

 private:
  using Operations = RecordQueue<NbdOperation>;
  NbdQueue(NbdStore& store, const StoreQueueContext& context);
  [[nodiscard]] Result<void> start();
  [[nodiscard]] Result<void> make_link();

  // Source.
  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  [[nodiscard]] bool idle() const noexcept;
  void want_turn();

  void on_buffer_available() override;
  void begin_read(NbdRequest& request);
  void cover(NbdRequest& request, BlockRange range) const noexcept;

  void begin(NbdOperation& operation);
  void hand_over(NbdOperation& operation);
  void on_nbd_done(NbdOperation& operation) override;
  void finish(NbdOperation& operation);
  void on_written(NbdRequest& request);
  void on_failed(NbdRequest& request);
  void on_flushed();
  void end_flushed(NbdRequest& request, StoreStatus status);
  void begin_write(NbdRequest& request, NbdRequest::Step step);
  bool next_discard(NbdRequest& request);
  void make_durable(NbdRequest& request);
  void end(NbdRequest& request, StoreStatus status);
  void report(const NbdRequest& request, int error);

  NbdStore& store_;
  transport::Reactor& reactor_;
  transport::BufferPool& buffers_;
  NbdStore::Shared* shared_ = nullptr;  // null: the link is this queue's alone
  NbdInbox inbox_;                      // what links of other reactors have done
  std::unique_ptr<NbdLink> link_;       // null: another queue has made it
  RateLimit log_limit_;
  Operations waiting_for_buffer_;
  Operations ready_;
  Operations flush_next_;     // the next flush is for these
  Operations flush_running_;  // the flush under way is for these
  NbdOperation flush_;        // that flush
  std::uint64_t flush_covers_ = 0;
  bool listed_ = false;      // a source of the reactor
  std::size_t away_ = 0;     // operations that another reactor has
  std::size_t pending_ = 0;  // requests that have not been answered
};

}  // namespace rbt::target
