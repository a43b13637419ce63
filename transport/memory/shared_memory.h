#pragma once
// Memory that rbt allocates itself and that every fabric can register: a memfd, sealed against shrinking, mapped once.

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/result.h"
#include "common/units.h"
#include "transport/memory_region.h"

namespace rbt::transport {

enum class HugePages : std::uint8_t { never, if_any };

/// Owns a mapping and its descriptor. Pages come on first touch (zero-filled) unless `populate`.
class SharedMemory {
 public:
  struct Options {
    std::string name = "rbt";  ///< shown in /proc/PID/maps
    HugePages huge_pages = HugePages::never;
    bool populate = false;
  };
  /// `size` is rounded up to whole pages. Errors: `resource` with the bytes wanted and what the machine has.
  [[nodiscard]] static Result<SharedMemory> create(Bytes size, const Options& options);

  SharedMemory() noexcept = default;
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  [[nodiscard]] const MemorySpan& span() const noexcept { return span_; }
  [[nodiscard]] std::byte* data() const noexcept { return span_.data; }
  [[nodiscard]] std::size_t size() const noexcept { return span_.size; }
  [[nodiscard]] bool huge() const noexcept { return huge_; }

 private:
  MemorySpan span_;
  bool huge_ = false;
};

}  // namespace rbt::transport
