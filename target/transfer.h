#pragma once
// Cuts one transfer between local segments and the host's memory into work requests that fit the connection.

#include <array>
#include <cstdint>
#include <span>

#include "transport/connection.h"
#include "transport/work.h"

namespace rbt::target {

/// Work requests on their way into one post(): they live on the stack of whoever posts.
class Batch {
 public:
  static constexpr std::uint32_t kRequestsMax = 8;
  static constexpr std::uint32_t kSegmentsMax = 32;

  [[nodiscard]] std::uint32_t size() const noexcept { return requests_used_; }
  [[nodiscard]] std::span<const transport::WorkRequest> requests() const noexcept {
    return {requests_.data(), requests_used_};
  }
  [[nodiscard]] std::uint32_t requests_free() const noexcept { return kRequestsMax - requests_used_; }
  [[nodiscard]] std::uint32_t segments_free() const noexcept { return kSegmentsMax - segments_used_; }
  /// requests_free() > 0 and segments_free() > 0, else a bug. Unsignaled.
  transport::WorkRequest& add(transport::Opcode opcode) noexcept;
  /// Appends to the last request's segments.
  void add_segment(const transport::Segment& segment) noexcept;
  /// The last request completes for all of them; every one carries `wr_id`, in case it fails.
  void finish(std::uint64_t wr_id) noexcept;

 private:
  std::array<transport::WorkRequest, kRequestsMax> requests_;
  std::array<transport::Segment, kSegmentsMax> segments_;
  std::uint32_t requests_used_ = 0;
  std::uint32_t segments_used_ = 0;
};

/// What is left of one transfer. A value type.
class Transfer {
 public:
  Transfer() noexcept = default;
  /// The first `bytes` of `segments` (which hold at least that many and outlive the transfer) from or to the host's
  /// memory at `remote_address`, key `rkey`.
  Transfer(std::span<const transport::Segment> segments, std::uint64_t bytes, std::uint64_t remote_address,
           std::uint32_t rkey) noexcept
      : segments_(segments), left_(bytes), remote_address_(remote_address), rkey_(rkey) {}

  [[nodiscard]] bool done() const noexcept { return left_ == 0; }
  /// Adds at most `requests_max` work requests, each within `limits`; fewer if the batch is full.
  void fill(Batch& batch, transport::Opcode opcode, const transport::ConnectionLimits& limits,
            std::uint32_t requests_max) noexcept;

 private:
  void fill_one(Batch& batch, transport::Opcode opcode, const transport::ConnectionLimits& limits) noexcept;
  std::span<const transport::Segment> segments_;
  std::uint32_t offset_ = 0;  // into segments_.front()
  std::uint64_t left_ = 0;
  std::uint64_t remote_address_ = 0;
  std::uint32_t rkey_ = 0;
};

}  // namespace rbt::target
