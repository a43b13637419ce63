#pragma once
// What a wr_id of ours says. It comes back from the device, never from the wire.
//
//   receive: 1 at bit 63, buffer index below
//   send:    0 at bit 63, connection (63 to 17: number, never used twice), index in its send ring (16 to 0)

#include <cstdint>

namespace rbt::transport::verbs {

inline constexpr unsigned kRingBits = 17;
inline constexpr std::uint32_t kRingMax = 1U << kRingBits;
inline constexpr std::uint64_t kReceiveBit = std::uint64_t{1} << 63;

constexpr std::uint64_t receive_work_id(std::uint32_t index) noexcept {
  return kReceiveBit | index;
}
constexpr bool is_receive(std::uint64_t id) noexcept {
  return (id & kReceiveBit) != 0;
}
constexpr std::uint32_t receive_index(std::uint64_t id) noexcept {
  return static_cast<std::uint32_t>(id);
}

constexpr std::uint64_t send_work_id(std::uint64_t connection, std::uint32_t ring_index) noexcept {
  return connection << kRingBits | ring_index;
}
constexpr std::uint64_t send_connection(std::uint64_t id) noexcept {
  return id >> kRingBits;
}
constexpr std::uint32_t send_ring_index(std::uint64_t id) noexcept {
  return static_cast<std::uint32_t>(id) & (kRingMax - 1);
}

}  // namespace rbt::transport::verbs
