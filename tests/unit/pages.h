#pragma once
// Memory for tests that take it away and map it again.

#include <sys/mman.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cstddef>

namespace rbt::test {

inline constexpr std::size_t kPage = 4096;

/// Anonymous memory far below where mmap() puts what other threads ask for: an unmapped page stays unmapped until the test maps it
/// again.
class Pages {
 public:
  explicit Pages(std::size_t count) : size_(count * kPage) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void* at = ::mmap(nullptr, size_, PROT_NONE, flags, -1, 0);
    auto* far = static_cast<std::byte*>(at) - (std::size_t{64} << 30);
    ::munmap(at, size_);
    do
      at = ::mmap(far -= kPage << 20, size_, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, -1, 0);
    while (at == MAP_FAILED && errno == EEXIST);
    REQUIRE(at != MAP_FAILED);
    data_ = static_cast<std::byte*>(at);
  }
  ~Pages() { unmap(); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  void unmap() { ::munmap(data_, size_); }
  void map_again() {
    REQUIRE(::mmap(data_, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == data_);
  }
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_;
};

}  // namespace rbt::test
