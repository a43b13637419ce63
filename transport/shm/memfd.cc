#include "transport/shm/memfd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>

namespace rbt::transport::shm {

Result<MemfdFacts> inspect_memfd(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0)
    return failure(
        ErrorKind::unsupported,
        "the descriptor is not a memfd: only memory from memfd_create(2), sealed with F_SEAL_SHRINK, can be shared");
  if ((seals & F_SEAL_SHRINK) == 0)
    return failure(ErrorKind::unsupported,
                   "the memfd is not sealed against shrinking: add F_SEAL_SHRINK (fcntl(2), F_ADD_SEALS)");
  struct stat status {};
  struct statfs filesystem {};
  if (::fstat(fd, &status) != 0 || ::fstatfs(fd, &filesystem) != 0) return errno_failure(errno, "looking at a memfd");
  return MemfdFacts{static_cast<std::uint64_t>(status.st_size), status.st_dev, status.st_ino,
                    filesystem.f_type == HUGETLBFS_MAGIC};
}

}  // namespace rbt::transport::shm
