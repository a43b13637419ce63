#pragma once
// Real files for store tests, gone at the end of the scope.

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace rbt::target::test {

/// A directory of its own, below $TMPDIR or the build directory: on a disk, not on a tmpfs.
class TemporaryDirectory {
 public:
  TemporaryDirectory() : TemporaryDirectory(usual_parent()) {}
  explicit TemporaryDirectory(const std::string& parent) {
    std::string name = parent + "/store-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryDirectory() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  /// A sparse file of `size` bytes.
  [[nodiscard]] std::string make(const std::string& name, std::uint64_t size) const {
    const std::string made = file(name);
    { const std::ofstream create(made); }
    std::filesystem::resize_file(made, size);
    return made;
  }
  /// False: this user may not mount.
  [[nodiscard]] bool mount(const char* type, const char* options) {
    mounted_ = ::mount("rbt-test", path_.c_str(), type, 0, options) == 0;
    return mounted_;
  }

 private:
  [[nodiscard]] static std::string usual_parent() {
    const char* const parent = std::getenv("TMPDIR");
    return parent != nullptr ? std::string(parent) : std::filesystem::current_path().string();
  }
  std::string path_;
  bool mounted_ = false;
};

/// A loop device over a file. `path` is empty where this user gets none.
class LoopDevice {
 public:
  explicit LoopDevice(const std::string& backing) {
    const int control = ::open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    const int file = ::open(backing.c_str(), O_RDWR | O_CLOEXEC);
    const int number = control < 0 ? -1 : ::ioctl(control, LOOP_CTL_GET_FREE);
    if (number >= 0 && file >= 0) {
      const std::string name = "/dev/loop" + std::to_string(number);
      device_ = ::open(name.c_str(), O_RDWR | O_CLOEXEC);
      if (device_ >= 0 && ::ioctl(device_, LOOP_SET_FD, file) == 0) path = name;
    }
    for (const int fd : {control, file})
      if (fd >= 0) ::close(fd);
  }
  ~LoopDevice() {
    if (!path.empty()) ::ioctl(device_, LOOP_CLR_FD);
    if (device_ >= 0) ::close(device_);
  }
  /// The backing file is longer or shorter than it was.
  void take_new_size() const { REQUIRE(::ioctl(device_, LOOP_SET_CAPACITY) == 0); }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  std::string path;

 private:
  int device_ = -1;
};

inline std::uint64_t allocated_bytes(const std::string& path) {
  struct stat about {};
  REQUIRE(::stat(path.c_str(), &about) == 0);
  return static_cast<std::uint64_t>(about.st_blocks) * 512;
}

inline std::uint64_t file_size(const std::string& path) {
  return std::filesystem::file_size(path);
}

}  // namespace rbt::target::test
