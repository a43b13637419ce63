#pragma once
// A shared receive queue: a fixed number of buffers, each free, being filled, or lent to the consumer.

#include <cstdint>
#include <memory>
#include <vector>

#include "transport/sim/agenda.h"
#include "transport/sim/fifo.h"
#include "transport/sim/memory.h"
#include "transport/work.h"

namespace rbt::transport::sim {

class World;
struct Device;

class ReceiveQueue {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  ReceiveQueue(World& world, Device& device, std::uint32_t depth, std::uint32_t size);
  ~ReceiveQueue();
  ReceiveQueue(const ReceiveQueue&) = delete;
  ReceiveQueue& operator=(const ReceiveQueue&) = delete;

  /// A buffer for a message that begins to arrive, or kNone.
  [[nodiscard]] std::uint32_t take() noexcept;
  [[nodiscard]] std::byte* data(std::uint32_t buffer) noexcept { return memory_.get() + std::size_t{buffer} * size_; }
  /// The message is complete and goes to the consumer.
  [[nodiscard]] ReceivedMessage lend(std::uint32_t buffer, std::uint32_t length, std::uint32_t buffer_id) noexcept;
  /// Back from the consumer (`lent`) or from a message that was never completed.
  void give_back(std::uint32_t buffer);
  /// Wakes this queue pair at the next give_back(): a sender that retries for ever.
  void park(ActorId sender) { parked_.push_back(sender); }
  [[nodiscard]] bool any_free() const noexcept { return !free_.empty(); }
  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }
  [[nodiscard]] std::uint32_t lent() const noexcept { return lent_; }

 private:
  enum class State : std::uint8_t { free, filling, lent };
  World& world_;
  std::uint32_t depth_;
  std::uint32_t size_;
  std::unique_ptr<std::byte[]> memory_;
  std::uint32_t key_;
  std::vector<State> states_;
  Fifo<std::uint32_t> free_;
  std::vector<ActorId> parked_;
  std::uint32_t lent_ = 0;
};

}  // namespace rbt::transport::sim
