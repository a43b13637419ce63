#include "transport/coherence/page_marks.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace rbt::transport::coherence {

namespace {

// linux/fs.h since 6.7; not in Debian 12's headers.
struct PageRegion {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};
struct ScanArguments {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;
  std::uint64_t vec;
  std::uint64_t vec_len;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
static_assert(sizeof(ScanArguments) == 96 && sizeof(PageRegion) == 24);
constexpr unsigned long kScan = _IOWR('f', 16, ScanArguments);
constexpr std::uint64_t kWritten = 1 << 1;  // not write-protected: not marked
constexpr std::uint64_t kPresent = 1 << 3;
constexpr std::uint64_t kProtectMatching = 1 << 0;

/// How many runs of pages matched, at most one; -1: it cannot be done.
int scan(ScanArguments arguments) noexcept {
  // Opened each time: discarding is rare, and a descriptor per watch would be dear.
  const int pagemap = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return -1;
  arguments.size = sizeof arguments;
  const int matched = ::ioctl(pagemap, kScan, &arguments);
  ::close(pagemap);
  return matched;
}

}  // namespace

bool mark_pages(std::uint64_t start, std::uint64_t length) noexcept {
  ScanArguments arguments{};
  arguments.flags = kProtectMatching;
  arguments.start = start;
  arguments.end = start + length;
  arguments.category_mask = kPresent;
  return scan(arguments) >= 0;
}

bool marked_page_there(std::uint64_t start, std::uint64_t length) noexcept {
  PageRegion found{};
  ScanArguments arguments{};
  arguments.start = start;
  arguments.end = start + length;
  arguments.vec = reinterpret_cast<std::uintptr_t>(&found);
  arguments.vec_len = 1;
  arguments.max_pages = 1;
  arguments.category_inverted = kWritten;
  arguments.category_mask = kPresent | kWritten;
  arguments.return_mask = kPresent;
  return scan(arguments) > 0;
}

}  // namespace rbt::transport::coherence
