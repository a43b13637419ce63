#pragma once
// The completion queues of one poll group on one device: usually one; more when a device's queues are too small.

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/log.h"
#include "common/result.h"
#include "transport/verbs/device.h"

namespace rbt::transport::verbs {

/// Queues that share one completion channel. A queue never overflows: queue pairs get entries for everything they could
/// complete, or they are not made. One thread.
class CompletionQueues {
 public:
  /// `receives` completions of the shared receive queue may lie in any of the queues, beside those reserved.
  [[nodiscard]] static Result<std::unique_ptr<CompletionQueues>> create(Device& device, std::uint32_t receives,
                                                                        int vector, Logger& logger);
  ~CompletionQueues();
  CompletionQueues(const CompletionQueues&) = delete;
  CompletionQueues& operator=(const CompletionQueues&) = delete;

  /// Room for `entries` send completions of one queue pair: a queue that has it, grown or made if need be.
  /// Error: `resource`, with what was wanted and what the device allows.
  [[nodiscard]] Result<ibv_cq*> reserve(std::uint32_t entries);
  void unreserve(ibv_cq* queue, std::uint32_t entries) noexcept;

  /// Takes completions from one queue after the other. 0: all were empty.
  [[nodiscard]] std::size_t poll(std::span<ibv_wc> completions) noexcept;

  /// The next completion will make descriptor() readable. Those that are there already need not: poll() once more.
  /// False: this could not be asked for.
  [[nodiscard]] bool arm() noexcept;
  [[nodiscard]] int descriptor() const noexcept { return channel_->fd; }
  /// Takes the events that made it readable. Returns how many.
  std::size_t take_events() noexcept;

 private:
  struct Queue {
    ibv_cq* handle = nullptr;
    std::uint32_t entries = 0;   // as the device made it
    std::uint32_t reserved = 0;  // send completions promised
    unsigned unacknowledged = 0;
    bool armed = false;
  };
  CompletionQueues(Device& device, std::uint32_t receives, int vector, Logger& logger);
  [[nodiscard]] Result<void> add(std::uint32_t entries);
  [[nodiscard]] bool grow(Queue& queue, std::uint32_t entries) noexcept;

  Device& device_;
  Logger& logger_;
  std::uint32_t receives_;
  int vector_;
  ibv_comp_channel* channel_ = nullptr;
  std::vector<std::unique_ptr<Queue>> queues_;  // cq_context points to its Queue
  std::size_t next_ = 0;                        // where poll() goes on
};

}  // namespace rbt::transport::verbs
