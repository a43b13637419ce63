#pragma once
// A program that links counting_allocator.cc has a global operator new that counts.

#include <cstdint>

namespace rbt::test {

/// Calls of operator new so far, in any thread.
[[nodiscard]] std::uint64_t allocations() noexcept;
[[nodiscard]] std::uint64_t allocations_of_this_thread() noexcept;

}  // namespace rbt::test
