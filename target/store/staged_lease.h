#pragma once
// Leases of stores that answer with a buffer of the pool.

#include <cstdint>
#include <span>

#include "common/check.h"
#include "target/store/lease_memory.h"
#include "target/store/store.h"

namespace rbt::target {

/// Bytes of the lease's range; at most what the pool gives in one piece.
inline std::uint64_t staged_bytes(const Lease& lease, BlockShift shift) noexcept {
  const std::uint64_t bytes = lease.range.count.value() << shift.value();
  check(bytes > 0 && bytes <= transport::BufferPool::kBlockMax, "a lease is at most as long as the geometry says");
  return bytes;
}

/// The lease holds `buffer`, which came from `buffers` for staged_bytes().
inline void stage(Lease& lease, std::span<std::byte> buffer, BlockShift shift,
                  transport::BufferPool& buffers) noexcept {
  const auto bytes = static_cast<std::uint32_t>(staged_bytes(lease, shift));
  lease.few[0] = {buffer.data(), bytes, lease_key(buffers.memory(), lease)};
  lease.segments = {lease.few.data(), 1};
  lease.token = buffer.size();
}

inline void unstage(Lease& lease, transport::BufferPool& buffers) noexcept {
  const std::span buffer(lease.few[0].data, lease.token);
  lease.segments = {};
  buffers.free(buffer);
}

}  // namespace rbt::target
