#include "target/store/drop_queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "target/store/lease_memory.h"

namespace rbt::target {

namespace {

// A run that is written down in one piece.
constexpr std::uint64_t kRunMax = kMiB;

/// From one lease's memory to another's; both hold the same range.
void copy(Overlay::Segments from, Overlay::Segments to) noexcept {
  std::byte* out = to.front().data;
  for (const transport::Segment& segment : from) {
    std::memcpy(out, segment.data, segment.length);
    out += segment.length;
  }
}

}  // namespace

void DropWork::on_store_done(StoreStatus status) {
  queue.on_done_below(*this, status);
}

DropQueue::DropQueue(DropUnflushed& store, std::unique_ptr<StoreQueue> below,
                     std::unique_ptr<transport::BufferPool> buffers, transport::Reactor& reactor)
    : LayerQueue(std::move(below)),
      store_(store),
      overlay_(*store.overlay_),
      reactor_(reactor),
      geometry_(store.geometry()),
      buffers_(std::move(buffers)) {}

DropQueue::~DropQueue() {
  buffers_->cancel(*this);
  store_.forget(*this);
}

std::uint64_t DropQueue::bytes_copied() const noexcept {
  return copied_ + below().bytes_copied();
}

std::uint64_t DropQueue::bytes(const BlockRange& range) const noexcept {
  return range.count.value() << geometry_.block_shift.value();
}

// ---- one request: begun by a call, ended once ----

DropWork& DropQueue::make(Aim aim, StoreRequest& outer) {
  DropWork& work = works_.take(*this);
  work.aim = aim;
  work.outer = &outer;
  work.cursor = Lba(0);
  work.end = Lba(~std::uint64_t{0});
  work.written = Blocks(0);
  work.durability = Durability::cached;
  work.returned = work.ended = false;
  return work;
}

/// What the call that began `work` has to say.
Progress DropQueue::returned(DropWork& work) {
  work.returned = true;
  if (!work.ended) return Progress::later();
  const StoreStatus status = work.outcome;
  works_.give(work);
  return Progress::done(status);
}

void DropQueue::end(DropWork& work, StoreStatus status) {
  work.ended = true;
  work.outcome = status;
  if (!work.returned) return;
  StoreRequest& outer = *work.outer;
  works_.give(work);
  outer.on_store_done(status);
}

void DropQueue::on_done_below(DropWork& work, StoreStatus status) {
  switch (work.step) {
    case Step::read: return cover(work, status);
    case Step::room_below:
      if (copy_run(work, status)) write_down(work);
      return;
    case Step::write_below:
      if (wrote_run(work, status)) write_down(work);
      return;
    case Step::end_below: return ended_below(work, status);
    case Step::buffer:
    case Step::turn: break;
  }
  check(false, "the store below has nothing to do with this step");
}

// ---- leases: the store's own where nothing is in memory, else a buffer ----

Progress DropQueue::acquire(Lease& lease, StoreRequest& request) {
  if (overlay_.forgotten()) return Progress::done(StoreStatus::unavailable);
  if (lease.intent == Intent::write && geometry_.read_only) return Progress::done(StoreStatus::read_only);
  if (lease.intent == Intent::read && !overlay_.covers(lease.range)) return below().acquire(lease, request);
  DropWork& work = make(lease.intent == Intent::read ? Aim::read : Aim::write, request);
  work.lease = &lease;
  want_buffer(work);
  return returned(work);
}

void DropQueue::want_buffer(DropWork& work) {
  if (waiting_.empty() && hold_buffer(work)) return has_buffer(work);
  work.step = Step::buffer;
  waiting_.push(work);
  buffers_->wait(*this);
}

bool DropQueue::hold_buffer(DropWork& work) {
  Lease& lease = *work.lease;
  const auto length = static_cast<std::uint32_t>(bytes(lease.range));
  const std::span<std::byte> buffer = buffers_->allocate(length);
  if (buffer.empty()) return false;
  lease.few[0] = {buffer.data(), length, lease_key(buffers_->memory(), lease)};
  lease.segments = {lease.few.data(), 1};
  lease.token = buffer.size();
  return true;
}

void DropQueue::on_buffer_available() {
  while (!waiting_.empty()) {
    if (!hold_buffer(waiting_.front())) return buffers_->wait(*this);
    DropWork& work = waiting_.pop();
    // Not from inside of somebody else's release().
    reactor_.post([this, &work] { has_buffer(work); });
  }
}

void DropQueue::has_buffer(DropWork& work) {
  if (work.aim == Aim::write) return end(work, StoreStatus::ok);
  // Only now: a full memory waits for such reads, and those that hold buffers may wait for memory.
  work.covered = overlay_.begin_read(work.reading, work.lease->range);
  work.below = Lease{};
  work.below.range = work.lease->range;
  work.below.intent = Intent::read;
  work.step = Step::read;
  const Progress progress = below().acquire(work.below, work);
  if (!progress.pending) cover(work, progress.status);
}

/// What the store below has, and over it what is in memory.
void DropQueue::cover(DropWork& work, StoreStatus status) {
  if (status != StoreStatus::ok) {
    if (work.covered) (void)overlay_.end_read(work.reading, {});
    release(*work.lease);
    return end(work, status);
  }
  copy(work.below.segments, work.lease->segments);
  below().release(work.below);
  copied_ += bytes(work.lease->range);
  if (work.covered) copied_ += overlay_.end_read(work.reading, work.lease->segments);
  end(work, StoreStatus::ok);
}

bool DropQueue::own(const Lease& lease) const noexcept {
  const transport::MemorySpan& memory = buffers_->memory().memory();
  const std::byte* const data = lease.segments.front().data;
  return data >= memory.data && data < memory.data + memory.size;
}

void DropQueue::release(Lease& lease) noexcept {
  if (!own(lease)) return below().release(lease);
  const std::span buffer(lease.few[0].data, lease.token);
  lease.segments = {};
  buffers_->free(buffer);
}

// ---- what goes into memory ----

Progress DropQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  return put(lease.range, lease.segments, durability, &lease, request);
}

