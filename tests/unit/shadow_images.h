#pragma once
// Shadow images, small ones, in files and in memory.

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "store_rig.h"
#include "target/store/identity.h"
#include "target/store/map_store.h"
#include "target/store/shadow_image.h"

namespace rbt::target::test {

inline ShadowLayout layout_of(std::uint64_t blocks, std::uint64_t landing, std::uint32_t block_size = 512) {
  Random random(5);
  return {BlockShift::of(block_size).value(), Blocks(blocks), Blocks(landing), fresh_identity(random)};
}

/// As --convert-image makes them out of zeroes.
inline std::vector<std::byte> empty_image(const ShadowLayout& layout) {
  std::vector<std::byte> bytes(layout.size());
  const ShadowHeader header = encode_header(layout);
  std::copy(header.begin(), header.end(), bytes.begin());
  return bytes;
}

/// A memfd that holds an image; mapped by us, too.
struct ImageInMemory {
  explicit ImageInMemory(std::span<const std::byte> bytes)
      : fd(::memfd_create("image", MFD_ALLOW_SEALING | MFD_CLOEXEC)), path("/proc/self/fd/" + std::to_string(fd)) {
    REQUIRE(fd >= 0);
    REQUIRE(::ftruncate(fd, static_cast<::off_t>(bytes.size())) == 0);
    void* const address = ::mmap(nullptr, bytes.size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(address != MAP_FAILED);
    memory = {static_cast<std::byte*>(address), bytes.size()};
    std::memcpy(memory.data(), bytes.data(), bytes.size());
  }
  ~ImageInMemory() {
    ::munmap(memory.data(), memory.size());
    ::close(fd);
  }
  ImageInMemory(const ImageInMemory&) = delete;
  ImageInMemory& operator=(const ImageInMemory&) = delete;
  int fd;
  std::string path;
  std::span<std::byte> memory;
};

}  // namespace rbt::target::test
