#pragma once
// Sizes and durations as people write and read them.

#include <string>
#include <string_view>

#include "common/result.h"
#include "common/units.h"

namespace rbt {

/// "512", "4k", "4KiB", "1.5TiB", "64 M": k, M, G, T, P and E, with or without "iB", either case; all are
/// powers of 1024. "B" alone is bytes. "GB" and its like are refused, because people disagree about what they
/// mean. The result must be a whole number of bytes below 2^64. Error: invalid_argument.
[[nodiscard]] Result<Bytes> parse_size(std::string_view text);

/// "250us", "5ms", "1.5s", "2min", "1h", "0": ns, us, ms, s, min (or m), h. A number other than 0 needs its
/// unit. Up to 6 decimals, cut to whole nanoseconds; up to 2^63 - 1 ns (292 years). Error: invalid_argument.
[[nodiscard]] Result<Duration> parse_duration(std::string_view text);

/// "512 B", "4 KiB", "1.5 TiB": at most two decimals, rounded down. parse_size() reads it back.
[[nodiscard]] std::string format_bytes(Bytes size);

/// "250 us", "1.5 s", "-5 ms": at most two decimals, cut.
[[nodiscard]] std::string format_duration(Duration duration);

}  // namespace rbt
