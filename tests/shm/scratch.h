#pragma once
// A place for socket files.

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace rbt::test {

/// A directory that goes away with everything in it.
class ScratchDirectory {
 public:
  ScratchDirectory() : path_("/tmp/rbt-shm-test-XXXXXX") { REQUIRE(::mkdtemp(path_.data()) != nullptr); }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  [[nodiscard]] std::string path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace rbt::test
