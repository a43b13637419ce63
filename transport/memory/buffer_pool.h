#pragma once
// Registered buffers for transfers that cannot go straight into their place: one per reactor, sized once.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/result.h"
#include "common/units.h"
#include "transport/memory/registered_memory.h"
#include "transport/memory/shared_memory.h"

namespace rbt::transport {

/// Told when memory has come back, in the order of asking. One thread.
class BufferWaiter {
 public:
  virtual ~BufferWaiter() = default;
  /// Try to allocate again now. Taking nothing, or calling wait() again, is allowed.
  virtual void on_buffer_available() = 0;

 private:
  friend class BufferPool;
  BufferWaiter* next_waiter_ = nullptr;
  bool waiting_ = false;
};

/// A buddy allocator over one SharedMemory: blocks of 4 KiB to `kBlockMax`, aligned to their size, contiguous.
/// One thread. No heap allocation after create().
class BufferPool {
 public:
  static constexpr std::size_t kBlockMin = 4096;
  static constexpr std::size_t kBlockMax = std::size_t{2} << 20;

  /// `size` is rounded up to a multiple of kBlockMax.
  [[nodiscard]] static Result<std::unique_ptr<BufferPool>> create(Bytes size, RemoteAccess access,
                                                                  const SharedMemory::Options& options);

  /// At least `size` bytes (1 to kBlockMax), rounded up to a power of two. Empty span: nothing free, or others have
  /// waited longer; then wait().
  [[nodiscard]] std::span<std::byte> allocate(std::size_t size) noexcept;
  /// `block` exactly as allocate() returned it. May call waiters.
  void free(std::span<std::byte> block) noexcept;
  /// Calls `waiter` once when there may be room. Asking twice is asking once.
  void wait(BufferWaiter& waiter) noexcept;
  void cancel(BufferWaiter& waiter) noexcept;

  [[nodiscard]] RegisteredMemory& memory() noexcept { return registered_; }
  [[nodiscard]] Bytes free_bytes() const noexcept { return Bytes(free_bytes_); }
  [[nodiscard]] Bytes size() const noexcept { return Bytes(arena_.size()); }

 private:
  BufferPool(SharedMemory arena, RemoteAccess access);
  static constexpr unsigned kOrders = 10;  // 4 KiB << 9 = 2 MiB
  struct Link {                            // one per 4 KiB frame, outside the buffers themselves
    std::uint32_t next = kNone;
    std::uint32_t previous = kNone;
    std::uint8_t free_order = kOrders;  // kOrders: not the head of a free block
  };
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  void push(unsigned order, std::uint32_t frame) noexcept;
  void unlink(unsigned order, std::uint32_t frame) noexcept;
  void wake_waiters() noexcept;

  SharedMemory arena_;
  RegisteredMemory registered_;
  std::vector<Link> frames_;
  std::array<std::uint32_t, kOrders> free_;
  std::uint64_t free_bytes_ = 0;
  BufferWaiter* first_waiter_ = nullptr;
  BufferWaiter* last_waiter_ = nullptr;
  bool serving_waiters_ = false;
};

}  // namespace rbt::transport
