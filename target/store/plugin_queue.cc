#include "target/store/plugin_queue.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "target/store/staged_lease.h"

namespace rbt::target {

namespace {

// For a plugin that blocks: as many of its calls as run at a time, per reactor and namespace.
constexpr std::size_t kThreads = 8;

}  // namespace

void PluginWork::on_store_done(StoreStatus ended_with) {
  queue.go_on(*this, ended_with);
}

PluginQueue::PluginQueue(PluginStore& store, void* queue, const StoreQueueContext& context)
    : store_(store),
      queue_(queue),
      geometry_(store.geometry()),
      buffers_(context.buffers),
      hand_over_(context.reactor, *this) {}

PluginQueue::~PluginQueue() {
  buffers_.cancel(*this);
  threads_.reset();
  if (store_.calls().close_queue != nullptr) store_.calls().close_queue(queue_);
}

Result<void> PluginQueue::start() {
  auto zeroes = ZeroPages::create(store_.spec());
  if (!zeroes) return failure(std::move(zeroes.error()));
  zeroes_.emplace(std::move(*zeroes));
  if (store_.calls().submit != nullptr) return {};
  threads_ = std::make_unique<WorkerThreads<PluginWork>>([this](PluginWork& work) {
    work.status = store_.calls().execute(store_.handle(), &work.call.request);
    hand_over_.give(work);
  });
  return threads_->start(kThreads);
}

bool PluginQueue::needs_flush(Durability durability) const noexcept {
  return durability == Durability::durable && geometry_.write_cache && !store_.native_fua();
}

// ---- one request: begun by a call, ended once ----

PluginWork& PluginQueue::make(Next coming, StoreRequest& outer) {
  PluginWork& work = works_.take(*this);
  work.outer = &outer;
  work.lease = nullptr;
  work.ranges = {};
  work.offset = work.end = 0;
  work.flags = 0;
  work.coming = coming;
  work.flush_after = work.returned = false;
  work.ended.reset();
  return work;
}

Progress PluginQueue::begin(PluginWork& work) {
  go_on(work, StoreStatus::ok);
  return returned(work);
}

/// What the call that began `work` has to say.
Progress PluginQueue::returned(PluginWork& work) {
  work.returned = true;
  if (!work.ended) return Progress::later();
  const StoreStatus status = *work.ended;
  works_.give(work);
  return Progress::done(status);
}

void PluginQueue::end(PluginWork& work, StoreStatus status) {
  if (status != StoreStatus::ok && work.lease != nullptr && work.lease->intent == Intent::read) release(*work.lease);
  work.ended = status;
  if (!work.returned) return;
  StoreRequest& outer = *work.outer;
  works_.give(work);
  outer.on_store_done(status);
}

/// The call before has ended with `status`: the next ones, until one has to be waited for.
void PluginQueue::go_on(PluginWork& work, StoreStatus status) {
  while (status == StoreStatus::ok && next_call(work)) {
    if (!ask(work)) return;
    status = plugin_status(work.status, work.call.request.operation == RBT_READ ? Intent::read : Intent::write);
  }
  end(work, status);
}

/// False: nothing is left to be asked.
bool PluginQueue::next_call(PluginWork& work) {
  struct rbt_request& request = work.call.request;
  request = {};
  request.struct_size = sizeof request;
  request.done = &PluginQueue::done;
  switch (work.coming) {
    case Next::read:
    case Next::write:
      request.operation = work.coming == Next::read ? RBT_READ : RBT_WRITE;
      request.offset = bytes(work.lease->range.first);
      request.length = work.lease->few[0].length;
      request.data = work.lease->few[0].data;
      request.flags = work.flags;
      work.coming = work.flush_after ? Next::flush : Next::nothing;
      return true;
    case Next::piece: return next_piece(work);
    case Next::flush:
      request.operation = RBT_FLUSH;
      work.coming = Next::nothing;
      return true;
    case Next::nothing: break;
  }
  return false;
}

/// Of the ranges that are discarded or zeroed.
bool PluginQueue::next_piece(PluginWork& work) {
  while (work.offset == work.end && !work.ranges.empty()) {
    work.offset = bytes(work.ranges.front().first);
    work.end = bytes(work.ranges.front().end());
    work.ranges = work.ranges.subspan(1);
  }
  if (work.offset == work.end) {
    work.coming = work.flush_after ? Next::flush : Next::nothing;
    return next_call(work);
  }
  struct rbt_request& request = work.call.request;
  request.operation = work.operation;
  request.flags = work.flags;
  request.offset = work.offset;
  request.length = work.end - work.offset;
  if (work.operation == RBT_WRITE) {  // zeroes
    const std::uint64_t most = std::min<std::uint64_t>(ZeroPages::kSize, geometry_.transfer_max.value());
    request.length = std::min(request.length, most);
    request.data = zeroes_->data();
  }
  work.offset += request.length;
  return true;
}

/// True: it has ended, with work.status. False: it comes back by on_handed_over().
bool PluginQueue::ask(PluginWork& work) {
  if (threads_ != nullptr) {
    hand_over_.expect();
    threads_->submit(work);
    return false;
  }
  const int status = store_.calls().submit(queue_, &work.call.request);
  if (status == RBT_PENDING) {  // and `work` may be handed over already
    hand_over_.expect();
    return false;
  }
  work.status = status;
  return true;
}

/// On any thread.
void PluginQueue::done(struct rbt_request* request, int status) noexcept {
  PluginWork& work = *reinterpret_cast<PluginCall*>(request)->work;
  PluginQueue& queue = work.queue;
  work.status = status == RBT_PENDING ? RBT_WRITE_ERROR : status;
  queue.hand_over_.give(work);
}

void PluginQueue::on_handed_over(HandOver::Record& record) {
  auto& work = static_cast<PluginWork&>(record);
  go_on(work, plugin_status(work.status, work.call.request.operation == RBT_READ ? Intent::read : Intent::write));
}

// ---- what hosts want ----

Progress PluginQueue::acquire(Lease& lease, StoreRequest& request) {
  if (lease.intent == Intent::write && geometry_.read_only) return Progress::done(StoreStatus::read_only);
  const auto size = staged_bytes(lease, geometry_.block_shift);
  const std::span<std::byte> buffer = waiting_.empty() ? buffers_.allocate(size) : std::span<std::byte>();
  if (!buffer.empty()) stage(lease, buffer, geometry_.block_shift, buffers_);
  if (!buffer.empty() && lease.intent == Intent::write) return Progress::done();
  PluginWork& work = make(lease.intent == Intent::read ? Next::read : Next::nothing, request);
  work.lease = &lease;
  if (!buffer.empty()) return begin(work);
  waiting_.push(work);
  buffers_.wait(*this);
  return returned(work);
}

void PluginQueue::on_buffer_available() {
  while (!waiting_.empty()) {
    Lease& lease = *waiting_.front().lease;
    const auto buffer = buffers_.allocate(staged_bytes(lease, geometry_.block_shift));
    if (buffer.empty()) return buffers_.wait(*this);
    stage(lease, buffer, geometry_.block_shift, buffers_);
    PluginWork& work = waiting_.pop();
    work.status = RBT_OK;
    hand_over_.expect();  // not from inside of somebody else's release()
    hand_over_.give(work);
  }
}

void PluginQueue::release(Lease& lease) noexcept {
  unstage(lease, buffers_);
}

Progress PluginQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  PluginWork& work = make(Next::write, request);
  work.lease = &lease;
  work.flush_after = needs_flush(durability);
  if (durability == Durability::durable && store_.native_fua()) work.flags = RBT_FUA;
  return begin(work);
}

