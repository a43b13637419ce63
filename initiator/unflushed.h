#pragma once
// Writes that a target may forget: what was acknowledged and not flushed since, in order, to be written again.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/result.h"
#include "initiator/queue_pair.h"
#include "transport/memory/shared_memory.h"

namespace rbt::initiator {

/// A ring of writes in order of submission, with their data. A request has one entry, a discard one per range. Allocates
/// nothing after create(). One thread.
class UnflushedWrites {
 public:
  static constexpr std::size_t kRangesMax = 256;
  struct Entry {
    enum class State : std::uint8_t {
      reserved,  ///< submitted; whether it happened is not known
      kept,      ///< acknowledged
      void_,     ///< failed, or durable
    };
    State state = State::void_;
    Operation operation = Operation::write;
    nvme::Deallocate deallocate = nvme::Deallocate::no;
    BlockRange range;
    std::uint64_t position = 0;  // of the data, in bytes since the beginning of time
    std::uint64_t bytes = 0;
    std::uint64_t acknowledged = 0;  // a number that grows in order of acknowledgement, over all lanes
  };
  /// Of one request: sequence numbers from `first` on.
  struct Reservation {
    std::uint64_t first = 0;
    std::uint32_t count = 0;
  };

  [[nodiscard]] static Result<UnflushedWrites> create(Bytes size);

  /// Room for a write, write_zeroes or discard, and a copy of its data. Nothing: there is none before some entry is durable.
  [[nodiscard]] std::optional<Reservation> reserve(const Request& request);
  /// `acknowledged`: greater than that of any write that had been answered when this one was submitted. keep()'s caller
  /// gives one to each.
  void keep(const Reservation& reservation, std::uint64_t acknowledged) noexcept;
  void drop(const Reservation& reservation) noexcept;

  /// A flush has succeeded that covers what was acknowledged up to this.
  void flushed(std::uint64_t covered) noexcept;

  /// Entries in order of submission: sequence numbers from first() to end(), exclusively.
  [[nodiscard]] std::uint64_t first() const noexcept { return first_; }
  [[nodiscard]] std::uint64_t end() const noexcept { return next_; }
  [[nodiscard]] const Entry& at(std::uint64_t sequence) const noexcept { return entries_[sequence % entries_.size()]; }
  [[nodiscard]] std::span<std::byte> data(const Entry& entry) const noexcept;

  [[nodiscard]] bool keeps_any() const noexcept;  ///< that was acknowledged
  [[nodiscard]] std::uint64_t bytes() const noexcept { return tail_ - head_; }
  [[nodiscard]] bool half_full() const noexcept {
    return bytes() > memory_.size() / 2 || next_ - first_ > entries_.size() / 2;
  }
  [[nodiscard]] Bytes request_max() const noexcept { return Bytes(memory_.size() / 4); }
  [[nodiscard]] const transport::MemorySpan& memory() const noexcept { return memory_.span(); }

 private:
  UnflushedWrites(transport::SharedMemory memory, std::size_t entries)
      : memory_(std::move(memory)), entries_(entries) {}
  [[nodiscard]] Entry& entry(std::uint64_t sequence) noexcept { return entries_[sequence % entries_.size()]; }
  void pop_void() noexcept;

  transport::SharedMemory memory_;
  std::vector<Entry> entries_;
  std::uint64_t first_ = 0;
  std::uint64_t next_ = 0;
  std::uint64_t head_ = 0;
  std::uint64_t tail_ = 0;
  std::uint64_t covered_ = 0;  // as flushed() was told last
};

}  // namespace rbt::initiator
