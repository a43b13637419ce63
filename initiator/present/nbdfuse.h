#pragma once
// The child process that makes a file of an NBD socket, and the directory that both live in.

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"

namespace rbt::initiator {

/// Made with mode 0700; holds "socket", and "mount/disk" while nbdfuse runs.
class FuseDirectory {
 public:
  [[nodiscard]] static Result<std::unique_ptr<FuseDirectory>> create(const std::string& parent);
  /// Unmounts and removes it, whoever uses the file still.
  ~FuseDirectory();
  FuseDirectory(const FuseDirectory&) = delete;
  FuseDirectory& operator=(const FuseDirectory&) = delete;

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] std::string socket() const { return path_ + "/socket"; }
  [[nodiscard]] std::string mount_point() const { return path_ + "/mount"; }
  [[nodiscard]] std::string file() const { return path_ + "/mount/disk"; }

 private:
  explicit FuseDirectory(std::string path) noexcept : path_(std::move(path)) {}
  std::string path_;
};

/// Ends with the thread that started it.
class NbdFuse {
 public:
  [[nodiscard]] static Result<std::unique_ptr<NbdFuse>> start(const FuseDirectory& directory, std::uint32_t connections,
                                                              bool read_only);
  /// Kills it, if it is there still.
  ~NbdFuse();
  NbdFuse(const NbdFuse&) = delete;
  NbdFuse& operator=(const NbdFuse&) = delete;

  /// Readable: it has ended.
  [[nodiscard]] int descriptor() const noexcept { return pidfd_; }
  void terminate() const noexcept;
  /// Nothing while it runs; then why it ended, and what that means.
  [[nodiscard]] const Error* ended();

 private:
  NbdFuse(int pid, int pidfd) noexcept : pid_(pid), pidfd_(pidfd) {}
  int pid_;
  int pidfd_;
  std::unique_ptr<Error> ended_;
};

}  // namespace rbt::initiator
