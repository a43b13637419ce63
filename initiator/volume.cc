// Requests that outlive a path: submit → (wait for a path, for room) → the queue pair → done, or, if the path is lost,
// once more from the beginning. In order of submission. Nothing here allocates.

#include "initiator/volume.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "initiator/command.h"
#include "initiator/recovery.h"

namespace rbt::initiator {

namespace {

constexpr std::uint32_t kRequestsMax = 65536;

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

Result<void> check_options(std::span<const Uri> uris, const VolumeOptions& options) {
  if (uris.empty()) return rbt::failure(ErrorKind::invalid_argument, "a volume needs a URI");
  if (options.requests < 1 || options.requests > kRequestsMax)
    return rbt::failure(ErrorKind::invalid_argument,
                        fmt::format("{} requests at a time: 1 to {} are allowed", options.requests, kRequestsMax));
  if (options.unflushed != Bytes(0) && options.unflushed < Bytes(4 * kMiB))
    return rbt::failure(
        ErrorKind::invalid_argument,
        fmt::format("{} bytes for unflushed writes: 0, or 4 MiB and more, are allowed", options.unflushed.value()));
  return options.predecessor ? check_predecessor(*options.predecessor) : Result<void>();
}

}  // namespace

Volume::Implementation::Implementation(const Environment& environment, std::span<const Uri> uris,
                                       transport::Reactor& reactor, const VolumeOptions& options)
    : environment_(environment),
      uris_(uris.begin(), uris.end()),
      reactor_(reactor),
      options_(options),
      wake_(reactor.timers(), [] {}),  // the sleeper looks at progress_due() by itself
      slots_(options.requests),
      run_ended_(reactor.timers(), [this] { run_ended(); }) {
  for (Slot& slot : slots_) {
    slot.volume = this;
    slot.inner.context = &slot;
    slot.inner.done = [](Request& request) {
      Slot& mine = *static_cast<Slot*>(request.context);
      mine.volume->on_done(mine);
    };
    slot.next = std::exchange(free_, &slot);
  }
  own_flush_.context = this;
  own_flush_.done = [](Request& request) { static_cast<Implementation*>(request.context)->on_own_flush(); };
}

Volume::Implementation::~Implementation() {
  close();
}

void Volume::Implementation::close() {
  if (state_ == VolumeState::closed) return;
  advance(VolumeState::closed, nullptr);
  wake_.cancel();
  take_down();
  end_all_later(Outcome::aborted);
  run_ended_.cancel();
  run_ended();
}

Bytes Volume::Implementation::request_max() const noexcept {
  return options_.unflushed == Bytes(0) ? Bytes(kGiB) : Bytes(options_.unflushed.value() / 4);
}

const VolumeStatistics& Volume::Implementation::statistics() noexcept {
  statistics_.unflushed = unflushed_ ? unflushed_->bytes() : 0;
  return statistics_;
}

// ---- submit

Submitted Volume::Implementation::submit(Request& request) {
  check(!request.in_flight_, "a request is submitted again only when it is done");
  request.target = &disk_;
  request.status = {};
  if (state_ == VolumeState::failed || state_ == VolumeState::closed) return Submitted::dead;
  request.outcome = validate(request);
  if (request.outcome == Outcome::pending &&
      ((request.operation == Operation::discard && request.ranges.size() > UnflushedWrites::kRangesMax) ||
       ((request.operation == Operation::write || request.operation == Operation::read ||
         request.operation == Operation::compare) &&
        request.range.count > disk_.block_shift.blocks(request_max()))))
    request.outcome = Outcome::unsupported;
  if (request.outcome != Outcome::pending) return Submitted::refused;
  if (free_ == nullptr) return Submitted::full;
  Slot& slot = *free_;
  free_ = slot.next;
  slot.outer = &request;
  // Not the reactor's now(): a request is submitted and done at any time of a turn, or outside of one. Two reads of the clock
  // are 50 ns, the least request is several microseconds.
  slot.submitted = now();
  slot.sent = slot.sent_before = false;
  slot.previous = newest_;
  slot.next = nullptr;
  (newest_ == nullptr ? oldest_ : newest_->next) = &slot;
  newest_ = &slot;
  if (unsent_ == nullptr) unsent_ = &slot;
  request.in_flight_ = true;
  ++in_flight_;
  pump();
  return Submitted::accepted;
}

// Sends what has not been sent, in order, as far as the queue pair and the memory for unflushed writes have room.
void Volume::Implementation::pump() {
  while (state_ == VolumeState::live && !path_error_ && unsent_ != nullptr) {
    Slot& slot = *unsent_;
    if (owed_ && slot.outer->operation == Operation::flush) {
      end_later(slot, Outcome::failed, *std::exchange(owed_, {}));
      continue;
    }
    if (!make_room(slot)) {
      if (!own_flush_failed_) break;
      end_later(slot, Outcome::failed, *std::exchange(own_flush_failed_, {}));
      continue;
    }
    if (unflushed_) slot.covers = unflushed_->acknowledged();
    copy_wish(*slot.outer, slot.inner);
    switch (queue_->submit(slot.inner)) {
      case Submitted::accepted:
        if (std::exchange(slot.sent_before, true)) ++statistics_.reissued;
        slot.sent = true;
        unsent_ = slot.next;
        continue;
      case Submitted::full: break;
      case Submitted::refused: end_later(slot, slot.inner.outcome, slot.inner.status); continue;
      case Submitted::dead: return;  // progress_due() says so, too
    }
    break;
  }
  flush_if_needed();
}

// A write is copied before it is sent: afterwards it may be needed.
bool Volume::Implementation::make_room(Slot& slot) {
  if (!unflushed_ || slot.kept || !changes_blocks(slot.outer->operation)) return true;
  slot.kept = unflushed_->reserve(*slot.outer);
  return slot.kept.has_value();
}

// ---- done

void Volume::Implementation::on_done(Slot& slot) {
  const Outcome outcome = slot.inner.outcome;
  if (outcome == Outcome::timed_out || outcome == Outcome::disconnected || outcome == Outcome::aborted) {
    slot.sent = false;  // stays where it is; who took the path down, or progress(), sends it again
    return;
  }
  if (outcome == Outcome::failed && is_path_error(slot.inner.status)) {
    slot.sent = false;  // as above; progress() finds another path
    path_error_ = slot.inner.status;
    return;
  }
  if (outcome == Outcome::success) proven_ = true;
  finish(slot, outcome, slot.inner.status);
  pump();
}

void Volume::Implementation::settle_kept(Slot& slot, Outcome outcome) noexcept {
  if (slot.outer->operation == Operation::flush) {
    if (outcome == Outcome::success) {
      inheritance_ = Inheritance::none;
      if (unflushed_) unflushed_->flushed(slot.covers);
    } else if (outcome == Outcome::failed && unflushed_) {
      incarnation_.reset();  // nobody knows what the medium has: everything is written again to the next association
    }
  }
  if (!slot.kept) return;
  const auto kept = *std::exchange(slot.kept, {});
  outcome == Outcome::success ? unflushed_->keep(kept) : unflushed_->drop(kept);
}

void Volume::Implementation::finish(Slot& slot, Outcome outcome, nvme::Status status) {
  settle_kept(slot, outcome);
  unlink(slot);
  slot.outer->outcome = outcome;
  slot.outer->status = status;
  count(slot);
  Request& request = *std::exchange(slot.outer, nullptr);
  slot.next = std::exchange(free_, &slot);
  request.in_flight_ = false;
  --in_flight_;
  if (request.done != nullptr) request.done(request);  // may submit it again: not ours any more
}

void Volume::Implementation::unlink(Slot& slot) noexcept {
  if (unsent_ == &slot) unsent_ = slot.next;
  (slot.previous == nullptr ? oldest_ : slot.previous->next) = slot.next;
  (slot.next == nullptr ? newest_ : slot.next->previous) = slot.previous;
}

// `done` is never called from within submit().
void Volume::Implementation::end_later(Slot& slot, Outcome outcome, nvme::Status status) {
  settle_kept(slot, outcome);
  unlink(slot);
  slot.outer->outcome = outcome;
  slot.outer->status = status;
  slot.next = nullptr;
  (last_ended_ == nullptr ? ended_ : last_ended_->next) = &slot;
  last_ended_ = &slot;
  run_ended_.arm(now());
}

void Volume::Implementation::end_all_later(Outcome outcome) {
  while (oldest_ != nullptr)
    end_later(*oldest_, outcome, {});
}

void Volume::Implementation::run_ended() {
  while (ended_ != nullptr) {
    Slot& slot = *ended_;
    ended_ = slot.next;
    if (ended_ == nullptr) last_ended_ = nullptr;
    count(slot);
    Request& request = *std::exchange(slot.outer, nullptr);
    slot.next = std::exchange(free_, &slot);
    request.in_flight_ = false;
    --in_flight_;
    if (request.done != nullptr) request.done(request);
  }
}

void Volume::Implementation::count(const Slot& slot) noexcept {
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
  ++traffic->requests;
  traffic->bytes += blocks.value() << disk_.block_shift.value();
  if (request.outcome != Outcome::success) ++traffic->errors;
  traffic->latency.record(now() - slot.submitted);
}

// ---- flushes of our own: the memory for unflushed writes fills up, or there is none for those of a predecessor

void Volume::Implementation::flush_if_needed() {
  const bool needed = inheritance_ == Inheritance::unflushed || (unflushed_ && unflushed_->half_full());
  if (state_ != VolumeState::live || path_error_ || own_flush_.in_flight() || !needed) return;
  own_flush_covers_ = unflushed_ ? unflushed_->acknowledged() : 0;
  if (queue_->flush(own_flush_, disk_) == Submitted::accepted) ++statistics_.flushes;  // else: when a request is done
}

void Volume::Implementation::on_own_flush() {
  if (own_flush_.outcome == Outcome::failed && is_path_error(own_flush_.status)) {
    path_error_ = own_flush_.status;
    return;
  }
  const bool inherited = inheritance_ == Inheritance::unflushed;
  if (own_flush_.outcome == Outcome::success) {
    inheritance_ = Inheritance::none;
    if (unflushed_) unflushed_->flushed(own_flush_covers_);
  } else if (own_flush_.outcome == Outcome::failed) {
    if (unflushed_) incarnation_.reset();
    (inherited ? owed_ : own_flush_failed_) = own_flush_.status;
    inheritance_ = Inheritance::none;
  } else {
    return;
  }
  pump();
}

// ---- the public face

Volume::Volume(std::unique_ptr<Implementation> implementation) noexcept : implementation_(std::move(implementation)) {}
Volume::~Volume() = default;

Result<std::unique_ptr<Volume>> Volume::open(const Environment& environment, std::span<const Uri> uris,
                                             transport::Reactor& reactor, const VolumeOptions& options) {
  if (auto allowed = check_options(uris, options); !allowed) return rbt::failure(std::move(allowed.error()));
  auto implementation = std::make_unique<Implementation>(environment, uris, reactor, options);
  auto opened = implementation->open();
  if (!opened) return rbt::failure(std::move(opened.error()));
  return std::unique_ptr<Volume>(new Volume(std::move(implementation)));
}

void Volume::close() {
  implementation_->close();
}

Submitted Volume::read(Request& request, Lba first, std::span<const iovec> data) {
  request.operation = Operation::read;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = nvme::ForceUnitAccess::no;
  return submit(request);
}

Submitted Volume::write(Request& request, Lba first, std::span<const iovec> data, nvme::ForceUnitAccess fua) {
  request.operation = Operation::write;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = fua;
  return submit(request);
}

Submitted Volume::compare(Request& request, Lba first, std::span<const iovec> data) {
  request.operation = Operation::compare;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = nvme::ForceUnitAccess::no;
  return submit(request);
}

Submitted Volume::flush(Request& request) {
  request.operation = Operation::flush;
  return submit(request);
}

Submitted Volume::discard(Request& request, std::span<const BlockRange> ranges) {
  request.operation = Operation::discard;
  request.ranges = ranges;
  return submit(request);
}

Submitted Volume::write_zeroes(Request& request, BlockRange range, nvme::Deallocate deallocate,
                               nvme::ForceUnitAccess fua) {
  request.operation = Operation::write_zeroes;
  request.range = range;
  request.deallocate = deallocate;
  request.fua = fua;
  return submit(request);
}

Submitted Volume::submit(Request& request) {
  return implementation_->submit(request);
}

bool Volume::run_until(const std::function<bool()>& done, Instant deadline) {
  while (true) {
    implementation_->progress();
    if (done()) return true;
    const auto wake = [&] { return done() || implementation_->progress_due(); };
    if (!implementation_->reactor().run_until(wake, deadline)) return done();
  }
}

bool Volume::progress_due() const noexcept {
  return implementation_->progress_due();
}
void Volume::progress() {
  implementation_->progress();
}
VolumeState Volume::state() const noexcept {
  return implementation_->state();
}
const Error* Volume::failure() const noexcept {
  return implementation_->failure();
}
const Namespace& Volume::disk() const noexcept {
  return implementation_->disk();
}
Bytes Volume::request_max() const noexcept {
  return implementation_->request_max();
}
std::uint32_t Volume::in_flight() const noexcept {
  return implementation_->in_flight();
}
const VolumeStatistics& Volume::statistics() const noexcept {
  return implementation_->statistics();
}
Succession Volume::succession() const {
  return implementation_->succession();
}
transport::BufferPool* Volume::buffers() noexcept {
  return implementation_->buffers();
}

}  // namespace rbt::initiator
