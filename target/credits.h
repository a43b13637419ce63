#pragma once
// Credits: what may be outstanding at a time, as an object that knows whether all of it has come back.

#include <algorithm>
#include <cstdint>

#include "common/check.h"

namespace rbt::target {

/// One reactor's, like the connection it belongs to.
class Credits {
 public:
  explicit Credits(std::uint32_t total = 0) noexcept : total_(total), free_(total) {}
  [[nodiscard]] std::uint32_t free() const noexcept { return free_; }
  [[nodiscard]] std::uint32_t total() const noexcept { return total_; }
  [[nodiscard]] bool whole() const noexcept { return free_ == total_; }
  /// `count` ≤ free().
  void take(std::uint32_t count) noexcept {
    check(count <= free_, "credits are taken only while there are some");
    free_ -= count;
  }
  void give(std::uint32_t count) noexcept {
    check(count <= total_ - free_, "no more credits come back than were taken");
    free_ += count;
  }

 private:
  std::uint32_t total_;
  std::uint32_t free_;
};

}  // namespace rbt::target
