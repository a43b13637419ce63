#pragma once
// The send queue of one connection: requests are queued here, handed over in one chain, and accounted for exactly.
//
// A work request occupies the device's queue until a *signaled* completion at or behind it. The consumer may never ask
// for one, so at least every `slack`-th request is signaled here, unasked, and the device's queue is `slack` longer than
// what the consumer was promised: requests that nothing will ever cover (fewer than `slack`) do not eat into the promise.

#include <infiniband/verbs.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "transport/work.h"

namespace rbt::transport::verbs {

/// One thread. No allocation after construction.
class SendQueue {
 public:
  struct Limits {
    std::uint32_t depth = 0;  ///< requests that the consumer may have outstanding
    std::uint32_t segments_max = 0;
    std::uint32_t inline_max = 0;
  };
  SendQueue(std::uint64_t connection, const Limits& limits);

  /// The device's queue that a promise of `depth` needs.
  [[nodiscard]] static constexpr std::uint32_t slack(std::uint32_t depth) noexcept {
    return depth / 4 < 1 ? 1 : (depth / 4 > 32 ? 32 : depth / 4);
  }
  [[nodiscard]] std::uint32_t capacity() const noexcept { return static_cast<std::uint32_t>(ring_.size()); }

  /// From now on requests may be handed over.
  void connect(ibv_qp* queue_pair) noexcept { queue_pair_ = queue_pair; }
  /// All or nothing. Touches the device only if the chain has no room for so many segments.
  [[nodiscard]] PostResult post(std::span<const WorkRequest> requests);
  [[nodiscard]] bool pending() const noexcept { return chained_ != 0; }
  /// Hands the chain over, if connected.
  void flush() noexcept;
  /// The errno of the first ibv_post_send that failed; 0: none has.
  [[nodiscard]] int error() const noexcept { return error_; }

  /// A completion of the request at `index`, which also covers everything before it. False: there is no such request.
  struct Retired {
    std::uint64_t wr_id = 0;
    Completion::Type type = Completion::Type::send;
    bool wanted = false;  ///< the consumer asked for a completion on success
  };
  [[nodiscard]] bool complete(std::uint32_t index, Retired& retired) noexcept;

  /// Since the last call.
  struct Counters {
    std::uint64_t requests = 0;
    std::uint64_t doorbells = 0;
    std::uint64_t bytes_copied = 0;
  };
  [[nodiscard]] Counters take_counters() noexcept { return std::exchange(counters_, {}); }

 private:
  struct Slot {
    Retired retired;
    bool signaled = false;  // by us or by the consumer
  };
  [[nodiscard]] bool room_for(std::span<const WorkRequest> requests) const noexcept;
  void append(const WorkRequest& request);
  [[nodiscard]] std::uint32_t next(std::uint32_t index) const noexcept {
    return index + 1 == capacity() ? 0 : index + 1;
  }

  Limits limits_;
  std::uint32_t slack_;
  ibv_qp* queue_pair_ = nullptr;
  int error_ = 0;
  std::vector<Slot> ring_;
  std::vector<ibv_send_wr> requests_ring_;  // constant fields set once, by position
  std::vector<ibv_sge> segments_;           // of the chain not yet handed over
  std::vector<std::byte> inline_data_;      // inline_max per position, copied by post()
  std::uint32_t head_ = 0;                  // the oldest request
  std::uint32_t tail_ = 0;                  // where the next one goes
  std::uint32_t count_ = 0;
  std::uint32_t signaled_ = 0;   // of these, signaled
  std::uint32_t uncovered_ = 0;  // requests behind the last signaled one
  std::uint32_t chain_head_ = 0;
  std::uint32_t chained_ = 0;
  std::uint32_t segments_used_ = 0;
  Counters counters_;
};

}  // namespace rbt::transport::verbs
