#include "transport/memory/mapping.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

namespace rbt::transport {

namespace {

// PROCMAP_QUERY, linux/fs.h since 6.11; Debian 12's headers do not have it.
struct ProcmapQuery {
  std::uint64_t size;
  std::uint64_t query_flags;
  std::uint64_t query_addr;
  std::uint64_t vma_start;
  std::uint64_t vma_end;
  std::uint64_t vma_flags;
  std::uint64_t vma_page_size;
  std::uint64_t vma_offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t vma_name_size;
  std::uint32_t build_id_size;
  std::uint64_t vma_name_addr;
  std::uint64_t build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
constexpr std::uint64_t kReadable = 1;
constexpr std::uint64_t kWritable = 2;
constexpr std::uint64_t kShared = 8;
constexpr std::uint64_t kCoveringOrNext = 16;

constexpr std::uintptr_t kArenaSize = std::uintptr_t{64} << 20;  // HEAP_MAX_SIZE of glibc's malloc on 64 bits
constexpr std::string_view kBrkHeap = "[heap]";

std::optional<Mapping> parse_line(const char* line) noexcept {
  Mapping out;
  std::array<char, 5> rights{};
  unsigned major_number = 0;
  unsigned minor_number = 0;
  int name_at = 0;
  if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %" SCNx64 " %x:%x %lu %n", &out.begin, &out.end, rights.data(),
                  &out.offset, &major_number, &minor_number, &out.inode, &name_at) != 7)
    return std::nullopt;
  out.device = makedev(major_number, minor_number);
  out.readable = rights[0] == 'r';
  out.writable = rights[1] == 'w';
  out.shared = rights[3] == 's';
  out.brk_heap = std::string_view(line + name_at).starts_with(kBrkHeap);
  return out;
}

// By system call, past the thread sanitizer, which takes a look at a descriptor for a use of it: these are others' and may
// be closed at any time.
bool is_open_on(int descriptor, const Mapping& mapping) noexcept {
  struct stat status {};
  return ::syscall(SYS_fstat, descriptor, &status) == 0 && status.st_ino == mapping.inode &&
         status.st_dev == mapping.device;
}

std::optional<Mapping> find_in_text(std::uintptr_t address, MappingTable::Miss miss) noexcept {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/proc/self/maps", "re"), std::fclose);
  if (file == nullptr) return std::nullopt;
  char* line = nullptr;
  std::size_t room = 0;
  std::optional<Mapping> found;
  while (::getline(&line, &room, file.get()) > 0) {
    const auto mapping = parse_line(line);
    if (!mapping || mapping->end <= address) continue;
    if (mapping->begin <= address || miss == MappingTable::Miss::next) found = mapping;
    break;
  }
  std::free(line);
  return found;
}

}  // namespace

MappingTable::MappingTable(Source source) noexcept {
  if (source != Source::best) return;
  maps_ = shm::Descriptor(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
  (void)query(reinterpret_cast<std::uintptr_t>(this), Miss::nothing, quick_);
  if (!quick_) maps_.reset();
}

// `answered` false: this kernel does not know the question.
std::optional<Mapping> MappingTable::query(std::uintptr_t address, Miss miss, bool& answered) const noexcept {
  answered = false;
  if (!maps_.valid()) return std::nullopt;
  std::array<char, 64> name{};
  ProcmapQuery query{};
  query.size = sizeof query;
  query.query_flags = miss == Miss::next ? kCoveringOrNext : 0;
  query.query_addr = address;
  query.vma_name_size = name.size();
  query.vma_name_addr = reinterpret_cast<std::uintptr_t>(name.data());
  int result = ::ioctl(maps_.get(), kProcmapQuery, &query);
  if (result != 0 && errno == ENAMETOOLONG) {  // a file of a long name: not the heap
    query.vma_name_size = 0;
    query.vma_name_addr = 0;
    result = ::ioctl(maps_.get(), kProcmapQuery, &query);
  }
  answered = result == 0 || errno == ENOENT;
  if (result != 0) return std::nullopt;
  return Mapping{.begin = query.vma_start,
                 .end = query.vma_end,
                 .offset = query.vma_offset,
                 .device = makedev(query.dev_major, query.dev_minor),
                 .inode = query.inode,
                 .readable = (query.vma_flags & kReadable) != 0,
                 .writable = (query.vma_flags & kWritable) != 0,
                 .shared = (query.vma_flags & kShared) != 0,
                 .brk_heap = std::string_view(name.data()) == kBrkHeap};
}

std::optional<Mapping> MappingTable::find(std::uintptr_t address, Miss miss) const noexcept {
  bool answered = false;
  const auto found = query(address, miss, answered);
  return answered ? found : find_in_text(address, miss);
}

std::optional<Mapping> MappingTable::covering(std::uintptr_t begin, std::size_t size) const noexcept {
  const auto first = find(begin);
  for (auto mapping = first; mapping && mapping->readable; mapping = find(mapping->end))
    if (mapping->end - begin >= size) return first;
  return std::nullopt;
}

bool MappingTable::allocators(const Mapping& mapping, std::uintptr_t address) const noexcept {
  if (mapping.brk_heap) return true;
  if (mapping.inode != 0 || mapping.shared) return false;
  const std::uintptr_t arena = address / kArenaSize * kArenaSize;
  if (mapping.begin > arena) return false;
  if (mapping.end >= arena + kArenaSize) return mapping.begin == arena;  // full to the brim, or a large mapping
  const auto rest = find(mapping.end);
  return rest && !rest->readable && !rest->writable && rest->end >= arena + kArenaSize;
}

shm::Descriptor MappingTable::descriptor_of(const Mapping& mapping) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/fd"), ::closedir);
  if (folder == nullptr || mapping.inode == 0) return {};
  while (const dirent* const entry = ::readdir(folder.get())) {
    const int number = std::atoi(entry->d_name);
    if (entry->d_name[0] == '.' || !is_open_on(number, mapping)) continue;
    // Another thread may have closed it and opened something else meanwhile: what counts is what we hold.
    shm::Descriptor ours(static_cast<int>(::syscall(SYS_fcntl, number, F_DUPFD_CLOEXEC, 0)));
    if (!ours.valid() || !is_open_on(ours.get(), mapping)) continue;
    const int mode = ::fcntl(ours.get(), F_GETFL) & O_ACCMODE;
    if (mode == O_RDWR || (!mapping.writable && mode == O_RDONLY)) return ours;
  }
  return {};
}

}  // namespace rbt::transport
