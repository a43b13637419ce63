#include "tools/rbt-connect/endpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <deque>
#include <utility>
#include <vector>

namespace rbt::tools {

namespace {

// Reads or writes all of `data`, whatever the pieces the kernel makes of it. Returns how much; less: the end, or errno.
template <typename Move>
std::size_t move_all(std::span<std::byte> data, Move move) {
  std::size_t moved = 0;
  errno = 0;
  while (moved < data.size()) {
    const ssize_t step = move(data.subspan(moved), moved);
    if (step < 0 && errno == EINTR) continue;
    if (step <= 0) break;
    moved += static_cast<std::size_t>(step);
  }
  return moved;
}

// The longest wait for a pipe before the copy looks around (progress bar, Ctrl-C).
constexpr int kMomentMs = 50;

bool readable(int fd, int timeout_ms) {
  pollfd pipe{fd, POLLIN, 0};
  return ::poll(&pipe, 1, timeout_ms) > 0;
}

// A file, device or pipe. Transfers of a file are done by the next progress(): the page cache is quick enough beside a
// network. Reads of a pipe wait their turn for what comes through it.
class FileEndpoint final : public Endpoint {
 public:
  FileEndpoint(std::string name, int fd, bool owned, std::optional<std::uint64_t> size, bool device,
               const Interrupt& interrupt)
      : name_(std::move(name)), fd_(fd), owned_(owned), size_(size), device_(device), interrupt_(interrupt) {}
  ~FileEndpoint() override {
    if (owned_) ::close(fd_);
  }

  const std::string& name() const noexcept override { return name_; }
  std::optional<std::uint64_t> size() const noexcept override { return size_; }
  std::uint32_t block_size() const noexcept override { return 1; }
  bool sequential() const noexcept override { return !size_; }

  void read(Transfer& transfer) override {
    if (!size_) return reading_.push_back(&transfer);
    const std::size_t got = move_all(transfer.data, [&](std::span<std::byte> rest, std::size_t at) {
      return ::pread(fd_, rest.data(), rest.size(), static_cast<off_t>(transfer.offset + at));
    });
    if (got < transfer.data.size() && errno != 0)
      transfer.error = Error::from_errno(errno, fmt::format("reading {} at byte {}", name_, transfer.offset + got));
    else if (got < transfer.data.size() && transfer.offset + got < *size_)
      transfer.error =
          Error(ErrorKind::io, fmt::format("reading {}: it ends at byte {} now, it had {} when the copy began", name_,
                                           transfer.offset + got, *size_));
    transfer.data = transfer.data.first(got);
    finished_.push_back(&transfer);
  }

  std::uint64_t zeroes_at(std::uint64_t offset) override {
    if (!size_ || device_) return 0;
    const off_t data = ::lseek(fd_, static_cast<off_t>(offset), SEEK_DATA);
    if (data < 0) return errno == ENXIO ? *size_ - offset : 0;  // ENXIO: nothing but a hole up to the end
    return static_cast<std::uint64_t>(data) - offset;
  }

  Result<void> begin_writing(std::optional<std::uint64_t> size) override {
    if (device_ && size && *size_ < *size)
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{} has {} bytes, {} are to be written: too small", name_, *size_, *size));
    if (device_ || !size_) return {};
    // Emptied first, so that holes of the source need not be written.
    if (::ftruncate(fd_, 0) != 0 || (size && ::ftruncate(fd_, static_cast<off_t>(*size)) != 0))
      return errno_failure(errno, fmt::format("making {} {} bytes large", name_, size.value_or(0)));
    size_ = size.value_or(0);
    return {};
  }

  void write(Transfer& transfer) override {
    const std::size_t put = move_all(transfer.data, [&](std::span<std::byte> rest, std::size_t at) {
      return size_ ? ::pwrite(fd_, rest.data(), rest.size(), static_cast<off_t>(transfer.offset + at))
                   : write_pipe(rest);
    });
    if (put < transfer.data.size())
      transfer.error = Error::from_errno(errno != 0 ? errno : EIO,
                                         fmt::format("writing {} at byte {}", name_, transfer.offset + put));
    finished_.push_back(&transfer);
  }

  Result<void> zero(std::uint64_t offset, std::uint64_t length) override {
    if (size_ && !device_) return {};  // a hole of the emptied file
    if (device_) {
      std::array<std::uint64_t, 2> range{offset, length};
      if (::ioctl(fd_, BLKZEROOUT, range.data()) == 0) return {};
    }
    static constexpr std::size_t kChunk = 65536;
    std::vector<std::byte> zeroes(kChunk);
    while (length > 0) {
      Transfer piece;
      piece.offset = offset;
      piece.data = std::span(zeroes).first(std::min<std::uint64_t>(length, kChunk));
      write(piece);
      finished_.pop_back();
      if (piece.error) return failure(std::move(*piece.error));
      offset += piece.data.size();
      length -= piece.data.size();
    }
    return {};
  }