Progress DropQueue::put(const BlockRange& range, Overlay::Segments data, Durability durability, Lease* lease,
                        StoreRequest& request) {
  const bool in = overlay_.put(range, data);
  if (in) copied_ += bytes(range);
  if (in && durability == Durability::cached) return Progress::done();
  if (overlay_.forgotten()) return Progress::done(StoreStatus::unavailable);
  DropWork& work = make(in ? Aim::durable : Aim::room, request);
  work.range = range;
  work.lease = lease;
  work.durability = durability;
  want_turn(work);
  return returned(work);
}

Progress DropQueue::flush(StoreRequest& request) {
  DropWork& work = make(Aim::flush, request);
  want_turn(work);
  return returned(work);
}

Progress DropQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  DropWork& work = make(Aim::discard, request);
  work.ranges = ranges;
  want_turn(work);
  return returned(work);
}

Progress DropQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                 StoreRequest& request) {
  if (geometry_.read_only) return Progress::done(StoreStatus::read_only);
  if (range.count.value() == 0) return Progress::done();
  if (bytes(range) <= transport::BufferPool::kBlockMax) return put(range, {}, durability, nullptr, request);
  DropWork& work = make(Aim::zeroes, request);
  work.range = range;
  work.deallocate = deallocate;
  work.durability = durability;
  want_turn(work);
  return returned(work);
}

// ---- a turn: what goes to the store below ----

void DropQueue::want_turn(DropWork& work) {
  work.step = Step::turn;
  if (store_.turns_.ask(work)) take_turn(work);
}

void DropQueue::end_turn(DropWork& work, StoreStatus status) {
  if (DropWork* const next = store_.turns_.pass()) {
    DropQueue& queue = next->queue;
    queue.reactor_.post([&queue, next] { queue.take_turn(*next); });
  }
  end(work, status);
}

