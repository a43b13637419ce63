#pragma once
// An open file or block device that nobody else serves, and what it can do.

#include <atomic>
#include <optional>
#include <string>

#include "common/result.h"
#include "target/store/identity.h"
#include "target/store/spec.h"
#include "target/store/store.h"

namespace rbt::target {

enum class DirectIo : std::uint8_t { if_possible, always, never };

struct FileOptions {
  StoreName name;
  std::optional<BlockShift> block_shift;  ///< none: 512, or the device's own logical block size
  bool read_only = false;
  DirectIo direct = DirectIo::if_possible;
  std::optional<Identity> identity;  ///< none: the one kept with the file
};

/// Owns the descriptor and the lock on it. What may be forbidden later (fallocate modes) is remembered by the store.
class FileMedium {
 public:
  /// Slow path. Errors say what is in the way and what to do about it.
  [[nodiscard]] static Result<FileMedium> open(const FileOptions& options, const StoreEnvironment& environment);

  /// A character device of persistent memory, /dev/daxN.N: devdax.cc. It can be mapped, and neither read nor written.
  [[nodiscard]] static Result<FileMedium> open_devdax(const FileOptions& options, const StoreEnvironment& environment);

  FileMedium(FileMedium&& other) noexcept;
  FileMedium& operator=(FileMedium&&) = delete;
  ~FileMedium();

  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] const StoreName& name() const noexcept { return name_; }
  [[nodiscard]] bool is_device() const noexcept { return is_device_; }
  [[nodiscard]] bool direct() const noexcept { return direct_; }
  /// Empty if it is, or was not to be.
  [[nodiscard]] const std::string& why_not_direct() const noexcept { return why_not_direct_; }
  /// A transfer that was cut short goes on at a multiple of this: what O_DIRECT asks for, at least a block.
  [[nodiscard]] std::uint64_t alignment() const noexcept { return alignment_; }
  /// As it was when opened; `blocks` apart, it stays so.
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] const Identity& identity() const noexcept { return identity_; }
  /// How large it is at this moment: one system call. Nothing if it cannot be told.
  [[nodiscard]] std::optional<std::uint64_t> size_now() const noexcept;

 private:
  explicit FileMedium(const FileOptions& options) : name_(options.name) {}
  [[nodiscard]] Result<void> open_descriptor(const FileOptions& options, Logger& logger);
  [[nodiscard]] Result<void> lock(const FileOptions& options, const StoreEnvironment& environment) const;
  [[nodiscard]] Result<void> measure(const FileOptions& options);
  [[nodiscard]] Result<void> choose_direct(const FileOptions& options, const StoreEnvironment& environment);
  [[nodiscard]] std::optional<std::string> try_direct();
  void find_abilities();

  StoreName name_;
  int fd_ = -1;
  bool is_device_ = false;
  dev_t device_ = 0;
  std::optional<std::uint64_t> fixed_size_;  // of what has no size to ask for
  bool direct_ = false;
  std::string why_not_direct_;
  std::uint64_t alignment_ = 512;
  Geometry geometry_;
  Identity identity_{};
};

}  // namespace rbt::target
