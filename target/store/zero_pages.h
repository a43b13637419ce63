#pragma once
// Zeroes to write that take up no memory.

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <string_view>
#include <utility>

#include "common/result.h"
#include "common/units.h"

namespace rbt::target {

/// Private, anonymous, read-only: every page of it is the kernel's one page of zeroes.
class ZeroPages {
 public:
  static constexpr std::size_t kSize = kMiB;
  [[nodiscard]] static Result<ZeroPages> create(std::string_view spec) {
    void* const mapped = ::mmap(nullptr, kSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return errno_failure(errno, fmt::format("store '{}': mapping 1 MiB of zeroes", spec));
    return ZeroPages(static_cast<std::byte*>(mapped));
  }
  ZeroPages(ZeroPages&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  ZeroPages& operator=(ZeroPages&&) = delete;
  ~ZeroPages() {
    if (data_ != nullptr) ::munmap(data_, kSize);
  }
  /// Not const, as what is written from is given as what is read into; a write there faults.
  [[nodiscard]] std::byte* data() const noexcept { return data_; }

 private:
  explicit ZeroPages(std::byte* data) noexcept : data_(data) {}
  std::byte* data_;
};

}  // namespace rbt::target
