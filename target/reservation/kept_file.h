#pragma once
// A small file that is replaced as a whole, or not at all, whatever happens in the middle.

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace rbt::target {

/// What it takes of the system: each as the call of that name, -1 and errno. Tests let them fail.
class FileCalls {
 public:
  virtual ~FileCalls() = default;
  virtual int create(const char* path);
  virtual ssize_t write(int fd, std::span<const std::byte> bytes);
  virtual int sync(int fd);
  virtual int rename(const char* from, const char* to);
  virtual int open_directory(const char* path);
};

/// Nothing: there is no such file. Errors: the system's; `mismatch` if it is longer than `most`.
[[nodiscard]] Result<std::optional<std::vector<std::byte>>> read_kept_file(const std::string& path, std::size_t most);
/// When it returns well, `bytes` are at `path` also after a power failure; else what was there before is, or is if the
/// power does not fail now. Errors: the system's.
[[nodiscard]] Result<void> replace_kept_file(const std::string& path, std::span<const std::byte> bytes,
                                             FileCalls& calls);

}  // namespace rbt::target
