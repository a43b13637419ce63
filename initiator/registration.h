#pragma once
// Which of the caller's memory the peer can reach: the session's table of registered buffers, and each queue pair's own
// copy of it, which the data path searches without a lock.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/result.h"
#include "initiator/initiator.h"
#include "transport/memory/registered_memory.h"

namespace rbt::initiator {

/// Whether memory stays registered for as long as the connection of the queue pair that uses it.
enum class Lifetime : std::uint8_t {
  callers,     ///< may be deregistered as soon as its requests are done
  connection,  ///< the queue pair's own
};

/// A run of reachable memory.
struct Reachable {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;
  std::uint32_t lkey = 0;
  std::uint32_t rkey = 0;
  Lifetime lifetime = Lifetime::callers;
};

/// The session's. Thread-safe. Outlives its buffers.
class RegistrationTable {
 public:
  [[nodiscard]] Result<std::unique_ptr<RegisteredBuffer>> add(const transport::MemorySpan& memory);
  /// From now on everything is registered with `domain`, too. Error: what could not be.
  [[nodiscard]] Result<void> add_domain(transport::ProtectionDomain& domain);
  /// Grows with every change. Pairs with the changes' release: whoever sees a new value finds them in append().
  [[nodiscard]] std::uint64_t generation() const noexcept { return generation_.load(std::memory_order_acquire); }
  /// Appends everything that `domain` can reach.
  void append(const transport::ProtectionDomain& domain, std::vector<Reachable>& out) const;
  [[nodiscard]] bool empty() const;

 private:
  class Buffer;
  void remove(Buffer& buffer) noexcept;

  std::atomic<std::uint64_t> generation_{1};
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Buffer*> buffers_;
  std::vector<transport::ProtectionDomain*> domains_;
};

/// One queue pair's copy of the table, sorted by address. One thread. Allocates only when the table has changed.
class ReachableMemory {
 public:
  ReachableMemory(const RegistrationTable& table, const transport::ProtectionDomain& domain) noexcept
      : table_(table), domain_(domain) {}
  /// Memory of the queue pair's own; before the first find().
  void add_own(transport::RegisteredMemory& memory);
  /// The run that holds all of [data, data + size); null if none does.
  [[nodiscard]] const Reachable* find(const void* data, std::size_t size);

 private:
  void refresh();

  const RegistrationTable& table_;
  const transport::ProtectionDomain& domain_;
  std::uint64_t generation_ = 0;
  std::vector<Reachable> own_;
  std::vector<Reachable> sorted_;
};

}  // namespace rbt::initiator
