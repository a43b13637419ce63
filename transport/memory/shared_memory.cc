#include "transport/memory/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace rbt::transport {

namespace {

constexpr std::uint64_t kHugePage = 2 * kMiB;

// A sealed memfd of `size` bytes; -1 with errno on failure.
int create_memfd(const std::string& name, std::uint64_t size, unsigned extra_flags) {
  const int fd = ::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | extra_flags);
  if (fd < 0) return -1;
  // Sealed against shrinking before anybody else can hold it: a mapping of it never faults.
  if (::ftruncate(fd, static_cast<off_t>(size)) != 0 || ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    const int error = errno;
    ::close(fd);
    errno = error;
    return -1;
  }
  return fd;
}

}  // namespace

Result<SharedMemory> SharedMemory::create(Bytes size, const Options& options) {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto round_up = [](std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; };
  if (size.value() == 0 || size.value() > (std::uint64_t{1} << 62))
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("allocating {} bytes of memory for {}: 1 to 2^62 are possible", size.value(), options.name));
  SharedMemory memory;
  const int populate = options.populate ? MAP_POPULATE : 0;
  const auto try_map = [&](std::uint64_t bytes, unsigned memfd_flags) {
    const int fd = create_memfd(options.name, bytes, memfd_flags);
    if (fd < 0) return false;
    // Huge pages are reserved here, not at the first touch: if there are too few, this is where we learn it.
    void* const address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | populate, fd, 0);
    if (address == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      errno = error;
      return false;
    }
    memory.span_ = {static_cast<std::byte*>(address), bytes, fd, 0};
    return true;
  };
  if (options.huge_pages == HugePages::if_any &&
      try_map(round_up(size.value(), kHugePage), MFD_HUGETLB | MFD_HUGE_2MB)) {
    memory.huge_ = true;
    return memory;
  }
  if (!try_map(round_up(size.value(), page), 0))
    return errno_failure(errno, fmt::format("allocating {} bytes of memory for {}", size.value(), options.name),
                         "check the free memory (`free`), the limit of address space (`ulimit -v`) and of open files");
  return memory;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept : span_(std::exchange(other.span_, {})), huge_(other.huge_) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(span_, other.span_);
  std::swap(huge_, other.huge_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (span_.data != nullptr) ::munmap(span_.data, span_.size);
  if (span_.fd >= 0) ::close(span_.fd);
}

}  // namespace rbt::transport
