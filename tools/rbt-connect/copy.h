#pragma once
// Moving everything from one endpoint to another, with several transfers in flight.

#include <cstdint>

#include "common/clock.h"
#include "common/result.h"
#include "tools/program/interrupt.h"
#include "tools/rbt-connect/endpoint.h"

namespace rbt::tools {

struct CopyOptions {
  std::uint32_t depth = 8;         ///< transfers in flight
  std::uint32_t chunk = 1U << 20;  ///< bytes each
  bool verify = false;             ///< read everything back and compare checksums
};

struct CopyResult {
  std::uint64_t bytes = 0;        ///< from begin to end
  std::uint64_t transferred = 0;  ///< of these, moved as data
  std::uint64_t zeroes = 0;       ///< of these, holes or zeroes that were not moved
  std::uint64_t verified = 0;     ///< bytes read back and found right
  Duration elapsed{};
};

/// Copies all of `source` to the start of `destination`; what lies behind it is left alone (a file ends there). The last
/// block is filled with zeroes if the source ends within it. `reactor` is both sides'. Error: the first that happened, or
/// interrupted.
[[nodiscard]] Result<CopyResult> copy(Endpoint& source, Endpoint& destination, const CopyOptions& options,
                                      transport::Reactor& reactor, const Interrupt& interrupt);

}  // namespace rbt::tools
