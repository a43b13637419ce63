#pragma once
// Work requests that were posted and are not carried out yet.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "transport/work.h"

namespace rbt::transport::shm {

/// A copy of a WorkRequest: four cache lines, of which a usual one touches the first.
struct alignas(64) QueuedRequest {
  static constexpr std::size_t kSegmentsMax = 13;
  static constexpr std::size_t kInlineMax = kSegmentsMax * sizeof(Segment);

  Opcode opcode = Opcode::send;
  bool signaled = true;
  bool copied = false;     ///< its data is in `data`, else `segments` say where
  bool malformed = false;  ///< our own defect: completes with local_error
  std::uint32_t segment_count = 0;
  std::uint32_t rkey = 0;
  std::uint32_t length = 0;  ///< of all segments
  std::uint32_t done = 0;    ///< bytes moved in earlier turns
  std::uint64_t remote_address = 0;
  std::uint64_t wr_id = 0;
  union {
    std::array<Segment, kSegmentsMax> segments;
    std::array<std::byte, kInlineMax> data;
  };

  QueuedRequest() noexcept : data{} {}

  void assign(const WorkRequest& request, std::uint64_t message_max) noexcept {
    opcode = request.opcode;
    signaled = request.signaled;
    copied = request.copy_data && request.opcode != Opcode::rdma_read;
    malformed = false;
    rkey = request.rkey;
    done = 0;
    remote_address = request.remote_address;
    wr_id = request.wr_id;
    segment_count = 0;
    std::uint64_t total = 0;
    for (const Segment& segment : request.segments)
      total += segment.length;
    length = static_cast<std::uint32_t>(std::min<std::uint64_t>(total, ~std::uint32_t{0}));
    if (total > message_max || request.segments.size() > kSegmentsMax || (copied && total > kInlineMax)) {
      malformed = true;
      return;
    }
    if (copied) {
      std::size_t at = 0;
      for (const Segment& segment : request.segments) {
        if (segment.length != 0) std::memcpy(data.data() + at, segment.data, segment.length);
        at += segment.length;
      }
      return;
    }
    std::copy(request.segments.begin(), request.segments.end(), segments.begin());
    segment_count = static_cast<std::uint32_t>(request.segments.size());
  }
};
static_assert(sizeof(QueuedRequest) == 256);

/// A ring of them, sized once. One thread.
class SendQueue {
 public:
  explicit SendQueue(std::uint32_t depth) : requests_(std::bit_ceil(depth)) {}
  [[nodiscard]] bool empty() const noexcept { return head_ == tail_; }
  [[nodiscard]] QueuedRequest& front() noexcept { return requests_[head_ & (requests_.size() - 1)]; }
  void pop() noexcept { ++head_; }
  /// The caller has made sure that there is room.
  QueuedRequest& push() noexcept { return requests_[tail_++ & (requests_.size() - 1)]; }
  void clear() noexcept { head_ = tail_; }

 private:
  std::vector<QueuedRequest> requests_;
  std::uint64_t head_ = 0;
  std::uint64_t tail_ = 0;
};

}  // namespace rbt::transport::shm
