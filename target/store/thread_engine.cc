#include "target/store/thread_engine.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/quiet_thread.h"
#include "target/store/store_request.h"

namespace rbt::target {

namespace {

// Enough to keep a solid-state disk busy at small depth; each costs a stack.
constexpr std::size_t kThreads = 8;

std::int64_t carry_out(const IoOperation& operation) noexcept {
  using Kind = IoOperation::Kind;
  const int fd = operation.on->fd;
  const auto offset = static_cast<::off_t>(operation.offset);
  const auto length = static_cast<::off_t>(operation.length);
  const ::iovec vector{operation.data, operation.length};
  const auto allocate = [&](int mode) -> std::int64_t {
    return ::fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, offset, length);
  };
  std::int64_t result = -1;
  switch (operation.kind) {
    case Kind::read: result = ::pread(fd, operation.data, operation.length, offset); break;
    case Kind::write: result = ::pwrite(fd, operation.data, operation.length, offset); break;
    case Kind::write_durable: result = ::pwritev2(fd, &vector, 1, offset, RWF_DSYNC); break;
    case Kind::sync_data: result = ::fdatasync(fd); break;
    case Kind::punch_hole: result = allocate(FALLOC_FL_PUNCH_HOLE); break;
    case Kind::zero_range: result = allocate(FALLOC_FL_ZERO_RANGE); break;
    case Kind::discard_device: {
      std::array<std::uint64_t, 2> range{operation.offset, operation.length};
      result = ::ioctl(fd, BLKDISCARD, range.data());
      break;
    }
  }
  return result < 0 ? -std::int64_t{errno} : result;
}

/// An operation and what became of it: the threads cannot write into the operation, which belongs to the reactor.
struct Ended {
  IoOperation* operation;
  std::int64_t result;
};

/// The reactor's thread submits and reaps; the threads work. They meet in `shared_`.
class ThreadEngine final : public IoEngine, private transport::Source {
 public:
  explicit ThreadEngine(transport::Reactor& reactor) : reactor_(reactor) {}
  ~ThreadEngine() override {
    check(under_way_ == 0, "an I/O engine is destroyed when nothing is under way");
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_)
      thread.join();
    if (event_fd_ < 0) return;
    reactor_.unwatch(event_fd_);
    ::close(event_fd_);
  }

  [[nodiscard]] Result<void> start() {
    event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_fd_ < 0)
      return errno_failure(errno, "creating an eventfd", "raise the limit of open files (`ulimit -n`)");
    if (auto watched = reactor_.watch(event_fd_, EPOLLIN, [this](std::uint32_t) { quiet(); }); !watched) return watched;
    for (std::size_t i = 0; i < kThreads; ++i) {
      auto thread = start_quiet_thread([this] { work(); });
      if (!thread) return failure(std::move(thread.error()));
      threads_.push_back(std::move(*thread));
    }
    return {};
  }

  [[nodiscard]] std::unique_ptr<IoQueue> open(int fd, IoHandler& handler) override {
    return std::make_unique<EngineQueue<ThreadEngine>>(*this, fd, handler);
  }

  void submit(IoOperation& operation) {
    ++under_way_;
    if (!std::exchange(listed_, true)) reactor_.add(*this);
    {
      const std::lock_guard lock(mutex_);
      waiting_.push(operation);
      ended_.reserve(under_way_);  // so that the threads never allocate, and nobody does in steady state
    }
    wanted_.notify_one();
  }

 private:
  std::size_t poll() override {
    {
      const std::lock_guard lock(mutex_);
      ended_.swap(taken_);
    }
    for (std::size_t i = 0; i < taken_.size(); ++i) {
      --under_way_;
      taken_[i].operation->on->finish(*taken_[i].operation, taken_[i].result);
    }
    const std::size_t count = taken_.size();
    taken_.clear();
    if (under_way_ == 0) {
      listed_ = false;
      reactor_.remove(*this);
    }
    return count;
  }

  [[nodiscard]] bool arm() override {
    const std::lock_guard lock(mutex_);
    asleep_ = ended_.empty();
    return asleep_;
  }
  void disarm() override {
    const std::lock_guard lock(mutex_);
    asleep_ = false;
  }

  void quiet() const noexcept {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(event_fd_, &count, sizeof count);  // EAGAIN: nothing to quieten
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      wanted_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      IoOperation& operation = waiting_.pop();
      lock.unlock();
      const std::int64_t result = carry_out(operation);
      lock.lock();
      ended_.push_back({&operation, result});
      if (!asleep_) continue;
      asleep_ = false;
      const std::uint64_t one = 1;
      [[maybe_unused]] const auto rung = ::write(event_fd_, &one, sizeof one);  // cannot fail: the count is tiny
    }
  }

  transport::Reactor& reactor_;
  int event_fd_ = -1;
  bool listed_ = false;        // a source of the reactor
  std::size_t under_way_ = 0;  // the reactor's
  std::vector<Ended> taken_;   // the reactor's
  std::mutex mutex_;           // guards the five below
  std::condition_variable wanted_;
  RecordQueue<IoOperation> waiting_;
  std::vector<Ended> ended_;
  bool asleep_ = false;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<IoEngine>> ThreadFactory::open(transport::Reactor& reactor, transport::BufferPool&) {
  auto engine = std::make_unique<ThreadEngine>(reactor);
  if (auto started = engine->start(); !started) return failure(std::move(started.error()));
  return engine;
}

}  // namespace rbt::target
