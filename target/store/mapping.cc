#include "target/store/mapping.h"

#include <fmt/format.h>
#include <libpmem.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace rbt::target {

Result<Mapping> Mapping::create(int fd, std::uint64_t size, const MappingOptions& options) {
  Mapping mapping;
  const int protection = PROT_READ | (options.writable ? PROT_WRITE : 0);
  const int flags = options.synchronous ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
  void* const address = ::mmap(nullptr, size, protection, flags, fd, 0);
  if (address == MAP_FAILED) return errno_failure(errno, fmt::format("mapping its {} bytes", size));
  mapping.span_ = {static_cast<std::byte*>(address), size, fd, 0, options.writable};
  mapping.persistence_ = options.persistence;
  mapping.persister_ = options.persister;
  // A child would share the descriptor's lease and the pages; none of ours uses them (fork and exec).
  ::madvise(address, size, MADV_DONTFORK);
  return mapping;
}

Mapping::Mapping(Mapping&& other) noexcept
    : span_(std::exchange(other.span_, {})), persistence_(other.persistence_), persister_(other.persister_) {}

Mapping::~Mapping() {
  if (span_.data != nullptr) ::munmap(span_.data, span_.size);
}

void Mapping::persist(std::uint64_t offset, std::uint64_t length) const noexcept {
  if (persister_ != nullptr) return persister_->persist(offset, length);
  if (persistence_ == Persistence::cache_lines) ::pmem_persist(span_.data + offset, length);
}

namespace {

// process_vm_readv(2) on ourselves: the remote side is checked as another process's would be, EFAULT and no signal.
std::int64_t copied(ssize_t result) noexcept {
  return result >= 0 ? result : -errno;
}

}  // namespace

std::int64_t copy_from_mapping(const std::byte* from, std::byte* to, std::uint64_t length) noexcept {
  const iovec local{to, length};
  const iovec remote{const_cast<std::byte*>(from), length};  // NOLINT: iovec has no const; it is only read
  return copied(::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0));
}

std::int64_t copy_to_mapping(const std::byte* from, std::byte* to, std::uint64_t length) noexcept {
  const iovec local{const_cast<std::byte*>(from), length};  // NOLINT: iovec has no const; it is only read
  const iovec remote{to, length};
  return copied(::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0));
}

}  // namespace rbt::target
