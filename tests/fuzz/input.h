#pragma once
// What every fuzz target needs: the input as bytes, and a way to say that a property does not hold.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "common/check.h"
#include "common/nvme/capsule.h"

namespace rbt::fuzz {

inline std::span<const std::byte> bytes(const std::uint8_t* data, std::size_t size) noexcept {
  return std::as_bytes(std::span(data, size));
}
inline std::string_view text(const std::uint8_t* data, std::size_t size) noexcept {
  return {reinterpret_cast<const char*>(data), size};
}

/// The submission queue entry at the start of the input, filled up with zeroes if the input is shorter.
inline nvme::SubmissionQueueEntry entry(std::span<const std::byte> input) noexcept {
  nvme::SubmissionQueueEntry sqe;
  std::memcpy(&sqe, input.data(), std::min(input.size(), sizeof(sqe)));
  return sqe;
}
/// What follows the entry.
inline std::span<const std::byte> behind_entry(std::span<const std::byte> input) noexcept {
  return input.subspan(std::min(input.size(), sizeof(nvme::SubmissionQueueEntry)));
}

}  // namespace rbt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
