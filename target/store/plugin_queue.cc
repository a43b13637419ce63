#include "target/store/plugin_queue.h"

#include <algorithm>
#include <utility>

namespace rbt::target {

namespace {

// For a plugin that blocks: as many of its calls as run at a time, per reactor and namespace.
constexpr std::size_t kThreads = 8;

StoreStatus status_of(const PluginWork& work) noexcept {
  return plugin_status(work.result, work.call.request.operation == RBT_READ ? Intent::read : Intent::write);
}

}  // namespace

void PluginWork::on_store_done(StoreStatus ended_with) {
  queue.on_below_done(*this, ended_with);
}

PluginQueue::PluginQueue(PluginStore& store, void* queue, const StoreQueueContext& context)
    : StagedQueue(store.range_lock(), store.geometry().block_shift, context),
      store_(store),
      queue_(queue),
      geometry_(store.geometry()) {}

PluginQueue::~PluginQueue() {
  threads_.reset();
  if (store_.calls().close_queue != nullptr) store_.calls().close_queue(queue_);
}

Result<void> PluginQueue::start_threads() {
  auto zeroes = ZeroPages::create(store_.spec());
  if (!zeroes) return failure(std::move(zeroes.error()));
  zeroes_.emplace(std::move(*zeroes));
  if (store_.calls().submit != nullptr) return {};
  threads_ = std::make_unique<WorkerThreads<PluginWork>>([this](PluginWork& work) {
    work.result = store_.calls().execute(store_.handle(), &work.call.request);
    hand_over().give(work);
  });
  return threads_->start(kThreads);
}

bool PluginQueue::needs_flush(Durability durability) const noexcept {
  return durability == Durability::durable && geometry_.write_cache && !store_.native_fua();
}

// ---- one call of the plugin after the other ----

PluginWork& PluginQueue::make(std::int32_t operation, StoreRequest& outer) {
  PluginWork& work = works_.take(*this);
  static_cast<StagedRequest&>(work) = {};
  adopt(work, outer);
  work.operation = operation;
  work.flags = 0;
  work.flush_after = false;
  return work;
}

Progress PluginQueue::start(StagedRequest& request) {
  auto& work = static_cast<PluginWork&>(request);
  work.offset = bytes(work.range.first);
  work.length = bytes(work.range.end()) - work.offset;
  work.coming = work.operation == RBT_FLUSH ? Next::flush : work.lease != nullptr ? Next::transfer : Next::piece;
  return go_on(work, StoreStatus::ok);
}

/// The call before has ended with `status`: the next ones, until one has to be waited for.
Progress PluginQueue::go_on(PluginWork& work, StoreStatus status) {
  while (status == StoreStatus::ok && next_call(work)) {
    if (!ask(work)) return Progress::later();
    status = status_of(work);
  }
  return Progress::done(status);
}

/// False: nothing is left to be asked.
bool PluginQueue::next_call(PluginWork& work) {
  struct rbt_request& request = work.call.request;
  request = {};
  request.struct_size = sizeof request;
  request.done = &PluginQueue::done_by_plugin;
  switch (work.coming) {
    case Next::transfer:
    case Next::piece:
      request.operation = work.operation;
      request.flags = work.flags;
      request.offset = work.offset;
      request.length = work.length;
      if (work.coming == Next::transfer) {
        request.length = std::min(request.length, geometry_.transfer_max.value());
        request.data = work.lease->few[0].data + (work.offset - bytes(work.range.first));
      } else if (work.operation == RBT_WRITE) {  // zeroes
        const std::uint64_t most = std::min<std::uint64_t>(ZeroPages::kSize, geometry_.transfer_max.value());
        request.length = std::min(request.length, most);
        request.data = zeroes_->data();
      }
      work.offset += request.length;
      work.length -= request.length;
      if (work.length == 0) work.coming = work.flush_after && !has_more(work) ? Next::flush : Next::nothing;
      return true;
    case Next::flush:
      request.operation = RBT_FLUSH;
      work.coming = Next::nothing;
      return true;
    case Next::nothing: break;
  }
  return false;
}

/// True: it has ended, with work.result. False: it comes back by on_back().
bool PluginQueue::ask(PluginWork& work) {
  if (threads_ != nullptr) {
    hand_over().expect();
    threads_->submit(work);
    return false;
  }
  const int result = store_.calls().submit(queue_, &work.call.request);
  if (result == RBT_PENDING) {  // and `work` may be handed over already
    hand_over().expect();
    return false;
  }
  work.result = result;
  return true;
}

/// On any thread.
void PluginQueue::done_by_plugin(struct rbt_request* request, int status) noexcept {
  PluginWork& work = *reinterpret_cast<PluginCall*>(request)->work;
  work.result = status == RBT_PENDING ? RBT_WRITE_ERROR : status;
  work.queue.hand_over().give(work);
}

void PluginQueue::on_back(StagedRequest& request) {
  auto& work = static_cast<PluginWork&>(request);
  const Progress progress = go_on(work, status_of(work));
  if (!progress.pending) done(work, progress.status);
}

void PluginQueue::on_below_done(PluginWork& work, StoreStatus status) {
  const Progress progress = status == StoreStatus::ok ? start(work) : Progress::done(status);
  if (!progress.pending) done(work, progress.status);
}

// ---- what hosts want ----

Progress PluginQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  PluginWork& work = make(RBT_WRITE, request);
  work.lease = &lease;
  work.flush_after = needs_flush(durability);
  if (durability == Durability::durable && store_.native_fua()) work.flags = RBT_FUA;
  return begin(work, lease.range, Intent::write);
}

Progress PluginQueue::flush(StoreRequest& request) {
  if (!geometry_.write_cache || read_only()) return Progress::done();
  return begin(make(RBT_FLUSH, request));
}

Progress PluginQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  if (geometry_.discard == Ability::none) return Progress::done();
  return begin(make(geometry_.discard == Ability::native ? RBT_DISCARD : RBT_WRITE, request), ranges);
}

Progress PluginQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                   StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  if (geometry_.write_zeroes == Ability::none) return Progress::done(StoreStatus::unsupported);
  if (range.count.value() == 0) return Progress::done();
  const bool native = geometry_.write_zeroes == Ability::native;
  PluginWork& work = make(native ? RBT_WRITE_ZEROES : RBT_WRITE, request);
  work.flush_after = needs_flush(durability);
  if (durability == Durability::durable && store_.native_fua()) work.flags |= RBT_FUA;
  if (native && deallocate == Deallocate::yes) work.flags |= RBT_MAY_DEALLOCATE;
  return begin(work, range, Intent::write);
}

}  // namespace rbt::target
