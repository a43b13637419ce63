#include "tools/rbt-connect/endpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <utility>
#include <vector>

#include "common/sizes.h"
#include "tools/rbt-connect/worker.h"

namespace rbt::tools {

namespace {

constexpr std::size_t kZeroes = 65536;  // at a time, where the kernel cannot do better

// Reads or writes all of `data`, whatever the pieces the kernel makes of it. Returns how much; less: the end, or errno.
template <typename Move>
std::size_t move_all(std::span<std::byte> data, Move move) {
  std::size_t moved = 0;
  errno = 0;
  while (moved < data.size()) {
    const ssize_t step = move(data.subspan(moved), moved);
    if (step < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (step <= 0) break;
    moved += static_cast<std::size_t>(step);
  }
  return moved;
}

// What is opened for one side of a copy.
struct Opened {
  std::string name;
  int fd;
  bool owned;
  int stop;                           // an eventfd: readable, nobody waits for a pipe any more
  std::optional<std::uint64_t> size;  // none: a pipe, and what is like one
  bool device;
  std::size_t piece_max;  // of a pipe: what does not block when it has room at all
};

// A file, device or pipe. Everything that may block is done on the worker's thread, transfers in the order of their coming.
class FileEndpoint final : public Endpoint {
 public:
  FileEndpoint(Opened opened, transport::Reactor& reactor, std::unique_ptr<Worker> worker)
      : name_(std::move(opened.name)),
        fd_(opened.fd),
        owned_(opened.owned),
        stop_(opened.stop),
        size_(opened.size),
        device_(opened.device),
        piece_max_(opened.piece_max),
        reactor_(reactor),
        worker_(std::move(worker)) {}
  ~FileEndpoint() override {
    give_up();
    worker_.reset();
    ::close(stop_);
    if (owned_) ::close(fd_);
  }

  const std::string& name() const noexcept override { return name_; }
  std::optional<std::uint64_t> size() const noexcept override { return size_; }
  std::uint32_t block_size() const noexcept override { return 1; }
  bool sequential() const noexcept override { return !size_; }

  void read(Transfer& transfer) override {
    begin(transfer, [this, &transfer] { size_ ? read_file(transfer) : read_pipe(transfer); });
  }
  void write(Transfer& transfer) override {
    begin(transfer, [this, &transfer] { write_all(transfer); });
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

  Result<void> zero(std::uint64_t offset, std::uint64_t length) override {
    if (size_ && !device_) return {};  // a hole of the emptied file
    return wait_for([&] { return zero_device(offset, length); });
  }

  Result<void> finish_writing(std::uint64_t end) override {
    return wait_for([&]() -> Result<void> {
      if (size_ && !device_ && ::ftruncate(fd_, static_cast<off_t>(end)) != 0)
        return errno_failure(errno, fmt::format("making {} {} bytes large", name_, end));
      // A pipe or terminal has nothing to make durable.
      if (::fdatasync(fd_) != 0 && errno != EINVAL && errno != EROFS)
        return errno_failure(errno, fmt::format("making {} durable", name_));
      return {};
    });
  }

  bool due() const noexcept override { return !finished_.empty(); }
  void progress() override {
    std::vector<Transfer*> batch;
    batch.swap(finished_);
    for (Transfer* const transfer : batch)
      transfer->done(*transfer);
  }
  void give_up() override { ::eventfd_write(stop_, 1); }

 private:
  void begin(Transfer& transfer, std::function<void()> call) {
    worker_->start(std::move(call), [this, &transfer] { finished_.push_back(&transfer); });
  }

  Result<void> wait_for(const std::function<Result<void>()>& call) {
    std::optional<Result<void>> result;
    bool done = false;
    worker_->start([&] { result = call(); }, [&] { done = true; });
    while (!reactor_.run_until([&] { return done; }, Instant::max())) {
    }
    return std::move(*result);
  }

  // ---- on the worker's thread

  void read_file(Transfer& transfer) {
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
  }

  // The end of the pipe is the end of all reads behind it, too.
  void read_pipe(Transfer& transfer) {
    const std::size_t got =
        ended_ ? 0 : move_all(transfer.data, [&](std::span<std::byte> rest, std::size_t) -> ssize_t {
          return wait_for_pipe(POLLIN) ? ::read(fd_, rest.data(), rest.size()) : -1;
        });
    if (!ended_ && got < transfer.data.size() && errno != 0)
      transfer.error = Error::from_errno(errno, fmt::format("reading {} at byte {}", name_, transfer.offset + got));
    ended_ = ended_ || got < transfer.data.size();
    transfer.data = transfer.data.first(got);
  }

  void write_all(Transfer& transfer) {
    const std::size_t put = move_all(transfer.data, [&](std::span<std::byte> rest, std::size_t at) -> ssize_t {
      if (size_) return ::pwrite(fd_, rest.data(), rest.size(), static_cast<off_t>(transfer.offset + at));
      if (!wait_for_pipe(POLLOUT)) return -1;
      return ::write(fd_, rest.data(), std::min(rest.size(), piece_max_));
    });
    if (put < transfer.data.size())
      transfer.error = Error::from_errno(errno != 0 ? errno : EIO,
                                         fmt::format("writing {} at byte {}", name_, transfer.offset + put));
  }

  // The other end may take for ever. False: nobody wants it any more (ECANCELED).
  bool wait_for_pipe(short what) const {
    std::array<pollfd, 2> both{pollfd{fd_, what, 0}, pollfd{stop_, POLLIN, 0}};
    while (::poll(both.data(), both.size(), -1) < 0 && errno == EINTR) {
    }
    if (both[1].revents == 0) return true;
    errno = ECANCELED;
    return false;
  }

  Result<void> zero_device(std::uint64_t offset, std::uint64_t length) {
    std::array<std::uint64_t, 2> range{offset, length};
    if (::ioctl(fd_, BLKZEROOUT, range.data()) == 0) return {};
    std::vector<std::byte> zeroes(kZeroes);
    while (length > 0) {
      Transfer piece;
      piece.offset = offset;
      piece.data = std::span(zeroes).first(std::min<std::uint64_t>(length, kZeroes));
      write_all(piece);
      if (piece.error) return failure(std::move(*piece.error));
      offset += piece.data.size();
      length -= piece.data.size();
    }
    return {};
  }

  const std::string name_;
  const int fd_;
  const bool owned_;
  const int stop_;
  std::optional<std::uint64_t> size_;  // changes before the first transfer
  const bool device_;
  const std::size_t piece_max_;
  bool ended_ = false;  // the worker's
  transport::Reactor& reactor_;
  std::unique_ptr<Worker> worker_;
  std::vector<Transfer*> finished_;
};

Result<std::unique_ptr<Endpoint>> adopt(std::string name, int fd, bool owned, transport::Reactor& reactor) {
  Opened opened{.name = std::move(name),
                .fd = fd,
                .owned = owned,
                .stop = -1,
                .size = {},
                .device = false,
                .piece_max = PIPE_BUF};
  const auto refused = [&](int error, std::string what) {
    if (opened.owned) ::close(opened.fd);
    if (opened.stop >= 0) ::close(opened.stop);
    return errno_failure(error, std::move(what));
  };
  struct stat status {};
  if (::fstat(fd, &status) != 0) return refused(errno, "looking at " + opened.name);
  if (S_ISREG(status.st_mode) && owned) opened.size = static_cast<std::uint64_t>(status.st_size);
  // A pipe of our own does not wait: somebody else's, who shares it with us, would not either, and may not like that.
  if (S_ISFIFO(status.st_mode) && !owned) {
    const int own = ::open(fmt::format("/proc/self/fd/{}", fd).c_str(),
                           (fd == STDIN_FILENO ? O_RDONLY : O_WRONLY) | O_NONBLOCK | O_CLOEXEC);
    if (own >= 0) opened.fd = own;
    opened.owned = own >= 0;
  }
  if (S_ISFIFO(status.st_mode) && opened.owned) ::fcntl(opened.fd, F_SETFL, O_NONBLOCK);
  if (!S_ISSOCK(status.st_mode) && ::isatty(fd) == 0 && (opened.owned || !S_ISFIFO(status.st_mode)))
    opened.piece_max = kMiB;
  if (S_ISBLK(status.st_mode)) {
    std::uint64_t bytes = 0;
    if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) return refused(errno, "asking for the size of " + opened.name);
    opened.size = bytes;
    opened.device = true;
  }
  opened.stop = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (opened.stop < 0) return refused(errno, "eventfd");
  auto worker = Worker::create(reactor);
  if (!worker) {
    static_cast<void>(refused(0, ""));
    return failure(std::move(worker.error()));
  }
  return std::make_unique<FileEndpoint>(std::move(opened), reactor, std::move(*worker));
}

}  // namespace

Result<std::unique_ptr<Endpoint>> open_source(const std::string& path, transport::Reactor& reactor) {
  if (path == "-") return adopt("standard input", STDIN_FILENO, false, reactor);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno_failure(errno, fmt::format("opening {} for reading", path));
  return adopt(path, fd, true, reactor);
}

Result<std::unique_ptr<Endpoint>> open_destination(const std::string& path, transport::Reactor& reactor) {
  if (path == "-") return adopt("standard output", STDOUT_FILENO, false, reactor);
  struct stat status {};
  // A block device that is mounted or otherwise in use must not be overwritten underneath its user: O_EXCL says so.
  const bool device = ::stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | (device ? O_EXCL : O_CREAT), 0666);
  if (fd < 0)
    return errno_failure(errno, fmt::format("opening {} for writing", path),
                         errno == EBUSY ? "it is mounted or in use: unmount it first" : "");
  return adopt(path, fd, true, reactor);
}

}  // namespace rbt::tools
