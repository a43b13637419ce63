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
#include "target/store/staged_queue.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// What a request is waiting for; one operation of the server's at a time.
struct NbdRequest : StagedRequest, NbdOperation {
  enum class Step : std::uint8_t {
    read,     ///< fills its buffer; woken by the link, as all that follow
    write,    ///< empties its buffer
    discard,  ///< forgets a range
    zero,     ///< has the server zero a range, or writes zeroes over it
    flush,    ///< waits for a flush that begins after it has come; a write or zero without FUA is that far, too
  };
  std::uint32_t losses_seen = 0;  ///< write, zero: NbdStore::losses() before it went out
  Step step = Step::read;
  Durability durability = Durability::cached;
};

/// Lives on its reactor's thread.
class NbdQueue final : public StagedQueue, private NbdClient, private transport::Source {
 public:
  [[nodiscard]] static Result<std::unique_ptr<NbdQueue>> open(NbdStore& store, const StoreQueueContext& context);
  ~NbdQueue() override;

  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;

 private:
  using Operations = RecordQueue<NbdOperation>;
  NbdQueue(NbdStore& store, const StoreQueueContext& context);
  [[nodiscard]] Result<void> connect();
  [[nodiscard]] Result<void> make_link();

  // StagedQueue
  [[nodiscard]] bool read_only() const noexcept override { return store_.read_only(); }
  [[nodiscard]] StagedRequest& make_read(StoreRequest& request) override;
  [[nodiscard]] Progress start(StagedRequest& request) override;
  void on_back(StagedRequest& request) override;

  // Source: what needs a turn of its own.
  std::size_t poll() override;
  [[nodiscard]] bool arm() override { return idle(); }
  [[nodiscard]] bool idle() const noexcept { return flush_next_.empty() || !flush_running_.empty(); }
  void want_turn();

  NbdRequest& make(StoreRequest& request, NbdRequest::Step step, NbdOperation::Kind kind) noexcept;
  void promise(NbdRequest& request, Durability durability) const noexcept;
  void submit(NbdRequest& request);
  void submit_elsewhere(NbdRequest& request);
  void on_nbd_done(NbdOperation& operation) override;
  void finish(NbdRequest& request);
  void on_written(NbdRequest& request);
  void on_failed(NbdRequest& request);
  void on_flushed();
  void make_durable(NbdRequest& request);
  void end_flushed(NbdRequest& request, StoreStatus status);
  void report(const NbdRequest& request, int error);

  NbdStore& store_;
  NbdStore::Shared* shared_ = nullptr;  // null: the link is this queue's alone
  std::unique_ptr<NbdLink> link_;       // null: another queue has made it
  RateLimit log_limit_;
  Operations flush_next_;     // the next flush is for these
  Operations flush_running_;  // the flush under way is for these
  NbdRequest flush_;          // that flush
  std::uint64_t flush_covers_ = 0;
  bool listed_ = false;  // a source of the reactor
};

}  // namespace rbt::target