  Result<void> finish_writing(std::uint64_t end) override {
    if (size_ && !device_ && ::ftruncate(fd_, static_cast<off_t>(end)) != 0)
      return errno_failure(errno, fmt::format("making {} {} bytes large", name_, end));
    // A pipe or terminal has nothing to make durable.
    if (::fdatasync(fd_) != 0 && errno != EINVAL && errno != EROFS)
      return errno_failure(errno, fmt::format("making {} durable", name_));
    return {};
  }

  void progress(int also) override {
    while (!reading_.empty() && readable(fd_, 0))
      read_pipe();
    if (finished_.empty() && also >= 0) (void)readable(also, kMomentMs);
    std::vector<Transfer*> batch;
    batch.swap(finished_);
    for (Transfer* const transfer : batch)
      transfer->done(*transfer);
  }
  int wakes_on() const noexcept override { return reading_.empty() ? -1 : fd_; }
  void give_up() override {
    for (Transfer* const transfer : reading_)
      transfer->error = Error::from_errno(ECANCELED, "reading " + name_);
    while (!reading_.empty())
      finish_reading();
  }

 private:
  // What is there, into the read whose turn it is. The end of the pipe is the end of all reads.
  void read_pipe() {
    Transfer& transfer = *reading_.front();
    const auto rest = transfer.data.subspan(filled_);
    const ssize_t got = ::read(fd_, rest.data(), rest.size());
    if (got < 0 && errno == EINTR) return;
    if (got < 0)
      transfer.error = Error::from_errno(errno, fmt::format("reading {} at byte {}", name_, transfer.offset + filled_));
    if (got > 0) filled_ += static_cast<std::size_t>(got);
    if (got > 0 && filled_ < transfer.data.size()) return;
    finish_reading();
    while (got <= 0 && !reading_.empty())
      finish_reading();
  }
  void finish_reading() {
    Transfer& transfer = *reading_.front();
    transfer.data = transfer.data.first(std::exchange(filled_, 0));
    finished_.push_back(&transfer);
    reading_.pop_front();
  }
  // The other end may take for ever, so this gives up, with ECANCELED, when we are interrupted.
  ssize_t write_pipe(std::span<const std::byte> from) {
    const ssize_t put = interrupt_.raised() ? -1 : ::write(fd_, from.data(), from.size());
    if (put < 0 && interrupt_.raised()) errno = ECANCELED;
    return put;
  }

  std::string name_;
  int fd_;
  bool owned_;
  std::optional<std::uint64_t> size_;
  bool device_;
  const Interrupt& interrupt_;
  std::vector<Transfer*> finished_;
  std::deque<Transfer*> reading_;  // of a pipe, in their order
  std::size_t filled_ = 0;         // of the first of them
};

Result<std::unique_ptr<Endpoint>> adopt(std::string name, int fd, bool owned, const Interrupt& interrupt) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    const int error = errno;
    if (owned) ::close(fd);
    return errno_failure(error, "looking at " + name);
  }
  std::optional<std::uint64_t> size;
  if (S_ISREG(status.st_mode) && owned) size = static_cast<std::uint64_t>(status.st_size);
  if (S_ISBLK(status.st_mode)) {
    std::uint64_t bytes = 0;
    if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) {
      const int error = errno;
      if (owned) ::close(fd);
      return errno_failure(error, "asking for the size of " + name);
    }
    size = bytes;
  }
  return std::make_unique<FileEndpoint>(std::move(name), fd, owned, size, S_ISBLK(status.st_mode), interrupt);
}

}  // namespace

Result<std::unique_ptr<Endpoint>> open_source(const std::string& path, const Interrupt& interrupt) {
  if (path == "-") return adopt("standard input", STDIN_FILENO, false, interrupt);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno_failure(errno, fmt::format("opening {} for reading", path));
  return adopt(path, fd, true, interrupt);
}

Result<std::unique_ptr<Endpoint>> open_destination(const std::string& path, const Interrupt& interrupt) {
  if (path == "-") return adopt("standard output", STDOUT_FILENO, false, interrupt);
  struct stat status {};
  // A block device that is mounted or otherwise in use must not be overwritten underneath its user: O_EXCL says so.
  const bool device = ::stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | (device ? O_EXCL : O_CREAT), 0666);
  if (fd < 0)
    return errno_failure(errno, fmt::format("opening {} for writing", path),
                         errno == EBUSY ? "it is mounted or in use: unmount it first" : "");
  return adopt(path, fd, true, interrupt);
}

}  // namespace rbt::tools
