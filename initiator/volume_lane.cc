// Requests that outlive a path: submit → (wait for a path, for room) → the queue pair → done, or, if the path is lost,
// once more from the beginning. In order of submission. Nothing here allocates, but for open().

#include "initiator/volume_lane.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "initiator/command.h"
#include "initiator/recovery.h"

namespace rbt::initiator {

namespace {

bool changes_blocks(Operation operation) noexcept {
  return operation == Operation::write || operation == Operation::write_zeroes || operation == Operation::discard;
}

// What the caller wants, without what the queue pair notes in it.
void copy_wish(const Request& from, Request& to) noexcept {
  to.timeout = from.timeout;
  to.operation = from.operation;
  to.target = from.target;
  to.range = from.range;
  to.data = from.data;
  to.ranges = from.ranges;
  to.fua = from.fua;
  to.deallocate = from.deallocate;
}

// One thread writes, others read: no lock, and no locked instruction.
void bump(std::uint64_t& counter, std::uint64_t more) noexcept {
  std::atomic_ref(counter).store(counter + more, std::memory_order_relaxed);
}

std::uint64_t seen(const std::uint64_t& counter) noexcept {
  return std::atomic_ref(const_cast<std::uint64_t&>(counter)).load(std::memory_order_relaxed);
}

void add_traffic(VolumeTraffic& sum, const VolumeTraffic& more) noexcept {
  sum.requests += seen(more.requests);
  sum.bytes += seen(more.bytes);
  sum.errors += seen(more.errors);
  sum.latency.add(more.latency);
}

}  // namespace

Volume::Lane::Lane(const Clock& clock, transport::Reactor& reactor, const VolumeOptions& options, Shared& shared,
                   std::size_t number, transport::Reactor* volume_reactor)
    : clock_(clock),
      reactor_(reactor),
      options_(options),
      shared_(shared),
      number_(number),
      volume_reactor_(volume_reactor),
      slots_(options.requests),
      run_ended_(reactor.timers(), [this] { run_ended(); }) {
  for (Slot& slot : slots_) {
    slot.lane = this;
    slot.inner.context = &slot;
    slot.inner.done = [](Request& request) {
      Slot& mine = *static_cast<Slot*>(request.context);
      mine.lane->on_done(mine);
    };
    slot.next = std::exchange(free_, &slot);
  }
  own_flush_.context = this;
  own_flush_.done = [](Request& request) { static_cast<Lane*>(request.context)->on_own_flush(); };
}

// ---- the queue pair comes and goes

Result<void> Volume::Lane::open(Session& session, const Namespace& disk, Bytes unflushed) {
  disk_ = disk;
  if (unflushed != Bytes(0) && !unflushed_) {
    auto created = UnflushedWrites::create(unflushed);
    if (!created) return rbt::failure(std::move(created.error()));
    unflushed_.emplace(std::move(*created));
  }
  QueuePairOptions queue = options_.queue;
  queue.buffers = Bytes(0);
  queue.on_lost = [this] {
    if (queue_) note_trouble(*queue_->failure());
  };
  auto opened = session.open_queue_pair(reactor_, queue);
  if (!opened) return rbt::failure(std::move(opened.error()));
  queue_ = std::move(*opened);
  if (!queue_->live()) return rbt::failure(Error(*queue_->failure()));
  return {};
}

void Volume::Lane::resume() {
  unsent_ = oldest_;
  if (trouble() == nullptr) state_ = State::open;
  pump();
}

void Volume::Lane::halt() {
  if (state_ == State::open) state_ = State::halted;
  if (auto queue = std::move(queue_)) queue.reset();  // what it carried is pending again
  troubled_.store(false, std::memory_order_relaxed);
  trouble_.reset();
  proven_.store(false, std::memory_order_relaxed);
}

void Volume::Lane::fail() {
  state_ = State::failed;
  end_all_later(Outcome::disconnected);
}

void Volume::Lane::close() {
  halt();
  state_ = State::closed;
  end_all_later(Outcome::aborted);
  run_ended_.cancel();
  run_ended();
}

// From any callback: only noted. The volume has the lane halted, and there is nothing to be sent until then.
void Volume::Lane::note_trouble(Error why) {
  if (state_ == State::open) state_ = State::halted;
  if (trouble() != nullptr) return;
  trouble_ = std::move(why);
  troubled_.store(true, std::memory_order_release);
  shared_.trouble.store(true, std::memory_order_release);
  if (volume_reactor_ != nullptr) volume_reactor_->wake();
}

// ---- submit

Submitted Volume::Lane::submit(Request& request) {
  check(!request.in_flight_, "a request is submitted again only when it is done");
  request.target = &disk_;
  request.status = {};
  if (state_ == State::failed || state_ == State::closed) return Submitted::dead;
  request.outcome = validate(request);
  if (request.outcome == Outcome::pending &&
      ((request.operation == Operation::discard && request.ranges.size() > UnflushedWrites::kRangesMax) ||
       ((request.operation == Operation::write || request.operation == Operation::read ||
         request.operation == Operation::compare) &&
        request.range.count > disk_.block_shift.blocks(request_max_of(options_)))))
    request.outcome = Outcome::unsupported;
  if (request.outcome != Outcome::pending) return Submitted::refused;
  if (free_ == nullptr) return Submitted::full;
  Slot& slot = *free_;
  free_ = slot.next;
  slot.outer = &request;
  // Not the reactor's now(): a request is submitted and done at any time of a turn, or outside of one. Two reads of the clock
  // are 50 ns, the least request is several microseconds.
  slot.submitted = now();
  slot.sent_before = false;
  slot.previous = newest_;
  slot.next = nullptr;
  (newest_ == nullptr ? oldest_ : newest_->next) = &slot;
  newest_ = &slot;
  if (unsent_ == nullptr) unsent_ = &slot;
  request.in_flight_ = true;
  in_flight_.store(in_flight() + 1, std::memory_order_relaxed);
  pump();
  return Submitted::accepted;
}

// Sends what has not been sent, in order, as far as the queue pair and the memory for unflushed writes have room.
void Volume::Lane::pump() {
  while (state_ == State::open && unsent_ != nullptr) {
    Slot& slot = *unsent_;
    if (slot.outer->operation == Operation::flush) {
      if (!shared_.owed.load(std::memory_order_relaxed).ok()) {
        if (const nvme::Status owed = shared_.owed.exchange({}, std::memory_order_acquire); !owed.ok()) {
          end_later(slot, Outcome::failed, owed);
          continue;
        }
      }
      slot.covers = shared_.acknowledged.load(std::memory_order_acquire);
    }
    if (!make_room(slot)) {
      if (!own_flush_failed_) break;
      end_later(slot, Outcome::failed, *std::exchange(own_flush_failed_, {}));
      continue;
    }
    copy_wish(*slot.outer, slot.inner);
    switch (queue_->submit(slot.inner)) {
      case Submitted::accepted:
        if (std::exchange(slot.sent_before, true)) bump(statistics_.reissued, 1);
        unsent_ = slot.next;
        continue;
      case Submitted::full: break;
      case Submitted::refused: end_later(slot, slot.inner.outcome, slot.inner.status); continue;
      case Submitted::dead: return note_trouble(*queue_->failure());
    }
    break;
  }
  flush_if_needed();
}

// A write is copied before it is sent: afterwards it may be needed.
bool Volume::Lane::make_room(Slot& slot) {
  if (!unflushed_ || slot.kept || !changes_blocks(slot.outer->operation)) return true;
  forget_durable();
  slot.kept = unflushed_->reserve(*slot.outer);
  publish_kept();
  return slot.kept.has_value();
}

void Volume::Lane::forget_durable() noexcept {
  if (!unflushed_) return;
  unflushed_->flushed(shared_.durable.load(std::memory_order_acquire));
  publish_kept();
}

void Volume::Lane::publish_kept() noexcept {
  std::atomic_ref(statistics_.unflushed).store(unflushed_->bytes(), std::memory_order_relaxed);
}

// ---- done

void Volume::Lane::on_done(Slot& slot) {
  const Outcome outcome = slot.inner.outcome;
  if (outcome == Outcome::timed_out || outcome == Outcome::disconnected || outcome == Outcome::aborted) {
    return;  // stays where it is; resume() sends it again
  }
  if (outcome == Outcome::failed && is_path_error(slot.inner.status))  // as above, on another path
    return note_trouble(Error(ErrorKind::unreachable, nvme::describe(slot.inner.status)));
  if (outcome == Outcome::success) proven_.store(true, std::memory_order_relaxed);
  finish(slot, outcome, slot.inner.status);
  pump();
}

void Volume::Lane::settle_kept(Slot& slot, Outcome outcome) noexcept {
  if (slot.outer->operation == Operation::flush) {
    if (outcome == Outcome::success)
      note_durable(slot.covers);
    else if (outcome == Outcome::failed && unflushed_)
      shared_.flush_failed.store(true, std::memory_order_release);
  }
  if (!slot.kept) return;
  const auto kept = *std::exchange(slot.kept, {});
  if (outcome == Outcome::success)
    unflushed_->keep(kept, shared_.acknowledged.fetch_add(1, std::memory_order_release) + 1);
  else
    unflushed_->drop(kept);
  publish_kept();
}

// A flush has succeeded that was sent when the acknowledgements had come to `covered`.
void Volume::Lane::note_durable(std::uint64_t covered) noexcept {
  if (shared_.inherited.load(std::memory_order_relaxed)) shared_.inherited.store(false, std::memory_order_relaxed);
  if (!unflushed_) return;
  std::uint64_t before = shared_.durable.load(std::memory_order_relaxed);
  while (before < covered && !shared_.durable.compare_exchange_weak(before, covered, std::memory_order_release,
                                                                    std::memory_order_relaxed)) {
  }
  forget_durable();
}

void Volume::Lane::finish(Slot& slot, Outcome outcome, nvme::Status status) {
  settle_kept(slot, outcome);
  unlink(slot);
  slot.outer->outcome = outcome;
  slot.outer->status = status;
  give_back(slot);
}

void Volume::Lane::give_back(Slot& slot) {
  count(slot);
  Request& request = *std::exchange(slot.outer, nullptr);
  slot.next = std::exchange(free_, &slot);
  request.in_flight_ = false;
  in_flight_.store(in_flight() - 1, std::memory_order_relaxed);
  if (request.done != nullptr) request.done(request);  // may submit it again: not ours any more
}

void Volume::Lane::unlink(Slot& slot) noexcept {
  if (unsent_ == &slot) unsent_ = slot.next;
  (slot.previous == nullptr ? oldest_ : slot.previous->next) = slot.next;
  (slot.next == nullptr ? newest_ : slot.next->previous) = slot.previous;
}

// `done` is never called from within submit().
void Volume::Lane::end_later(Slot& slot, Outcome outcome, nvme::Status status) {
  settle_kept(slot, outcome);
  unlink(slot);
  slot.outer->outcome = outcome;
  slot.outer->status = status;
  slot.next = nullptr;
  (last_ended_ == nullptr ? ended_ : last_ended_->next) = &slot;
  last_ended_ = &slot;
  run_ended_.arm(now());
}

void Volume::Lane::end_all_later(Outcome outcome) {
  while (oldest_ != nullptr)
    end_later(*oldest_, outcome, {});
}

void Volume::Lane::run_ended() {
  while (ended_ != nullptr) {
    Slot& slot = *ended_;
    ended_ = slot.next;
    if (ended_ == nullptr) last_ended_ = nullptr;
    give_back(slot);
  }
}

void Volume::Lane::count(const Slot& slot) noexcept {
  const Request& request = *slot.outer;
  VolumeTraffic* traffic = &statistics_.read;
  Blocks blocks = request.range.count;
  switch (request.operation) {
    case Operation::read:
    case Operation::compare: break;
    case Operation::write: traffic = &statistics_.write; break;
    case Operation::flush:
      traffic = &statistics_.flush;
      blocks = Blocks(0);
      break;
    case Operation::discard:
      blocks = Blocks(0);
      for (const BlockRange& range : request.ranges)
        blocks = blocks + range.count;
      [[fallthrough]];
    case Operation::write_zeroes: traffic = &statistics_.discard; break;
  }
  bump(traffic->requests, 1);
  bump(traffic->bytes, blocks.value() << disk_.block_shift.value());
  if (request.outcome != Outcome::success) bump(traffic->errors, 1);
  traffic->latency.record(now() - slot.submitted);
}

void Volume::Lane::add_to(VolumeStatistics& sum) const noexcept {
  sum.reissued += seen(statistics_.reissued);
  sum.flushes += seen(statistics_.flushes);
  sum.unflushed += seen(statistics_.unflushed);
  add_traffic(sum.read, statistics_.read);
  add_traffic(sum.write, statistics_.write);
  add_traffic(sum.flush, statistics_.flush);
  add_traffic(sum.discard, statistics_.discard);
}

// ---- flushes of our own: the memory for unflushed writes fills up, or there is none for those of a predecessor

void Volume::Lane::flush_if_needed() {
  if (state_ != State::open) return;  // first: the log of a lane that is halted is the volume's thread's
  const bool inherited = volume_reactor_ == nullptr && shared_.inherited.load(std::memory_order_relaxed);
  const bool needed = inherited || (unflushed_ && unflushed_->half_full());
  if (own_flush_.in_flight() || !needed) return;
  own_flush_covers_ = shared_.acknowledged.load(std::memory_order_acquire);
  if (queue_->flush(own_flush_, disk_) == Submitted::accepted)
    bump(statistics_.flushes, 1);  // else: when a request is done
}

void Volume::Lane::on_own_flush() {
  if (own_flush_.outcome == Outcome::failed && is_path_error(own_flush_.status))
    return note_trouble(Error(ErrorKind::unreachable, nvme::describe(own_flush_.status)));
  if (own_flush_.outcome == Outcome::success) {
    note_durable(own_flush_covers_);
  } else if (own_flush_.outcome == Outcome::failed) {
    if (unflushed_) shared_.flush_failed.store(true, std::memory_order_release);
    if (shared_.inherited.exchange(false, std::memory_order_relaxed))
      shared_.owed.store(own_flush_.status, std::memory_order_release);
    else
      own_flush_failed_ = own_flush_.status;
  } else {
    return;
  }
  pump();
}

}  // namespace rbt::initiator
