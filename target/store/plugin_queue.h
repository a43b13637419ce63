#pragma once
// One reactor's way to a plugin.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "target/store/hand_over.h"
#include "target/store/plugin_store.h"
#include "target/store/relay.h"
#include "target/store/store.h"
#include "target/store/store_request.h"
#include "target/store/worker_threads.h"
#include "target/store/zero_pages.h"

namespace rbt::target {

struct PluginWork;

/// What the plugin gets: its address is the request's.
struct PluginCall {
  struct rbt_request request {};
  PluginWork* work = nullptr;
};

/// A request of ours, which takes one call of the plugin after the other.
struct PluginWork final : HandOver::Record, StoreRequest {
  explicit PluginWork(class PluginQueue& q) : queue(q) { call.work = this; }
  void on_store_done(StoreStatus status) override;  // of a zeroing in place: what remains is a flush

  enum class Next : std::uint8_t { read, write, piece, flush, nothing };
  PluginCall call;
  class PluginQueue& queue;
  PluginWork* next = nullptr;
  StoreRequest* outer = nullptr;
  Lease* lease = nullptr;
  std::span<const BlockRange> ranges;  ///< those not yet begun
  std::uint64_t offset = 0;            ///< of the range in work, bytes
  std::uint64_t end = 0;
  std::int32_t operation = 0;  ///< of a piece
  std::uint32_t flags = 0;
  int status = 0;  ///< written by whoever ends the call, before it is handed over
  Next coming = Next::nothing;
  bool flush_after = false;
  bool returned = false;
  std::optional<StoreStatus> ended;
};

/// Lives on its reactor's thread. Data goes through the pool's buffers.
class PluginQueue : public StoreQueue, private HandOver::Receiver, private transport::BufferWaiter {
 public:
  /// Takes over `queue` of the plugin.
  PluginQueue(PluginStore& store, void* queue, const StoreQueueContext& context);
  ~PluginQueue() override;
  [[nodiscard]] Result<void> start();

  Progress acquire(Lease& lease, StoreRequest& request) override;
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;

  void go_on(PluginWork& work, StoreStatus status);

 protected:
  using Next = PluginWork::Next;
  PluginWork& make(Next coming, StoreRequest& outer);
  Progress begin(PluginWork& work);
  Progress returned(PluginWork& work);
  [[nodiscard]] PluginStore& store() const noexcept { return store_; }
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept { return lba.value() << geometry_.block_shift.value(); }
  /// Whether FUA is a flush that follows.
  [[nodiscard]] bool needs_flush(Durability durability) const noexcept;

 private:
  void end(PluginWork& work, StoreStatus status);
  [[nodiscard]] bool next_call(PluginWork& work);
  [[nodiscard]] bool next_piece(PluginWork& work);
  [[nodiscard]] bool ask(PluginWork& work);
  void on_handed_over(HandOver::Record& record) override;
  void on_buffer_available() override;
  static void done(struct rbt_request* request, int status) noexcept;

  PluginStore& store_;
  void* queue_;
  Geometry geometry_;
  transport::BufferPool& buffers_;
  HandOver hand_over_;
  RecordPool<PluginWork> works_;
  RecordQueue<PluginWork> waiting_;  // for a buffer
  std::optional<ZeroPages> zeroes_;
  std::unique_ptr<WorkerThreads<PluginWork>> threads_;  // of a blocking plugin
};

}  // namespace rbt::target
