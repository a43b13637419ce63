#pragma once
// Hears of changes that this process makes to its own address space: userfaultfd(2) and its non-cooperative events.

#include <memory>

#include "common/clock.h"
#include "common/result.h"
#include "transport/coherence/watch.h"
#include "transport/memory_region.h"

namespace rbt::transport::coherence {

struct UserfaultOptions {
  /// After madvise() was acknowledged it still has to drop the pages. arm() refuses (`in_use`) for this long, and, where
  /// pages can be marked (page_marks.h), while a page that was there before still is: at most kSettleMax times as long.
  /// 0: for an owner that restores only when its own madvise() has returned.
  Duration settle = std::chrono::milliseconds(100);
  static constexpr int kSettleMax = 10;
};

/// Watches the pages of [memory.data, memory.data + memory.size), rounded out to whole pages. Heard of: munmap, mmap
/// over it, mremap, madvise DONTNEED, FREE, REMOVE, from any thread of this process. Not heard of: anything done through
/// a descriptor (ftruncate, fallocate; by anybody), other processes, mprotect, MADV_PAGEOUT; fork is harmless (the parent
/// keeps its pages).
///
/// One userfaultfd per watch, write-protect events in asynchronous mode (Linux 6.7: any kind of mapping), or, on older
/// kernels, in the ordinary mode (anonymous memory from 5.7, shmem and hugetlbfs from 5.19); nothing is ever protected.
/// No privilege needed (UFFD_USER_MODE_ONLY, Linux 5.11).
///
/// A page has one watch at most: arm() says `invalid_argument` if another userfaultfd has it, `not_found` if not all of
/// the range is mapped. After Change::discarded keep the region and restore() it: a new watch over the same pages would
/// not know how long it must wait.
[[nodiscard]] Result<std::unique_ptr<Watch>> make_userfault_watch(const MemorySpan& memory, const Clock& clock,
                                                                  const UserfaultOptions& options = {});

/// Tries it out.
[[nodiscard]] SourceReport explain_userfault();

}  // namespace rbt::transport::coherence
