#include "target/store/lingering.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fmt/format.h>

#include <cstdlib>
#include <memory>

namespace rbt::target {

namespace {

constexpr int kTries = 100;          // a second of them
constexpr int kTriesMax = 3000;      // and 30
constexpr unsigned kPause = 10'000;  // µs

struct DirectoryCloser {
  void operator()(DIR* directory) const noexcept { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, DirectoryCloser>;

/// What descriptor `name` of `descriptors` is; not asked of a server that may have gone.
bool is_it(int descriptors, const char* name, const struct stat& about) {
  struct statx seen {};
  if (::statx(descriptors, name, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &seen) != 0) return false;
  if (S_ISBLK(about.st_mode))
    return S_ISBLK(seen.stx_mode) && ::makedev(seen.stx_rdev_major, seen.stx_rdev_minor) == about.st_rdev;
  return seen.stx_ino == about.st_ino && ::makedev(seen.stx_dev_major, seen.stx_dev_minor) == about.st_dev;
}

}  // namespace

bool is_open_somewhere(const struct stat& about, int own_fd) {
  const Directory processes(::opendir("/proc"));
  while (const dirent* const process = processes ? ::readdir(processes.get()) : nullptr) {
    const int pid = std::atoi(process->d_name);
    if (pid <= 0) continue;
    const Directory descriptors(::opendir(fmt::format("/proc/{}/fd", pid).c_str()));
    while (const dirent* const descriptor = descriptors ? ::readdir(descriptors.get()) : nullptr) {
      if (descriptor->d_name[0] == '.') continue;
      if (pid == ::getpid() && std::atoi(descriptor->d_name) == own_fd) continue;
      if (is_it(::dirfd(descriptors.get()), descriptor->d_name, about)) return true;
    }
  }
  return false;
}

bool attempt_patiently(const std::function<bool()>& attempt, const struct stat& about, int own_fd,
                       const std::string& name, Logger& logger) {
  for (int i = 0; i < kTriesMax; ++i) {
    if (attempt()) return true;
    if (i == kTries) {
      if (is_open_somewhere(about, own_fd)) return false;
      logger.warning(
          "store '{}': somebody has it to himself, and no program that can be seen has it open: waiting up to {} s for "
          "what a killed one "
          "has left",
          name, kTriesMax / kTries);
    }
    ::usleep(kPause);
  }
  return false;
}

}  // namespace rbt::target
