#pragma once
// Bytes that nobody shall find in memory later.

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace rbt::auth {

/// Overwrites, in a way that no compiler leaves out.
void wipe(std::span<std::byte> bytes) noexcept;

/// Owns bytes and wipes them at its end. Never grows, so no copy is left behind.
class Wiped {
 public:
  Wiped() noexcept = default;
  explicit Wiped(std::size_t size) : bytes_(size) {}
  ~Wiped() { wipe(bytes_); }
  Wiped(Wiped&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Wiped& operator=(Wiped&& other) noexcept {
    wipe(bytes_);
    bytes_ = std::exchange(other.bytes_, {});
    return *this;
  }
  Wiped(const Wiped&) = delete;
  Wiped& operator=(const Wiped&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() noexcept { return bytes_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace rbt::auth
