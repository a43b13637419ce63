#pragma once
// One reactor's way to a plugin.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "target/store/plugin_store.h"
#include "target/store/relay.h"
#include "target/store/staged_queue.h"
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
struct PluginWork final : StagedRequest, StoreRequest {
  explicit PluginWork(class PluginQueue& q) : queue(q) { call.work = this; }
  void on_store_done(StoreStatus status) override;  // of a zeroing in place: what remains is a flush

  enum class Next : std::uint8_t { transfer, piece, flush, nothing };
  PluginCall call;
  class PluginQueue& queue;
  std::uint64_t offset = 0;  ///< what of the range has not been asked for, in bytes
  std::uint64_t length = 0;
  std::int32_t operation = 0;
  std::uint32_t flags = 0;
  int result = 0;  ///< written by whoever ends the call, before it is handed over
  Next coming = Next::nothing;
  bool flush_after = false;
  PluginWork* next = nullptr;  ///< of a blocking plugin's work
};

/// Lives on its reactor's thread. Data goes through the pool's buffers.
class PluginQueue : public StagedQueue {
 public:
  /// Takes over `queue` of the plugin.
  PluginQueue(PluginStore& store, void* queue, const StoreQueueContext& context);
  ~PluginQueue() override;
  [[nodiscard]] Result<void> start_threads();

  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;

  /// What a request of a store below it has come to, after which `work` goes on.
  void on_below_done(PluginWork& work, StoreStatus status);

 protected:
  PluginWork& make(std::int32_t operation, StoreRequest& outer);
  [[nodiscard]] PluginStore& store() const noexcept { return store_; }
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] bool read_only() const noexcept final { return geometry_.read_only; }
  /// Whether FUA is a flush that follows.
  [[nodiscard]] bool needs_flush(Durability durability) const noexcept;

 private:
  using Next = PluginWork::Next;

  // StagedQueue
  [[nodiscard]] StagedRequest& make_read(StoreRequest& request) override { return make(RBT_READ, request); }
  [[nodiscard]] Progress start(StagedRequest& request) override;
  void on_back(StagedRequest& request) override;
  void forget(StagedRequest& request) noexcept override { works_.give(static_cast<PluginWork&>(request)); }

  [[nodiscard]] Progress go_on(PluginWork& work, StoreStatus status);
  [[nodiscard]] bool next_call(PluginWork& work);
  [[nodiscard]] bool ask(PluginWork& work);
  static void done_by_plugin(struct rbt_request* request, int status) noexcept;

  PluginStore& store_;
  void* queue_;
  Geometry geometry_;
  RecordPool<PluginWork> works_;
  std::optional<ZeroPages> zeroes_;
  std::unique_ptr<WorkerThreads<PluginWork>> threads_;  // of a blocking plugin
};

}  // namespace rbt::target
