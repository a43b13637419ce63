#include "target/transfer.h"

#include <algorithm>

#include "common/check.h"

namespace rbt::target {

using transport::ConnectionLimits;
using transport::Opcode;
using transport::Segment;
using transport::WorkRequest;

WorkRequest& Batch::add(Opcode opcode) noexcept {
  check(requests_used_ < kRequestsMax, "a batch has room for the request");
  WorkRequest& request = requests_[requests_used_++];
  request = WorkRequest{};
  request.opcode = opcode;
  request.signaled = false;
  request.segments = {segments_.data() + segments_used_, 0};
  return request;
}

void Batch::add_segment(const Segment& segment) noexcept {
  check(segments_used_ < kSegmentsMax, "a batch has room for the segment");
  segments_[segments_used_++] = segment;
  WorkRequest& request = requests_[requests_used_ - 1];
  request.segments = {request.segments.data(), request.segments.size() + 1};
}

void Batch::finish(std::uint64_t wr_id) noexcept {
  check(requests_used_ > 0, "a batch is not empty");
  for (WorkRequest& request : std::span(requests_.data(), requests_used_))
    request.wr_id = wr_id;
  requests_[requests_used_ - 1].signaled = true;
}

void Transfer::fill(Batch& batch, Opcode opcode, const ConnectionLimits& limits, std::uint32_t requests_max) noexcept {
  std::uint32_t room = std::min(requests_max, batch.requests_free());
  for (; room > 0 && left_ > 0 && batch.segments_free() > 0; --room)
    fill_one(batch, opcode, limits);
}

void Transfer::fill_one(Batch& batch, Opcode opcode, const ConnectionLimits& limits) noexcept {
  WorkRequest& request = batch.add(opcode);
  request.rkey = rkey_;
  request.remote_address = remote_address_;
  const std::uint32_t segments_max = std::min(limits.segments_max, batch.segments_free());
  std::uint64_t room = std::min(left_, limits.message_max);
  for (std::uint32_t used = 0; used < segments_max && room > 0; ++used) {
    check(!segments_.empty(), "a transfer's segments hold all of its bytes");
    const Segment& segment = segments_.front();
    const auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(segment.length - offset_, room));
    batch.add_segment({segment.data + offset_, length, segment.lkey});
    room -= length;
    left_ -= length;
    remote_address_ += length;
    offset_ += length;
    if (offset_ == segment.length) {
      segments_ = segments_.subspan(1);
      offset_ = 0;
    }
  }
}

}  // namespace rbt::target
