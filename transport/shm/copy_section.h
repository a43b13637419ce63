#pragma once
// The poster's half of the fence that makes revoking a region safe; the owner's half is Link and Domain::deregister().

#include <atomic>
#include <cstdint>

#include "transport/shm/ring.h"

namespace rbt::transport::shm {

/// While inside, this side may copy into and out of the peer's regions; the peer waits for leave() before it gives
/// memory away. Two stores on a line that nobody else reads, one full fence and one load per batch. One thread.
class CopySection {
 public:
  CopySection(const RingMemory& ring, unsigned side) noexcept
      : copying_(&ring.control(side).copying), fence_(&ring.control(1 - side).fence) {}

  enum class [[nodiscard]] Entry : std::uint8_t{
      open,
      behind,  ///< the peer has revoked more than we have read `revoke` messages: read the socket first
      closed,  ///< the peer has closed
  };
  Entry enter(std::uint32_t revocations_read) noexcept {
    if (inside_) return Entry::open;
    copying_->store(++count_, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // partner: Link::copying()
    const std::uint64_t word = fence_->load(std::memory_order_acquire);
    inside_ = true;
    if ((word & 1) == 0 && static_cast<std::uint32_t>(word >> 1) == revocations_read) return Entry::open;
    leave();
    return (word & 1) != 0 ? Entry::closed : Entry::behind;
  }
  void leave() noexcept {
    if (!inside_) return;
    copying_->store(++count_, std::memory_order_release);
    inside_ = false;
  }
  [[nodiscard]] bool peer_closed() const noexcept { return (fence_->load(std::memory_order_acquire) & 1) != 0; }

 private:
  std::atomic<std::uint32_t>* copying_;
  const std::atomic<std::uint64_t>* fence_;
  std::uint32_t count_ = 0;
  bool inside_ = false;
};

}  // namespace rbt::transport::shm
