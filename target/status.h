#pragma once
// From the target's own causes to what a host is told: the one place where that is decided.

#include <cstdint>

#include "common/nvme/status.h"
#include "target/store/store.h"

namespace rbt::target {

/// Of the error log's Parameter Error Location (Base 2.0, 5.16.1.2): no parameter is to blame, or more than one.
inline constexpr std::uint16_t kNotSaid = 0xffff;
/// Bit << 8 | byte of the entry that `code` always means; kNotSaid if that depends.
[[nodiscard]] std::uint16_t parameter_location(nvme::StatusCode code) noexcept;

/// The status of a command whose store operation ended with `status`.
[[nodiscard]] nvme::Status status_of(StoreStatus status) noexcept;

}  // namespace rbt::target