Progress PluginQueue::flush(StoreRequest& request) {
  if (!geometry_.write_cache || geometry_.read_only) return Progress::done();
  return begin(make(Next::flush, request));
}

Progress PluginQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (geometry_.read_only) return Progress::done(StoreStatus::read_only);
  if (geometry_.discard == Ability::none) return Progress::done();
  PluginWork& work = make(Next::piece, request);
  work.ranges = ranges;
  work.operation = geometry_.discard == Ability::native ? RBT_DISCARD : RBT_WRITE;
  return begin(work);
}

Progress PluginQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                   StoreRequest& request) {
  if (geometry_.read_only) return Progress::done(StoreStatus::read_only);
  if (geometry_.write_zeroes == Ability::none) return Progress::done(StoreStatus::unsupported);
  PluginWork& work = make(Next::piece, request);
  const bool native = geometry_.write_zeroes == Ability::native;
  work.operation = native ? RBT_WRITE_ZEROES : RBT_WRITE;
  work.offset = bytes(range.first);
  work.end = bytes(range.end());
  work.flush_after = needs_flush(durability);
  if (durability == Durability::durable && store_.native_fua()) work.flags |= RBT_FUA;
  if (native && deallocate == Deallocate::yes) work.flags |= RBT_MAY_DEALLOCATE;
  return begin(work);
}

}  // namespace rbt::target
