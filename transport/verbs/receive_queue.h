#pragma once
// The receive buffers of one poll group on one device, in one shared receive queue.

#include <infiniband/verbs.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "common/log.h"
#include "common/result.h"
#include "transport/fabric.h"
#include "transport/memory/shared_memory.h"
#include "transport/verbs/device.h"

namespace rbt::transport::verbs {

/// Each buffer is in one place at a time: with the device, with the consumer, or waiting to be posted again. One thread.
class ReceiveQueue {
 public:
  static constexpr std::uint32_t kBuffersMax = 1U << 24;

  /// As many buffers as `options` wishes or the device allows, all posted. `buffer_id_base` is added to every buffer id.
  [[nodiscard]] static Result<std::unique_ptr<ReceiveQueue>> create(Device& device, const PollGroupOptions& options,
                                                                    std::uint32_t buffer_id_base, Logger& logger);
  ~ReceiveQueue();
  ReceiveQueue(const ReceiveQueue&) = delete;
  ReceiveQueue& operator=(const ReceiveQueue&) = delete;

  [[nodiscard]] ibv_srq* handle() const noexcept { return queue_; }
  [[nodiscard]] std::uint32_t depth() const noexcept { return static_cast<std::uint32_t>(buffers_.size()); }

  /// The device has filled buffer `index`: the consumer's until release().
  [[nodiscard]] ReceivedMessage lend(std::uint32_t index, std::uint32_t bytes) noexcept;
  void release(std::uint32_t index) noexcept;
  /// The device is through with buffer `index` and nobody wants what is in it.
  void recycle(std::uint32_t index) noexcept;
  /// True if `index`, from a completion's wr_id, names a buffer that the device has.
  [[nodiscard]] bool with_device(std::uint32_t index) const noexcept {
    return index < buffers_.size() && buffers_[index].place == Place::device;
  }
  [[nodiscard]] bool exhausted() const noexcept { return posted_ == 0; }

  /// Posts everything that waits, one call.
  void flush();
  [[nodiscard]] bool dirty() const noexcept { return first_waiting_ != nullptr; }

  // A queue pair of rxe that dies in the middle of a message keeps that message's buffer and never completes it (the
  // specification wants it flushed). What was kept is known from two facts: the device takes buffers in the order they
  // were posted, their turns, and a queue pair has one at a time.

  /// When buffer `index` was posted, counted in buffers.
  [[nodiscard]] std::uint64_t turn(std::uint32_t index) const noexcept { return buffers_[index].turn; }
  /// The latest turn completed.
  [[nodiscard]] std::uint64_t last_turn() const noexcept { return last_turn_; }
  /// Takes back what every living queue pair has left behind: each has completed a buffer of turn `before` or later, or
  /// was made when one had been. Returns how many buffers there were.
  std::size_t reclaim(std::uint64_t before) noexcept;
  /// For when no queue pair uses the queue and its completions are polled: everything comes back, in a new queue.
  [[nodiscard]] Result<void> renew();

 private:
  enum class Place : std::uint8_t { device, consumer, waiting };
  struct Buffer {
    ibv_recv_wr request{};
    ibv_sge segment{};
    std::uint64_t turn = 0;  // when it was posted; the device takes buffers in this order
    Place place = Place::waiting;
  };
  ReceiveQueue(Device& device, Logger& logger, std::uint32_t buffer_id_base);
  [[nodiscard]] Result<void> create_queue();
  void wait(Buffer& buffer) noexcept;
  void taken(const Buffer& buffer) noexcept;

  Device& device_;
  Logger& logger_;
  std::uint32_t buffer_id_base_;
  std::size_t stride_ = 0;
  SharedMemory memory_;
  std::unique_ptr<MemoryRegion> region_;
  ibv_srq* queue_ = nullptr;
  std::vector<Buffer> buffers_;
  ibv_recv_wr* first_waiting_ = nullptr;
  ibv_recv_wr* last_waiting_ = nullptr;
  std::uint32_t posted_ = 0;
  std::uint64_t turns_ = 0;
  std::uint64_t last_turn_ = 0;
};

}  // namespace rbt::transport::verbs
