#pragma once
// What programs do to memory that is registered: the rows of the table in docs/coherence.md, as functions. Some exchange its
// pages, some do not; some are heard of, some are not.

#include <cstddef>
#include <string>
#include <vector>

#include "transport/coherence/watch.h"
#include "transport/memory_region.h"

namespace rbt::test {

inline constexpr std::size_t kSize = std::size_t{16} * 4096;
inline constexpr std::size_t kHugeSize = std::size_t{2} << 20;

enum class Kind {
  anonymous,
  memfd,
  hugetlb,  ///< a memfd of huge pages, which somebody must have reserved
};

/// Memory that is mapped at one address all the time, by whatever.
struct Mapping {
  explicit Mapping(Kind kind_of_memory, std::size_t wanted = kSize);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  /// Null: MAP_FIXED_NOREPLACE found something else there.
  std::byte* map(void* at, std::size_t bytes, int flags) const;
  [[nodiscard]] transport::MemorySpan span() const { return {.data = data, .size = size, .fd = fd}; }
  [[nodiscard]] std::string text(std::size_t offset, std::size_t bytes) const {
    return {reinterpret_cast<const char*>(data + offset), bytes};
  }
  Kind kind;
  std::size_t size;
  std::size_t grown = 0;  ///< bytes more than `size`, by mremap
  int fd = -1;
  std::byte* data = nullptr;
};

struct PageChange {
  const char* what;
  Kind kind;
  transport::coherence::Change seen;  ///< by the userfault source; none: it hears nothing
  std::size_t offset;                 ///< of a page that is concerned
  void (*change)(Mapping&);
};
/// After these an adapter's registration is stale, and the source hears of it in time.
[[nodiscard]] const std::vector<PageChange>& stale_changes();
/// After these it is not.
[[nodiscard]] const std::vector<PageChange>& harmless_changes();
/// After these it is stale, and nobody hears of it. Sealing the memfd makes them impossible.
[[nodiscard]] const std::vector<PageChange>& unseen_changes();

}  // namespace rbt::test
