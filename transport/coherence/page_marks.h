#pragma once
// Marks on pages, to see whether a madvise() that was let go on has dropped them yet: PAGEMAP_SCAN, Linux 6.7.

#include <cstdint>

namespace rbt::transport::coherence {

/// Marks the pages that are there in [start, start + length): write-protects them for userfaultfd, in whose asynchronous
/// mode a write takes the mark away and nothing waits. Works while an event is unread, when UFFDIO_WRITEPROTECT does not. A
/// mark goes with its page. False: this kernel cannot, or /proc is not to be had. Neither allocates nor takes a lock.
[[nodiscard]] bool mark_pages(std::uint64_t start, std::uint64_t length) noexcept;

/// Whether a marked page is there. Of shared memory that was dropped and touched again the kernel marks the new page, too.
[[nodiscard]] bool marked_page_there(std::uint64_t start, std::uint64_t length) noexcept;

}  // namespace rbt::transport::coherence
