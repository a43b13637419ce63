#include "target/store/file_medium.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "common/sizes.h"
#include "target/store/identity.h"
#include "target/store/lingering.h"
#include "target/store/sysfs.h"

namespace rbt::target {

namespace {

// STATX_DIOALIGN, statx(2): Linux 6.1, newer than Debian 12's libc. It fills two fields that lie at 98h and 9Ch.
constexpr unsigned kStatxDirectAlignment = 0x2000;
struct DirectAlignment {
  std::uint32_t memory = 0;
  std::uint32_t offset = 0;
};

/// What the file system says about O_DIRECT; nothing if it does not say. Zeroes: not possible.
std::optional<DirectAlignment> direct_alignment(int fd) noexcept {
  struct statx about {};
  if (::statx(fd, "", AT_EMPTY_PATH, kStatxDirectAlignment, &about) != 0 ||
      (about.stx_mask & kStatxDirectAlignment) == 0)
    return std::nullopt;
  static_assert(sizeof about == 256);
  std::array<std::uint32_t, sizeof about / sizeof(std::uint32_t)> words{};
  std::copy_n(reinterpret_cast<const std::byte*>(&about), sizeof about, reinterpret_cast<std::byte*>(words.data()));
  return DirectAlignment{words[0x98 / 4], words[0x9c / 4]};
}

tl::unexpected<Error> problem(ErrorKind kind, const StoreName& name, const std::string& what) {
  return failure(kind, fmt::format("store '{}': {}", name.text(), what));
}

std::string_view open_remedy(int error, bool read_only) noexcept {
  switch (error) {
    case ENOENT: return "make it, for instance with `truncate -s 10G PATH`";
    case EACCES:
    case EPERM: return read_only ? "let this user read it" : "let this user write it, or add ,readonly";
    case EROFS: return "add ,readonly";
    case ETXTBSY: return "it is a running program or a swap file";
    default: return {};
  }
}

}  // namespace

FileMedium::FileMedium(FileMedium&& other) noexcept
    : name_(std::move(other.name_)),
      fd_(std::exchange(other.fd_, -1)),
      is_device_(other.is_device_),
      device_(other.device_),
      fixed_size_(other.fixed_size_),
      direct_(other.direct_),
      why_not_direct_(std::move(other.why_not_direct_)),
      alignment_(other.alignment_),
      geometry_(other.geometry_),
      identity_(other.identity_) {}

FileMedium::~FileMedium() {
  if (fd_ >= 0) ::close(fd_);
}

Result<FileMedium> FileMedium::open(const FileOptions& options, const StoreEnvironment& environment) {
  FileMedium medium(options);
  if (auto done = medium.open_descriptor(options, environment.logger); !done) return failure(std::move(done.error()));
  if (auto done = medium.lock(options, environment); !done) return failure(std::move(done.error()));
  if (auto done = medium.measure(options); !done) return failure(std::move(done.error()));
  if (auto done = medium.choose_direct(options, environment); !done) return failure(std::move(done.error()));
  medium.find_abilities();
  FoundIdentity found{options.identity.value_or(Identity{}), "uuid="};
  if (!options.identity)
    found = medium.is_device_ ? device_identity(medium.fd_, medium.name_, environment)
                              : file_identity(medium.fd_, medium.name_, options.read_only, environment);
  medium.identity_ = found.identity;
  const Geometry& geometry = medium.geometry_;
  environment.logger.info(
      "store '{}': {} blocks of {}{}, {}, identity {} out of {}", medium.name_.text(), geometry.blocks.value(),
      geometry.block_shift.block_size(), geometry.read_only ? ", read-only" : "",
      medium.direct_ ? "O_DIRECT" : "through the page cache", uuid_of(medium.identity_).to_string(), found.from);
  return medium;
}

Result<void> FileMedium::open_descriptor(const FileOptions& options, Logger& logger) {
  // Looked at before it is opened: opening a FIFO waits, and opening a tape rewinds it.
  struct stat about {};
  const std::string what = fmt::format("store '{}': opening it", name_.text());
  if (::stat(name_.path.c_str(), &about) != 0) {
    const int error = errno;
    return errno_failure(error, what, open_remedy(error, options.read_only));
  }
  is_device_ = S_ISBLK(about.st_mode);
  if (!is_device_ && !S_ISREG(about.st_mode))
    return problem(ErrorKind::invalid_argument, name_,
                   fmt::format("it is {}: a regular file or a block device can be served",
                               S_ISDIR(about.st_mode) ? "a directory" : "neither file nor disk"));
  // O_EXCL without O_CREAT, open(2): a block device that is mounted, or opened so by somebody else, is refused.
  const int flags = (options.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | (is_device_ ? O_EXCL : 0);
  std::vector<std::string> users;
  int error = 0;
  const auto attempt = [&] {
    fd_ = ::open(name_.path.c_str(), flags);
    error = fd_ < 0 ? errno : 0;
    if (error == EBUSY) users = device_users(about.st_rdev);
    return error != EBUSY || !users.empty();
  };
  (void)attempt_patiently(attempt, about, -1, name_.text(), logger);
  if (fd_ >= 0 && ::fstat(fd_, &about) == 0 && S_ISBLK(about.st_mode) == is_device_) {
    device_ = about.st_rdev;
    return {};
  }
  if (fd_ >= 0) error = ESTALE;  // it became something else between the two
  if (error != EBUSY) return errno_failure(error, what, open_remedy(error, options.read_only));
  return errno_failure(error, what,
                       users.empty() ? "another program has it to itself: another rbt-target, LVM, md, swap (see lsblk)"
                                     : fmt::format("it is {}: take it out of there first", fmt::join(users, ", ")));
}

Result<void> FileMedium::lock(const FileOptions& options, const StoreEnvironment& environment) const {
  if (is_device_) return {};  // O_EXCL has done it
  // An open file description lock, fcntl(2): held by this open, so a second one in this process is refused as well. On
  // the whole file, so that it meets the byte locks by which qemu protects its images.
  struct flock whole {};
  whole.l_type = options.read_only ? F_RDLCK : F_WRLCK;
  whole.l_whence = SEEK_SET;
  int error = 0;
  const auto attempt = [&] {
    error = ::fcntl(fd_, F_OFD_SETLK, &whole) == 0 ? 0 : errno;
    return error != EAGAIN && error != EACCES;
  };
  struct stat about {};
  if (::fstat(fd_, &about) != 0) return errno_failure(errno, fmt::format("store '{}': fstat", name_.text()));
  (void)attempt_patiently(attempt, about, fd_, name_.text(), environment.logger);
  if (error == 0) return {};
  if (error == EAGAIN || error == EACCES)
    return problem(
        ErrorKind::in_use, name_,
        "it is locked by another program: another rbt-target serves it (also as another namespace of this one), "
        "or qemu has it open; stop that one first (`lslocks` and `fuser` tell which), or serve it ,readonly "
        "everywhere");
  environment.logger.warning("store '{}': {}", name_.text(),
                             Error::from_errno(error, "its file system cannot lock it",
                                               "nothing keeps a second program from serving it at the same time")
                                 .message());
  return {};
}

std::optional<std::uint64_t> FileMedium::size_now() const noexcept {
  if (fixed_size_) return fixed_size_;
  if (is_device_) {
    std::uint64_t size = 0;
    if (::ioctl(fd_, BLKGETSIZE64, &size) != 0) return std::nullopt;
    return size;
  }
  struct stat about {};
  if (::fstat(fd_, &about) != 0) return std::nullopt;
  return static_cast<std::uint64_t>(about.st_size);
}

Result<void> FileMedium::measure(const FileOptions& options) {
  const auto size = size_now();
  if (!size) return errno_failure(errno, fmt::format("store '{}': asking for its size", name_.text()));
  geometry_.read_only = options.read_only;
  geometry_.block_shift = options.block_shift.value_or(BlockShift());
  if (is_device_) {
    int logical = 512;
    ::ioctl(fd_, BLKSSZGET, &logical);
    const auto own = BlockShift::of(static_cast<std::uint64_t>(logical));
    if (!own)
      return problem(ErrorKind::unsupported, name_,
                     fmt::format("its blocks have {} bytes: 512 to 4096 can be served", logical));
    if (!options.block_shift) geometry_.block_shift = *own;
    if (geometry_.block_shift.value() < own->value())
      return problem(ErrorKind::invalid_argument, name_,
                     fmt::format("it cannot be served in blocks of {0} bytes, as its own have {1}: block={1} or larger",
                                 geometry_.block_shift.block_size(), logical));
  }
  const std::uint32_t block = geometry_.block_shift.block_size();
  if (*size == 0)
    return problem(ErrorKind::invalid_argument, name_,
                   "it is empty: give it a size, for instance with `truncate -s 10G PATH`");
  if (!geometry_.block_shift.is_multiple(*size)) {
    // Rounding down would hide the end of somebody's data, rounding up would make a file longer that we do not own.
    return problem(
        ErrorKind::invalid_argument, name_,
        fmt::format("its {} bytes are not whole blocks of {}: {}truncate -s {} makes it longer without losing "
                    "anything",
                    *size, block, *size % 512 == 0 ? "block=512 serves it as it is, " : "",
                    (*size / block + 1) * block));
  }
  struct rlimit limit {};
  if (!is_device_ && !options.read_only && ::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < *size)
    return problem(ErrorKind::resource, name_,
                   fmt::format("RLIMIT_FSIZE is {} bytes, its {} bytes could not all be written: raise it with "
                               "`ulimit -f unlimited` or LimitFSIZE=infinity",
                               limit.rlim_cur, *size));
  geometry_.blocks = geometry_.block_shift.blocks(Bytes(*size));
  return {};
}

std::optional<std::string> FileMedium::try_direct() {
  const std::uint32_t block = geometry_.block_shift.block_size();
  const auto alignment = direct_alignment(fd_);
  if (alignment && alignment->offset == 0) return "its file system has no O_DIRECT for it";
  if (alignment && alignment->offset > block)
    return fmt::format("O_DIRECT needs whole {}-byte blocks here, and block={} is smaller", alignment->offset, block);
  const int flags = ::fcntl(fd_, F_GETFL);
  if (::fcntl(fd_, F_SETFL, flags | O_DIRECT) != 0) return Error::from_errno(errno, "setting O_DIRECT").message();
  // A file system that does not say is tried: the first two blocks, into memory as aligned as pool buffers are.
  alignas(4096) std::array<std::byte, 4096> memory;  // NOLINT(cppcoreguidelines-pro-type-member-init): read into
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(2, geometry_.blocks.value()); ++i) {
    if (::pread(fd_, memory.data(), block, static_cast<::off_t>(i * block)) >= 0) continue;
    const int error = errno;
    ::fcntl(fd_, F_SETFL, flags);
    return Error::from_errno(error, fmt::format("reading {} bytes with O_DIRECT", block)).message();
  }
  if (alignment)
    alignment_ = std::max({alignment_, std::uint64_t{alignment->offset}, std::uint64_t{alignment->memory}});
  return std::nullopt;
}

Result<void> FileMedium::choose_direct(const FileOptions& options, const StoreEnvironment& environment) {
  alignment_ = geometry_.block_shift.block_size();
  if (options.direct == DirectIo::never) return {};
  const auto obstacle = try_direct();
  direct_ = !obstacle;
  if (direct_) return {};
  if (options.direct == DirectIo::always)
    return problem(ErrorKind::unsupported, name_,
                   *obstacle + ": direct=auto goes through the page cache instead, a larger block= may help");
  environment.logger.info("store '{}': {}: it goes through the page cache", name_.text(), *obstacle);
  why_not_direct_ = *obstacle;
  return {};
}

void FileMedium::find_abilities() {
  const std::uint32_t block = geometry_.block_shift.block_size();
  const auto whole = [&](std::uint64_t bytes) {
    return geometry_.block_shift.blocks(Bytes(std::clamp<std::uint64_t>(bytes, block, kMiB)));
  };
  struct stat about {};
  const bool known = ::fstat(fd_, &about) == 0;
  geometry_.optimal_io = whole(known ? static_cast<std::uint64_t>(about.st_blksize) : 4096);
  geometry_.discard_granularity = geometry_.optimal_io;
  geometry_.write_zeroes = Ability::native;
  if (is_device_) {
    unsigned physical = 0;
    if (::ioctl(fd_, BLKPBSZGET, &physical) == 0) geometry_.optimal_io = whole(std::max(physical, 4096U));
    geometry_.discard_granularity = whole(disk_number(device_, "queue/discard_granularity").value_or(block));
    const bool discards = disk_number(device_, "queue/discard_max_bytes").value_or(0) != 0;
    geometry_.discard = discards ? Ability::native : Ability::none;
    geometry_.write_cache = !direct_ || disk_attribute(device_, "queue/write_cache") != "write through";
  } else if (!geometry_.read_only) {
    // Behind the end there is nothing to lose: a file system that cannot punch says so there as well.
    const auto behind = static_cast<::off_t>(geometry_.blocks.value() << geometry_.block_shift.value());
    const bool punches = ::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, behind, block) == 0;
    geometry_.discard = punches ? Ability::native : Ability::none;
    geometry_.discard_reads_zero = punches;
  }
}

}  // namespace rbt::target
