#pragma once
// What happened, boiled down to one number. Nothing that depends on addresses in memory goes in.

#include <cstdint>

#include "common/clock.h"

namespace rbt::transport::sim {

enum class What : std::uint8_t {
  machine,
  group,
  listening,
  connecting,
  request,
  accepted,
  rejected,
  established,
  disconnected,
  closing,
  closed,
  posted,
  doorbell,
  request_packet,
  response_packet,
  not_ready,
  lost,
  completed,
  failed,
  delivered,
  released,
  registered,
  fault,
  action,
};

/// FNV-1a, 64 bits.
class Trace {
 public:
  void add(Instant at, What what, std::uint64_t a, std::uint64_t b, std::uint64_t c) noexcept {
    mix(static_cast<std::uint64_t>(at.time_since_epoch().count()));
    mix(static_cast<std::uint64_t>(what));
    mix(a);
    mix(b);
    mix(c);
    ++events_;
  }
  [[nodiscard]] std::uint64_t hash() const noexcept { return hash_; }
  [[nodiscard]] std::uint64_t events() const noexcept { return events_; }

 private:
  void mix(std::uint64_t value) noexcept {
    for (int i = 0; i < 8; ++i) {
      hash_ ^= value & 0xff;
      hash_ *= 0x100000001b3ULL;
      value >>= 8;
    }
  }
  std::uint64_t hash_ = 0xcbf29ce484222325ULL;
  std::uint64_t events_ = 0;
};

}  // namespace rbt::transport::sim
