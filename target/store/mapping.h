#pragma once
// A file or device in our address space, and what makes stores to it last.

#include <cstddef>
#include <cstdint>

#include "common/result.h"
#include "transport/memory_region.h"

namespace rbt::target {

/// How what was stored there becomes as durable as the medium can make it.
enum class Persistence : std::uint8_t {
  none,         ///< memory: it survives this process and nothing more
  cache_lines,  ///< persistent memory: written back out of the CPU's caches (libpmem)
};

/// Stands in for libpmem where a test wants to know what was made to last, and when.
class Persister {
 public:
  virtual ~Persister() = default;
  virtual void persist(std::uint64_t offset, std::uint64_t length) noexcept = 0;
};

struct MappingOptions {
  bool writable = true;
  Persistence persistence = Persistence::none;
  Persister* persister = nullptr;  ///< outlives the mapping; null: libpmem
  bool synchronous = false;        ///< MAP_SYNC: a file system with dax keeps its own records as durable as our stores
};

/// Shared, all of it, for the life of the object. The descriptor is borrowed.
class Mapping {
 public:
  [[nodiscard]] static Result<Mapping> create(int fd, std::uint64_t size, const MappingOptions& options);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping();

  [[nodiscard]] const transport::MemorySpan& span() const noexcept { return span_; }
  [[nodiscard]] Persistence persistence() const noexcept { return persistence_; }

  /// Stores to the range that have been made, by whomever, last when it returns. It touches the memory: only while it is
  /// certain that the file reaches that far (a guard, a seal).
  void persist(std::uint64_t offset, std::uint64_t length) const noexcept;

 private:
  Mapping() = default;
  transport::MemorySpan span_;
  Persistence persistence_ = Persistence::none;
  Persister* persister_ = nullptr;
};

/// Copies by way of the kernel. It does not leave off in the middle of a page, whoever is killed, so that blocks stay
/// whole (a memcpy of our own would); and memory whose file was cut short meanwhile is an error and not SIGBUS. Bytes copied,
/// fewer than asked for from the first page that is not there; -errno.
[[nodiscard]] std::int64_t copy_from_mapping(const std::byte* from, std::byte* to, std::uint64_t length) noexcept;
[[nodiscard]] std::int64_t copy_to_mapping(const std::byte* from, std::byte* to, std::uint64_t length) noexcept;

}  // namespace rbt::target
