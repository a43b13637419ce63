#pragma once
// A namespace's reservations as bytes: what survives a power loss.

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "target/reservation/state.h"
#include "target/store/store.h"

namespace rbt::target {

inline constexpr std::size_t kReservationImageMax = 64 * 1024;  ///< no image is longer

struct ReservationImage {
  Identity identity{};  ///< of the namespace
  /// Nothing but the defaults if it does not persist.
  ReservationState state;
  friend bool operator==(const ReservationImage&, const ReservationImage&) = default;
};
[[nodiscard]] std::vector<std::byte> encode_reservation_image(const ReservationImage& image);
/// Errors: `mismatch`, saying what is wrong with the bytes.
[[nodiscard]] Result<ReservationImage> parse_reservation_image(std::span<const std::byte> bytes);

}  // namespace rbt::target