void DropQueue::take_turn(DropWork& work) {
  if (overlay_.forgotten()) return end_turn(work, StoreStatus::unavailable);
  work.step = Step::end_below;
  switch (work.aim) {
    case Aim::flush:
    case Aim::room: return write_down(work);
    case Aim::durable:
      work.cursor = work.range.first;
      work.end = work.range.end();
      return write_down(work);
    case Aim::discard: work.version = overlay_.version(); return ask_below(work, below().discard(work.ranges, work));
    case Aim::zeroes:
      work.version = overlay_.version();
      return ask_below(work, below().write_zeroes(work.range, work.deallocate, work.durability, work));
    case Aim::read:
    case Aim::write: break;
  }
  check(false, "only what goes to the store below wants a turn");
}

/// Run after run, in the order of their addresses, until none is left.
void DropQueue::write_down(DropWork& work) {
  while (true) {
    const std::uint64_t most = std::min(kRunMax, geometry_.transfer_max.value()) >> geometry_.block_shift.value();
    const auto run = overlay_.next_dirty(work.cursor, work.end, Blocks(most));
    if (!run) return all_written(work);
    work.below = Lease{};
    work.below.range = *run;
    work.below.intent = Intent::write;
    work.step = Step::room_below;
    const Progress progress = below().acquire(work.below, work);
    if (progress.pending || !copy_run(work, progress.status)) return;
  }
}

/// True: the next run.
bool DropQueue::copy_run(DropWork& work, StoreStatus status) {
  if (status != StoreStatus::ok) return end_turn(work, status), false;
  const auto version = overlay_.copy_out(work.below.range, work.below.segments);
  if (!version) {
    below().release(work.below);
    return end_turn(work, StoreStatus::unavailable), false;
  }
  work.version = *version;
  copied_ += bytes(work.below.range);
  work.step = Step::write_below;
  const auto durability = work.aim == Aim::durable ? Durability::durable : Durability::cached;
  const Progress progress = below().commit(work.below, durability, work);
  return !progress.pending && wrote_run(work, progress.status);
}

bool DropQueue::wrote_run(DropWork& work, StoreStatus status) {
  const BlockRange run = work.below.range;
  below().release(work.below);
  if (status != StoreStatus::ok) return end_turn(work, status), false;
  overlay_.written(run, work.version);
  work.written = work.written + run.count;
  work.cursor = run.end();
  return true;
}

void DropQueue::all_written(DropWork& work) {
  if (overlay_.forgotten()) return end_turn(work, StoreStatus::unavailable);
  if (work.aim == Aim::room) {
    const Overlay::Segments data = work.lease != nullptr ? work.lease->segments : Overlay::Segments();
    work.cursor = Lba(0);
    // What reads still look at keeps its place until they have ended.
    if (!overlay_.put(work.range, data)) return reactor_.post([this, &work] { write_down(work); });
    copied_ += bytes(work.range);
    if (work.durability == Durability::cached) return end_turn(work, StoreStatus::ok);
    work.aim = Aim::durable;
    work.written = Blocks(0);
    return take_turn(work);
  }
  // Some of its blocks had been written down, not durably, by the turn before.
  if (work.aim == Aim::durable && work.written == work.range.count) return end_turn(work, StoreStatus::ok);
  work.step = Step::end_below;
  ask_below(work, below().flush(work));
}

void DropQueue::ask_below(DropWork& work, Progress progress) {
  if (!progress.pending) ended_below(work, progress.status);
}

void DropQueue::ended_below(DropWork& work, StoreStatus status) {
  const bool zeroed = work.aim == Aim::zeroes || (work.aim == Aim::discard && geometry_.discard_reads_zero);
  if (zeroed && status == StoreStatus::ok) {
    const auto ranges = work.aim == Aim::zeroes ? std::span<const BlockRange>(&work.range, 1) : work.ranges;
    for (const BlockRange& range : ranges)
      overlay_.zeroed(range, work.version);
  }
  end_turn(work, status);
}

}  // namespace rbt::target
