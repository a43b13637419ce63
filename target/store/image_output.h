#pragma once
// Where a converted image goes: a new file, or a device of persistent memory.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/result.h"
#include "target/store/spec.h"

namespace rbt::target {

class ImageOutput {
 public:
  /// `size` bytes of room. `mode`: permissions of a new file. Errors: it exists; it is too small; there is no room.
  [[nodiscard]] static Result<std::unique_ptr<ImageOutput>> create(const std::string& path, std::uint64_t size,
                                                                   unsigned mode, bool overwrite,
                                                                   const StoreEnvironment& environment);
  /// What was not finished is removed.
  virtual ~ImageOutput() = default;
  [[nodiscard]] virtual Result<void> write(std::uint64_t offset, std::span<const std::byte> bytes) = 0;
  [[nodiscard]] virtual Result<void> zero(std::uint64_t offset, std::uint64_t length) = 0;
  /// What was written so far lasts.
  [[nodiscard]] virtual Result<void> sync() = 0;
  /// All of it is there, and lasts: from now on under its name.
  [[nodiscard]] virtual Result<void> finish() = 0;
};

}  // namespace rbt::target
