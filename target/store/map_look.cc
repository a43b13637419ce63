#include "target/store/map_look.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>

namespace rbt::target {

namespace {

// statx(2), Linux 5.8: the file is mapped straight from persistent memory.
constexpr std::uint64_t kStatxDax = 0x00200000;

std::string file_system_name(long magic) {
  switch (magic) {
    case EXT4_SUPER_MAGIC: return "ext4";
    case XFS_SUPER_MAGIC: return "xfs";
    case BTRFS_SUPER_MAGIC: return "btrfs";
    case OVERLAYFS_SUPER_MAGIC: return "overlayfs";
    case NFS_SUPER_MAGIC: return "NFS";
    case V9FS_MAGIC: return "9p";
    case RAMFS_MAGIC: return "ramfs";
    default: return fmt::format("a file system of type {:x}h", magic);
  }
}

/// The kernel knows it as "/memfd:name (deleted)".
bool is_memfd(const std::string& path) {
  const int fd = ::open(path.c_str(), O_PATH | O_CLOEXEC);
  if (fd < 0) return false;
  std::array<char, PATH_MAX> real{};
  const auto length = ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), real.data(), real.size());
  ::close(fd);
  return length > 0 && std::string_view(real.data(), static_cast<std::size_t>(length)).starts_with("/memfd:");
}

bool is_devdax(dev_t device) {
  const std::string link = fmt::format("/sys/dev/char/{}:{}/subsystem", major(device), minor(device));
  std::array<char, PATH_MAX> real{};
  return ::realpath(link.c_str(), real.data()) != nullptr && std::string_view(real.data()).ends_with("/dax");
}

bool is_fsdax(const std::string& path) {
  struct statx about {};
  return ::statx(AT_FDCWD, path.c_str(), 0, STATX_BASIC_STATS, &about) == 0 &&
         (about.stx_attributes_mask & about.stx_attributes & kStatxDax) != 0;
}

}  // namespace

Result<MapFound> look_at(const std::string& path) {
  struct stat about {};
  struct statfs system {};
  if (::stat(path.c_str(), &about) != 0 || ::statfs(path.c_str(), &system) != 0)
    return errno_failure(errno, fmt::format("store 'map:{}': looking at it", path));
  if (S_ISCHR(about.st_mode)) {
    if (is_devdax(about.st_rdev)) return MapFound{MapKind::devdax, "persistent memory (devdax)"};
    return failure(
        ErrorKind::unsupported,
        fmt::format("store 'map:{}': it is a character device, and none of persistent memory (/dev/daxN.N)", path));
  }
  if (S_ISBLK(about.st_mode)) return MapFound{MapKind::other, "a block device"};
  const auto magic = static_cast<long>(system.f_type);
  if (magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC) {
    if (is_memfd(path)) return MapFound{MapKind::memfd, "a memfd"};
    if (magic == TMPFS_MAGIC) return MapFound{MapKind::tmpfs, "a file on tmpfs"};
    return MapFound{MapKind::hugetlbfs, "a file on hugetlbfs"};
  }
  if (is_fsdax(path)) return MapFound{MapKind::fsdax, fmt::format("a file on {} with dax", file_system_name(magic))};
  return MapFound{MapKind::other, fmt::format("a file on {}", file_system_name(magic))};
}

}  // namespace rbt::target
