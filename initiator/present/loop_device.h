#pragma once
// /dev/loopN on a file.

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"
#include "transport/shm/descriptor.h"

namespace rbt::initiator {

/// Detached from its file when nobody has it open any more, this object included. Any thread, one at a time; calls wait for the file.
class LoopDevice {
 public:
  /// A free one, with direct I/O and partitions. Errors: unsupported (`modprobe loop`), permission, what the kernel said.
  [[nodiscard]] static Result<std::unique_ptr<LoopDevice>> attach(const std::string& file, std::uint32_t block_size,
                                                                  bool read_only);
  ~LoopDevice() = default;
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;

  [[nodiscard]] std::uint32_t number() const noexcept { return number_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// Detaches it, or has it detached when the last of its other users closes it.
  void detach() noexcept;
  [[nodiscard]] bool attached() const;

 private:
  LoopDevice(std::uint32_t number, transport::shm::Descriptor device);
  std::uint32_t number_;
  std::string path_;
  transport::shm::Descriptor device_;
};

}  // namespace rbt::initiator
