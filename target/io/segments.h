#pragma once
// A lease's memory as one run of bytes, for commands that look at blocks themselves. `data` is as long as the segments.

#include <cstddef>
#include <cstring>
#include <span>

#include "common/check.h"
#include "transport/work.h"

namespace rbt::target {

/// each(segment's bytes, data's bytes of that place) in order, until it says false; whether it never did.
template <typename Byte, typename Each>
bool for_each_segment(std::span<const transport::Segment> segments, std::span<Byte> data, Each each) {
  for (const transport::Segment& segment : segments) {
    check(segment.length <= data.size(), "a lease holds no more than its range");
    if (!each(std::span(segment.data, segment.length), data.first(segment.length))) return false;
    data = data.subspan(segment.length);
  }
  check(data.empty(), "a lease holds all of its range");
  return true;
}

[[nodiscard]] inline bool same(std::span<const transport::Segment> segments, std::span<const std::byte> data) {
  return for_each_segment(segments, data, [](std::span<std::byte> blocks, std::span<const std::byte> wanted) {
    return std::memcmp(blocks.data(), wanted.data(), wanted.size()) == 0;
  });
}

inline void copy_out(std::span<const transport::Segment> segments, std::span<std::byte> data) {
  for_each_segment(segments, data, [](std::span<std::byte> blocks, std::span<std::byte> to) {
    return std::memcpy(to.data(), blocks.data(), to.size()), true;
  });
}

inline void copy_in(std::span<const transport::Segment> segments, std::span<const std::byte> data) {
  for_each_segment(segments, data, [](std::span<std::byte> blocks, std::span<const std::byte> from) {
    return std::memcpy(blocks.data(), from.data(), from.size()), true;
  });
}

}  // namespace rbt::target
