#include "target/store/image_output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

#include "target/store/file_medium.h"
#include "target/store/map_look.h"
#include "target/store/mapping.h"

namespace rbt::target {

namespace {

constexpr std::string_view kPart = ".part";

class NewFile final : public ImageOutput {
 public:
  explicit NewFile(std::string path) : path_(std::move(path)), part_(path_ + std::string(kPart)) {}
  ~NewFile() override {
    if (fd_ < 0) return;
    ::close(fd_);
    if (!finished_) ::unlink(part_.c_str());
  }
  Result<void> open(std::uint64_t size, unsigned mode) {
    fd_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd_ < 0)
      return errno_failure(errno, fmt::format("creating {}", part_),
                           errno == EEXIST ? "another conversion is under way, or one was killed: remove it then" : "");
    if (::fchmod(fd_, mode) == 0 && ::ftruncate(fd_, static_cast<::off_t>(size)) == 0) return {};
    return errno_failure(errno, fmt::format("making {} {} bytes large", part_, size));
  }
  Result<void> write(std::uint64_t offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const auto moved = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<::off_t>(offset));
      if (moved < 0 && errno == EINTR) continue;
      if (moved <= 0)
        return errno_failure(moved < 0 ? errno : EIO, fmt::format("writing {} at byte {}", part_, offset));
      offset += static_cast<std::uint64_t>(moved);
      bytes = bytes.subspan(static_cast<std::size_t>(moved));
    }
    return {};
  }
  Result<void> zero(std::uint64_t, std::uint64_t) override { return {}; }  // a hole
  Result<void> sync() override {
    if (::fsync(fd_) == 0) return {};
    return errno_failure(errno, fmt::format("making {} durable", part_));
  }
  Result<void> finish() override {
    if (auto done = sync(); !done) return done;
    // Not over a file that has come meanwhile.
    int error = ::renameat2(AT_FDCWD, part_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) == 0 ? 0 : errno;
    if (error == EINVAL) error = ::link(part_.c_str(), path_.c_str()) == 0 && ::unlink(part_.c_str()) == 0 ? 0 : errno;
    if (error != 0) return errno_failure(error, fmt::format("renaming {} to {}", part_, path_));
    finished_ = true;
    const auto slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool durable = directory >= 0 && ::fsync(directory) == 0;
    error = errno;
    if (directory >= 0) ::close(directory);
    if (!durable) return errno_failure(error, fmt::format("making the name {} durable", path_));
    return {};
  }

 private:
  std::string path_;
  std::string part_;
  int fd_ = -1;
  bool finished_ = false;
};

/// What it held is lost from the first write on.
class Device final : public ImageOutput {
 public:
  Device(FileMedium medium, Mapping mapping) : medium_(std::move(medium)), mapping_(std::move(mapping)) {}
  Result<void> write(std::uint64_t offset, std::span<const std::byte> bytes) override {
    std::memcpy(mapping_.span().data + offset, bytes.data(), bytes.size());
    mapping_.persist(offset, bytes.size());
    return {};
  }
  Result<void> zero(std::uint64_t offset, std::uint64_t length) override {
    std::memset(mapping_.span().data + offset, 0, length);
    mapping_.persist(offset, length);
    return {};
  }
  Result<void> sync() override { return {}; }
  Result<void> finish() override { return {}; }

 private:
  FileMedium medium_;  // with the lock
  Mapping mapping_;
};

Result<std::unique_ptr<ImageOutput>> open_device(const std::string& path, std::uint64_t size,
                                                 const StoreEnvironment& environment) {
  auto medium =
      FileMedium::open_devdax({.name = {"map", path}, .block_shift = {}, .identity = Identity{}}, environment);
  if (!medium) return failure(std::move(medium.error()));
  const std::uint64_t room = medium->size_now().value_or(0);
  if (room < size)
    return failure(ErrorKind::resource, fmt::format("{} has {} bytes, the image needs {}", path, room, size));
  auto mapping = Mapping::create(medium->fd(), room, {.persistence = Persistence::cache_lines});
  if (!mapping) return failure(std::move(mapping.error()).within(path));
  return std::make_unique<Device>(std::move(*medium), std::move(*mapping));
}

}  // namespace

Result<std::unique_ptr<ImageOutput>> ImageOutput::create(const std::string& path, std::uint64_t size, unsigned mode,
                                                         bool overwrite, const StoreEnvironment& environment) {
  struct stat about {};
  if (::stat(path.c_str(), &about) != 0) {
    if (errno != ENOENT) return errno_failure(errno, fmt::format("looking at {}", path));
    auto file = std::make_unique<NewFile>(path);
    if (auto opened = file->open(size, mode); !opened) return failure(std::move(opened.error()));
    return file;
  }
  const auto found = S_ISCHR(about.st_mode) ? look_at(path) : MapFound{};
  if (!found) return failure(found.error());
  if (found->kind != MapKind::devdax)
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("{} is there already: an image goes to a file that is not, or to a devdax device", path));
  if (!overwrite)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{} is a device: what it holds would be lost; --overwrite says that it may be", path));
  return open_device(path, size, environment);
}

}  // namespace rbt::target
