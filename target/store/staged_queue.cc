#include "target/store/staged_queue.h"

#include <algorithm>

#include "common/check.h"
#include "target/store/staged_lease.h"

namespace rbt::target {

StagedQueue::~StagedQueue() {
  check(pending_ == 0, "a store queue is destroyed when nothing is pending");
  buffers_.cancel(*this);
}

// ---- a lease: a buffer of the pool ----

Progress StagedQueue::acquire(Lease& lease, StoreRequest& request) {
  if (lease.intent == Intent::write && read_only()) return Progress::done(StoreStatus::read_only);
  const std::uint64_t length = staged_bytes(lease, block_shift_);
  // Who comes later waits behind those who wait already, even if there is room for something small.
  const std::span<std::byte> buffer = waiting_for_buffer_.empty() ? buffers_.allocate(length) : std::span<std::byte>();
  if (!buffer.empty()) stage(lease, buffer, block_shift_, buffers_);
  if (!buffer.empty() && lease.intent == Intent::write) return Progress::done();
  StagedRequest& made = make_read(request);
  made.lease = &lease;
  if (!buffer.empty()) return begin(made, lease.range, Intent::read);
  made.wait = StagedRequest::Wait::buffer;
  waiting_for_buffer_.push(made);
  buffers_.wait(*this);
  return returned(made);
}

void StagedQueue::on_buffer_available() {
  while (!waiting_for_buffer_.empty()) {
    StagedRequest& request = waiting_for_buffer_.front();
    const auto buffer = buffers_.allocate(staged_bytes(*request.lease, block_shift_));
    if (buffer.empty()) {
      buffers_.wait(*this);
      return;
    }
    waiting_for_buffer_.pop();
    stage(*request.lease, buffer, block_shift_, buffers_);
    hand_over_.expect();  // it goes on in a turn, and not inside of somebody else's release()
    hand_over_.give(request);
  }
}

void StagedQueue::release(Lease& lease) noexcept {
  unstage(lease, buffers_);
}

// ---- a request: begun by a call, answered once ----

void StagedQueue::adopt(StagedRequest& record, StoreRequest& request) noexcept {
  record.request = &request;
  ++pending_;
}

Progress StagedQueue::begin(StagedRequest& request, BlockRange range, Intent intent) {
  request.left = range;
  request.intent = intent;
  if (claim_next(request)) go(request);
  return returned(request);
}

Progress StagedQueue::begin(StagedRequest& request, std::span<const BlockRange> ranges) {
  request.ranges = ranges.data();
  request.ranges_left = static_cast<std::uint32_t>(ranges.size());
  request.intent = Intent::write;
  if (next(request, StoreStatus::ok)) go(request);
  return returned(request);
}

Progress StagedQueue::begin(StagedRequest& request) {
  go(request);
  return returned(request);
}

Progress StagedQueue::returned(StagedRequest& request) noexcept {
  request.returned = true;
  if (!request.ended) return Progress::later();
  const StoreStatus status = request.status;
  forget(request);
  return Progress::done(status);
}

/// It may go on: piece after piece, until one has to be waited for.
void StagedQueue::go(StagedRequest& request) {
  while (true) {
    const Progress progress = start(request);
    if (progress.pending || !next(request, progress.status)) return;
  }
}

void StagedQueue::done(StagedRequest& request, StoreStatus status) {
  if (next(request, status)) go(request);
}

bool StagedQueue::has_more(const StagedRequest& request) noexcept {
  return request.left.count != Blocks(0) ||
         std::any_of(request.ranges, request.ranges + request.ranges_left,
                     [](const BlockRange& range) { return range.count != Blocks(0); });
}

/// The piece before has ended. True: the next one may begin. False: it waits, or has ended.
bool StagedQueue::next(StagedRequest& request, StoreStatus status) {
  if (request.has_range) lock_.release(request.range, request.intent);
  request.has_range = false;
  for (; request.left.count == Blocks(0) && request.ranges_left != 0; ++request.ranges, --request.ranges_left)
    request.left = *request.ranges;
  if (status == StoreStatus::ok && request.left.count != Blocks(0)) return claim_next(request);
  end(request, status);
  return false;
}

/// False: it waits for it.
bool StagedQueue::claim_next(StagedRequest& request) {
  const Blocks count = std::min(request.left.count, Blocks(RangeLock::kBlocksMax));
  const Intent intent = request.intent;
  RangeLock::Claim& claim = request;
  claim = {};
  claim.range = {request.left.first, count};
  claim.intent = intent;
  request.left = {claim.range.end(), Blocks(request.left.count.value() - count.value())};
  request.has_range = lock_.take(claim) || lock_.wait(claim, hand_over_);
  if (request.has_range) return true;
  request.wait = StagedRequest::Wait::range;
  hand_over_.expect();
  return false;
}

void StagedQueue::on_handed_over(HandOver::Record& record) {
  auto& request = static_cast<StagedRequest&>(record);
  switch (request.wait) {
    case StagedRequest::Wait::none: return on_back(request);
    case StagedRequest::Wait::buffer:
      request.wait = StagedRequest::Wait::none;
      if (request.lease->intent == Intent::write) return end(request, StoreStatus::ok);
      request.left = request.lease->range;
      request.intent = Intent::read;
      if (claim_next(request)) go(request);
      return;
    case StagedRequest::Wait::range:
      if (!lock_.wait(request, hand_over_)) return hand_over_.expect();  // it has one part, and waits for the next
      request.wait = StagedRequest::Wait::none;
      request.has_range = true;
      return go(request);
  }
}

void StagedQueue::end(StagedRequest& request, StoreStatus status) {
  if (status != StoreStatus::ok && request.lease != nullptr && request.lease->intent == Intent::read)
    unstage(*request.lease, buffers_);
  --pending_;
  request.status = status;
  request.ended = true;
  if (!request.returned) return;
  StoreRequest& outer = *request.request;
  forget(request);
  outer.on_store_done(status);
}

}  // namespace rbt::target
