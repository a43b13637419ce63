#include "target/store/in_place.h"

#include "common/check.h"
#include "target/store/staged_lease.h"

namespace rbt::target {

StoreStatus InPlaceMemory::fetch(std::uint64_t, std::span<std::byte>) {
  check(false, "memory that stages reads fetches them");
  return StoreStatus::read_error;
}

// Lease::token: 0, the lease has its range; else the size of the buffer that it has instead.

Progress InPlace::acquire(Lease& lease, StoreRequest& request) {
  if (memory_.stages(lease)) return stage(lease, request);
  RangeLock::Claim claim;
  claim.range = lease.range;
  claim.intent = lease.intent;
  if (!lock_.take(claim)) {
    Wait& wait = wait_for(claim, Wait::Step::range, lease, request);
    if (!lock_.wait(wait, hand_over_)) {
      hand_over_.expect();
      return Progress::later();
    }
  }
  hold_range(lease);
  return Progress::done();
}

void InPlace::hold_range(Lease& lease) noexcept {
  const std::uint64_t size = length(lease);
  check(size <= Geometry{}.transfer_max.value(), "a lease is no longer than transfer_max");
  lease.few[0] = {memory_.at(bytes(lease.range.first)), static_cast<std::uint32_t>(size), memory_.lkey(lease)};
  lease.segments = {lease.few.data(), 1};
  lease.token = 0;
}

Progress InPlace::stage(Lease& lease, StoreRequest& request) {
  if (const auto buffer = buffers_.allocate(length(lease)); !buffer.empty()) {
    hold_buffer(lease, buffer);
    return buffered(lease, request);
  }
  waiting_for_buffer_.push(wait_for({}, Wait::Step::buffer, lease, request));
  hand_over_.expect();
  buffers_.wait(*this);
  return Progress::later();
}

void InPlace::hold_buffer(Lease& lease, std::span<std::byte> buffer) const noexcept {
  target::stage(lease, buffer, block_shift_, buffers_);
}

/// It has its buffer: a write is welcome to it, a read wants it filled.
Progress InPlace::buffered(Lease& lease, StoreRequest& request) {
  if (lease.intent == Intent::write) return Progress::done();
  RangeLock::Claim claim;
  claim.range = lease.range;
  claim.intent = Intent::read;
  if (!lock_.take(claim)) {
    Wait& wait = wait_for(claim, Wait::Step::fetch, lease, request);
    if (!lock_.wait(wait, hand_over_)) {
      hand_over_.expect();
      return Progress::later();
    }
  }
  return fetch(lease);
}

/// Has the range, and gives it back.
Progress InPlace::fetch(Lease& lease) {
  const transport::Segment& buffer = lease.few[0];
  const StoreStatus status = memory_.fetch(bytes(lease.range.first), {buffer.data, buffer.length});
  lock_.release(lease.range, Intent::read);
  if (status == StoreStatus::ok)
    bytes_copied_ += buffer.length;
  else
    release(lease);
  return Progress::done(status);
}

void InPlace::on_buffer_available() {
  while (!waiting_for_buffer_.empty()) {
    Wait& wait = waiting_for_buffer_.front();
    const auto buffer = buffers_.allocate(length(*wait.lease));
    if (buffer.empty()) {
      buffers_.wait(*this);
      return;
    }
    waiting_for_buffer_.pop();
    hold_buffer(*wait.lease, buffer);
    hand_over_.give(wait);  // answered from a turn, not from within somebody else's release()
  }
}

Progress InPlace::commit(Lease& lease, Durability durability, StoreRequest& request) {
  if (lease.token == 0) return memory_.landed(lease, durability, request);
  RangeLock::Claim claim;
  claim.range = lease.range;
  claim.intent = Intent::write;
  if (!lock_.take(claim)) {
    Wait& wait = wait_for(claim, Wait::Step::commit, lease, request);
    wait.durability = durability;
    if (!lock_.wait(wait, hand_over_)) {
      hand_over_.expect();
      return Progress::later();
    }
  }
  return land(lease, durability, request);
}

/// Has the range, and gives it back.
Progress InPlace::land(Lease& lease, Durability durability, StoreRequest& request) {
  const transport::Segment& staged = lease.few[0];
  const StoreStatus status = memory_.land(bytes(lease.range.first), {staged.data, staged.length});
  lock_.release(lease.range, Intent::write);
  if (status != StoreStatus::ok) return Progress::done(status);
  bytes_copied_ += staged.length;
  return memory_.landed(lease, durability, request);
}

void InPlace::release(Lease& lease) noexcept {
  if (lease.token != 0) return unstage(lease, buffers_);
  lease.segments = {};
  lock_.release(lease.range, lease.intent);
}

bool InPlace::claim(BlockRange range) {
  if (own_state_ == Own::waiting) return false;
  if (own_state_ == Own::held) {
    if (own_.range == range) return true;
    unclaim();  // he thought of something else while he waited
  }
  own_ = {};
  own_.range = range;
  own_.intent = Intent::write;
  own_state_ = Own::held;
  if (lock_.take(own_) || lock_.wait(own_, hand_over_)) return true;
  own_state_ = Own::waiting;
  hand_over_.expect();
  return false;
}

void InPlace::unclaim() noexcept {
  check(own_state_ == Own::held, "only what was claimed is given back");
  own_state_ = Own::none;
  lock_.release(own_.range, Intent::write);
}

InPlace::Wait& InPlace::wait_for(const RangeLock::Claim& claim, Wait::Step step, Lease& lease,
                                 StoreRequest& request) noexcept {
  Wait& wait = StoreRequestAccess::make<Wait>(request);
  static_cast<RangeLock::Claim&>(wait) = claim;
  wait.step = step;
  wait.lease = &lease;
  wait.request = &request;
  return wait;
}

void InPlace::on_handed_over(HandOver::Record& record) {
  auto& claim = static_cast<RangeLock::Claim&>(record);
  const bool own = &claim == &own_;
  const bool wants_range = own || static_cast<Wait&>(claim).step != Wait::Step::buffer;
  if (wants_range && !lock_.wait(claim, hand_over_)) {  // it has got one part, and waits for the next
    hand_over_.expect();
    return;
  }
  if (own) {
    own_state_ = Own::held;
    memory_.on_claimed();
    return;
  }
  const Wait wait = static_cast<Wait&>(claim);  // the request's place is for whoever comes next
  Progress progress = Progress::done();
  if (wait.step == Wait::Step::range) hold_range(*wait.lease);
  if (wait.step == Wait::Step::buffer) progress = buffered(*wait.lease, *wait.request);
  if (wait.step == Wait::Step::fetch) progress = fetch(*wait.lease);
  if (wait.step == Wait::Step::commit) progress = land(*wait.lease, wait.durability, *wait.request);
  if (!progress.pending) wait.request->on_store_done(progress.status);
}

}  // namespace rbt::target
