#pragma once
// What this process has mapped where: what a registration cache must know before it registers memory that it was only
// given the address of.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "transport/memory_region.h"
#include "transport/shm/descriptor.h"

namespace rbt::transport {

[[nodiscard]] inline std::uintptr_t address_of(const std::byte* at) noexcept {
  return reinterpret_cast<std::uintptr_t>(at);
}

/// One mapping (VMA) of this process, as the kernel tells it.
struct Mapping {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  std::uint64_t offset = 0;  ///< of `begin` in the file
  dev_t device = 0;
  ino_t inode = 0;  ///< 0: no file
  bool readable = false;
  bool writable = false;
  bool shared = false;
  bool brk_heap = false;  ///< the kernel calls it [heap]

  [[nodiscard]] bool same_as(const Mapping& other) const noexcept {
    return begin == other.begin && end == other.end && device == other.device && inode == other.inode &&
           shared == other.shared && writable == other.writable;
  }
};

/// Looks mappings up: PROCMAP_QUERY where the kernel has it (6.11; about a microsecond), else the text of
/// /proc/self/maps. Thread-safe. What it says may be outdated when it returns, unless the range is watched.
class MappingTable {
 public:
  enum class Source : std::uint8_t { best, text };
  explicit MappingTable(Source source = Source::best) noexcept;

  /// Whether the kernel answers, or all of /proc/self/maps has to be read.
  [[nodiscard]] bool quick() const noexcept { return quick_; }
  /// The mapping that holds `address`, or nothing. `next`: or else the first one above it.
  enum class Miss : std::uint8_t { nothing, next };
  [[nodiscard]] std::optional<Mapping> find(std::uintptr_t address, Miss miss = Miss::nothing) const noexcept;
  /// The mapping that holds `begin`, if all of [begin, begin + size) is mapped and readable, by however many mappings.
  [[nodiscard]] std::optional<Mapping> covering(std::uintptr_t begin, std::size_t size) const noexcept;
  /// Whether glibc's malloc hands this memory out: the brk heap, or an arena's (64 MiB, aligned, with its unused end
  /// inaccessible). Other allocators' memory is not recognised.
  [[nodiscard]] bool allocators(const Mapping& mapping, std::uintptr_t address) const noexcept;
  /// A descriptor of this process that is open on the mapping's file, for writing if the mapping is; a duplicate, the
  /// caller's. Invalid: there is none. Looks at every open descriptor.
  [[nodiscard]] static shm::Descriptor descriptor_of(const Mapping& mapping);

 private:
  [[nodiscard]] std::optional<Mapping> query(std::uintptr_t address, Miss miss, bool& answered) const noexcept;
  shm::Descriptor maps_;
  bool quick_ = false;
};

}  // namespace rbt::transport
