#include "tests/unit/page_changes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/check.h"

namespace rbt::test {

using transport::coherence::Change;

namespace {

void expect(bool done, const char* what) {
  check(done, what);
}

/// Runs `call` as another process, with this one's descriptors.
template <typename Call>
void elsewhere(Call&& call) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(call() ? 0 : 1);
  int status = 0;
  expect(::waitpid(child, &status, 0) == child && status == 0, "what another process does succeeds");
}

// --- Stale, and heard of ----------------------------------------------------------------------------------------------

void munmap_and_map(Mapping& m) {
  expect(::munmap(m.data, m.size) == 0, "munmap");
  (void)m.map(m.data, m.size, MAP_FIXED);
}
void munmap_part_and_map(Mapping& m) {
  expect(::munmap(m.data, m.size / 2) == 0, "munmap of a part");
  (void)m.map(m.data, m.size / 2, MAP_FIXED);
}
void map_over(Mapping& m) {
  (void)m.map(m.data, m.size, MAP_FIXED);
}
void shrink_and_map(Mapping& m) {
  expect(::mremap(m.data, m.size, 4096, 0) == m.data, "mremap that shrinks");
  (void)m.map(m.data + 4096, m.size - 4096, MAP_FIXED);
}
void discard(Mapping& m) {
  expect(::madvise(m.data, m.size, MADV_DONTNEED) == 0, "MADV_DONTNEED");
}
void remove(Mapping& m) {
  expect(::madvise(m.data, m.size, MADV_REMOVE) == 0, "MADV_REMOVE");
}
void move_and_map(Mapping& m) {
  void* const to = ::mmap(nullptr, m.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  expect(::mremap(m.data, m.size, m.size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap elsewhere");
  (void)m.map(m.data, m.size, MAP_FIXED);
  ::munmap(to, m.size);
}

// --- Harmless ---------------------------------------------------------------------------------------------------------

void free_lazily(Mapping& m) {
  expect(::madvise(m.data, m.size, MADV_FREE) == 0, "MADV_FREE");
}
void fork_and_write(Mapping& m) {
  elsewhere([&] {
    std::memset(m.data, 'c', m.size);
    return m.text(0, 1) == "c";
  });
}
void protect_and_back(Mapping& m) {
  expect(::mprotect(m.data, m.size, PROT_NONE) == 0 && ::mprotect(m.data, m.size, PROT_READ) == 0 &&
             ::mprotect(m.data, m.size, PROT_READ | PROT_WRITE) == 0,
         "mprotect");
}
void page_out(Mapping& m) {
  expect(::madvise(m.data, m.size, MADV_PAGEOUT) == 0, "MADV_PAGEOUT");
}
void grow_in_place(Mapping& m) {
  ::munmap(m.data + m.size, m.grown);  // of the last time
  expect(::mremap(m.data, m.size, m.size + 4096, 0) == m.data, "mremap that grows in place");
  m.grown = 4096;
}
void write_by_descriptor(Mapping& m) {
  expect(::pwrite(m.fd, "by its descriptor", 17, 200) == 17 && m.text(200, 17) == "by its descriptor", "pwrite");
}
void advise_descriptor(Mapping& m) {
  expect(::posix_fadvise(m.fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
}

// --- Stale, and not heard of ------------------------------------------------------------------------------------------

bool punched(const Mapping& m) {
  return ::fallocate(m.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(m.size)) == 0;
}
bool truncated(const Mapping& m) {
  return ::ftruncate(m.fd, 0) == 0 && ::ftruncate(m.fd, static_cast<off_t>(m.size)) == 0;
}
void punch(Mapping& m) {
  expect(punched(m), "a hole is punched");
}
void truncate(Mapping& m) {
  expect(truncated(m), "ftruncate to nothing and back");
}
void punch_elsewhere(Mapping& m) {
  elsewhere([&] { return punched(m); });
}
void truncate_elsewhere(Mapping& m) {
  elsewhere([&] { return truncated(m); });
}
/// Through a mapping of its own, not the one that is watched.
void remove_elsewhere(Mapping& m) {
  elsewhere([&] {
    void* const own = ::mmap(nullptr, m.size, PROT_READ | PROT_WRITE, MAP_SHARED, m.fd, 0);
    return own != MAP_FAILED && ::madvise(own, m.size, MADV_REMOVE) == 0;
  });
}

}  // namespace

Mapping::Mapping(Kind kind_of_memory, std::size_t wanted)
    : kind(kind_of_memory), size(kind == Kind::hugetlb ? kHugeSize : wanted) {
  if (kind != Kind::anonymous) {
    fd = ::memfd_create("mapped", MFD_CLOEXEC | (kind == Kind::hugetlb ? MFD_HUGETLB : MFD_ALLOW_SEALING));
    expect(::ftruncate(fd, static_cast<off_t>(size)) == 0, "a memfd has a size");
  }
  // Far below where mmap() puts what other threads ask for: nobody else gets what is unmapped here for a moment.
  void* const near = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ::munmap(near, size);
  const std::uintptr_t page = reinterpret_cast<std::uintptr_t>(near) / kHugeSize * kHugeSize;
  auto* far = reinterpret_cast<std::byte*>(page) - (std::size_t{32} << 30);  // NOLINT(performance-no-int-to-ptr)
  while (data == nullptr)
    data = map(far -= 2 * kHugeSize, size, MAP_FIXED_NOREPLACE);
  std::memset(data, '.', size);
}

Mapping::~Mapping() {
  ::munmap(data, size + grown);
  if (fd >= 0) ::close(fd);
}

std::byte* Mapping::map(void* at, std::size_t bytes, int flags) const {
  void* const p = kind != Kind::anonymous
                      ? ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0)
                      : ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (p == MAP_FAILED && errno == EEXIST) return nullptr;
  expect(p != MAP_FAILED, "memory is mapped; huge pages must have been reserved (/proc/sys/vm/nr_hugepages)");
  return static_cast<std::byte*>(p);
}

const std::vector<PageChange>& stale_changes() {
  static const std::vector<PageChange> changes{
      {"munmap, and the same address mapped again", Kind::anonymous, Change::unmapped, 0, munmap_and_map},
      {"munmap of a part, and that part mapped again", Kind::anonymous, Change::unmapped, 0, munmap_part_and_map},
      {"mremap that shrinks, and the same address mapped again", Kind::anonymous, Change::unmapped, 8192,
       shrink_and_map},
      {"mmap(MAP_FIXED) over it", Kind::anonymous, Change::unmapped, 0, map_over},
      {"madvise(MADV_DONTNEED)", Kind::anonymous, Change::discarded, 0, discard},
      {"madvise(MADV_REMOVE) of a memfd", Kind::memfd, Change::discarded, 0, remove},
      {"madvise(MADV_REMOVE) of huge pages", Kind::hugetlb, Change::discarded, 0, remove},
      {"mremap elsewhere, and the old address mapped again", Kind::anonymous, Change::moved, 0, move_and_map},
  };
  return changes;
}

const std::vector<PageChange>& harmless_changes() {
  static const std::vector<PageChange> changes{
      {"madvise(MADV_DONTNEED) of a memfd", Kind::memfd, Change::discarded, 0, discard},
      {"madvise(MADV_DONTNEED) of huge pages", Kind::hugetlb, Change::discarded, 0, discard},
      {"madvise(MADV_FREE)", Kind::anonymous, Change::discarded, 0, free_lazily},
      {"fork, and the child writes to all of it", Kind::anonymous, Change::none, 0, fork_and_write},
      {"mprotect(PROT_NONE), and back", Kind::anonymous, Change::none, 0, protect_and_back},
      {"madvise(MADV_PAGEOUT)", Kind::anonymous, Change::none, 0, page_out},
      {"mremap that grows in place", Kind::anonymous, Change::none, 0, grow_in_place},
      {"pwrite through the descriptor of a memfd", Kind::memfd, Change::none, 0, write_by_descriptor},
      {"posix_fadvise(DONTNEED) of a memfd", Kind::memfd, Change::none, 0, advise_descriptor},
  };
  return changes;
}

const std::vector<PageChange>& unseen_changes() {
  static const std::vector<PageChange> changes{
      {"a hole punched in a memfd", Kind::memfd, Change::none, 0, punch},
      {"a hole punched in a memfd by another process", Kind::memfd, Change::none, 0, punch_elsewhere},
      {"a hole punched in huge pages", Kind::hugetlb, Change::none, 0, punch},
      {"ftruncate of a memfd, to nothing and back", Kind::memfd, Change::none, 0, truncate},
      {"ftruncate of a memfd by another process", Kind::memfd, Change::none, 0, truncate_elsewhere},
      {"madvise(MADV_REMOVE) by another process through a mapping of its own", Kind::memfd, Change::none, 0,
       remove_elsewhere},
  };
  return changes;
}

}  // namespace rbt::test
