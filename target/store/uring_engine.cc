#include "target/store/uring_engine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <liburing.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/sizes.h"
#include "target/store/store_request.h"

// Newer than Debian 12's headers.
#ifndef BLOCK_URING_CMD_DISCARD
#define BLOCK_URING_CMD_DISCARD _IO(0x12, 0)  // linux/blkdev.h, Linux 6.12
#endif

namespace rbt::target {

namespace {

// Submissions of one turn; twice as many completions fit, and no more operations are under way than that.
constexpr unsigned kEntries = 512;
constexpr unsigned kUnderWayMax = 2 * kEntries;

// Task work runs when we look, never by interrupting; TASKRUN_FLAG tells without a system call whether there is any.
constexpr unsigned kOneIssuer = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
constexpr unsigned kCooperative = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
constexpr std::array<unsigned, 3> kSetups{kOneIssuer, kCooperative, 0};  // Linux 6.1, 5.19, 5.6

// One registered buffer has at most 1 GiB. None of the pool's blocks lies across such a border.
constexpr std::size_t kFixedBytes = std::size_t{1} << 30;
static_assert(kFixedBytes % transport::BufferPool::kBlockMax == 0);

/// `fixed`: memory whose pieces of kFixedBytes are the ring's registered buffers; empty if there are none.
void prepare_transfer(io_uring_sqe& entry, const IoOperation& operation, const transport::MemorySpan& fixed) noexcept {
  const bool reads = operation.kind == IoOperation::Kind::read;
  const auto at = reinterpret_cast<std::uintptr_t>(operation.data) - reinterpret_cast<std::uintptr_t>(fixed.data);
  const bool is_fixed = at < fixed.size;  // what lies below wraps to a number beyond every size
  const int plain = reads ? IORING_OP_READ : IORING_OP_WRITE;
  const int registered = reads ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
  io_uring_prep_rw(is_fixed ? registered : plain, &entry, operation.on->fd, operation.data,
                   static_cast<unsigned>(operation.length), operation.offset);
  if (is_fixed) entry.buf_index = static_cast<std::uint16_t>(at / kFixedBytes);
}

void prepare(io_uring_sqe& entry, const IoOperation& operation, const transport::MemorySpan& fixed) noexcept {
  using Kind = IoOperation::Kind;
  const int fd = operation.on->fd;
  switch (operation.kind) {
    case Kind::read: prepare_transfer(entry, operation, fixed); return;
    case Kind::write:
    case Kind::write_durable:
      prepare_transfer(entry, operation, fixed);
      if (operation.kind == Kind::write_durable) entry.rw_flags = RWF_DSYNC;
      return;
    case Kind::sync_data: io_uring_prep_fsync(&entry, fd, IORING_FSYNC_DATASYNC); return;
    case Kind::punch_hole:
    case Kind::zero_range: {
      const int mode = operation.kind == Kind::punch_hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
      // Not io_uring_prep_fallocate(): in liburing 2.3 its length is an off_t, in 2.4 a __u64, and -Wconversion is on.
      io_uring_prep_rw(IORING_OP_FALLOCATE, &entry, fd, nullptr, static_cast<unsigned>(mode | FALLOC_FL_KEEP_SIZE),
                       operation.offset);
      entry.addr = operation.length;
      return;
    }
    case Kind::discard_device:
      io_uring_prep_rw(IORING_OP_URING_CMD, &entry, fd, nullptr, 0, 0);
      entry.cmd_op = BLOCK_URING_CMD_DISCARD;
      entry.addr = operation.offset;
      entry.addr3 = operation.length;
      return;
  }
}

/// Owned by the reactor's thread, also where it was made on another: the ring is enabled, and so bound to its one
/// issuer, by the first poll().
class UringEngine final : public IoEngine, private transport::Source {
 public:
  explicit UringEngine(transport::Reactor& reactor) : reactor_(reactor) {}
  ~UringEngine() override {
    check(waiting_.empty() && under_way_ == 0, "an I/O engine is destroyed when nothing is under way");
    if (open_) io_uring_queue_exit(&ring_);
    if (event_fd_ < 0) return;
    reactor_.unwatch(event_fd_);
    ::close(event_fd_);
  }

  [[nodiscard]] Result<void> start(unsigned setup_flags) {
    disabled_ = setup_flags == kOneIssuer;
    const unsigned flags = setup_flags | (disabled_ ? unsigned{IORING_SETUP_R_DISABLED} : 0U);
    const int error = io_uring_queue_init(kEntries, &ring_, flags);
    if (error != 0)
      return errno_failure(-error, fmt::format("opening an io_uring of {} entries", kEntries),
                           "raise the limits of open files and memory");
    open_ = true;
    // Watching the ring's own descriptor loses wake-ups with DEFER_TASKRUN (50 of 50 fdatasyncs on Linux 6.18): epoll
    // is not told of work that waits to be run. A registered eventfd is, in all three kinds.
    event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_fd_ < 0)
      return errno_failure(errno, "creating an eventfd", "raise the limit of open files (`ulimit -n`)");
    if (const int refused = io_uring_register_eventfd(&ring_, event_fd_); refused != 0)
      return errno_failure(-refused, "giving an io_uring its eventfd");
    ring_bell(Bell::off);
    return reactor_.watch(event_fd_, EPOLLIN, [this](std::uint32_t) {
      std::uint64_t count = 0;
      [[maybe_unused]] const auto got = ::read(event_fd_, &count, sizeof count);  // EAGAIN: nothing to quieten
    });
  }

  /// Most often refused for RLIMIT_MEMLOCK; everything works without.
  void fix(const transport::MemorySpan& memory) {
    std::vector<::iovec> pieces;
    for (std::size_t at = 0; at < memory.size; at += kFixedBytes)
      pieces.push_back({memory.data + at, std::min(kFixedBytes, memory.size - at)});
    const int error = io_uring_register_buffers(&ring_, pieces.data(), static_cast<unsigned>(pieces.size()));
    if (error == 0) fixed_ = memory;
    if (error != 0)
      reactor_.logger().debug(
          "{}", Error::from_errno(
                    -error, fmt::format("registering {} of buffers with io_uring", format_bytes(Bytes(memory.size))),
                    "file stores do without")
                    .message());
  }

  [[nodiscard]] std::unique_ptr<IoQueue> open(int fd, IoHandler& handler) override {
    return std::make_unique<EngineQueue<UringEngine>>(*this, fd, handler);
  }

  void submit(IoOperation& operation) {
    check(operation.length <= INT_MAX ||
              (operation.kind != IoOperation::Kind::read && operation.kind != IoOperation::Kind::write &&
               operation.kind != IoOperation::Kind::write_durable),
          "one read or write is less than 2 GiB");
    waiting_.push(operation);
    if (std::exchange(listed_, true)) return;
    reactor_.add(*this);
  }

 private:
  std::size_t poll() override {
    if (disabled_) {
      // io_uring_enable_rings() is declared by Debian 12's liburing, but not exported.
      check(::syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) == 0,
            "a ring that was made can be enabled");
      disabled_ = false;
    }
    const std::size_t begun = hand_over();
    const std::size_t ended = reap();
    if (waiting_.empty() && under_way_ == 0) {
      listed_ = false;
      reactor_.remove(*this);
    }
    return begun + ended;
  }

  [[nodiscard]] bool arm() override {
    ring_bell(Bell::on);
    // Between our store to the flag and our look at what is there, as the kernel has one between what it puts there and
    // its look at the flag: one of the two sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const unsigned flags = std::atomic_ref(*ring_.sq.kflags).load(std::memory_order_relaxed);
    const bool work = io_uring_cq_ready(&ring_) != 0 || (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
    return waiting_.empty() && !unsubmitted_ && !work;
  }
  void disarm() override { ring_bell(Bell::off); }

  /// While the bell is off, completions cost no write to the eventfd.
  enum class Bell : std::uint8_t { off, on };
  void ring_bell(Bell bell) noexcept {
    if (ring_.cq.kflags != nullptr) io_uring_cq_eventfd_toggle(&ring_, bell == Bell::on);
  }

  /// Fills the submission queue and enters the kernel once for all of it.
  std::size_t hand_over() {
    std::size_t begun = 0;
    while (!waiting_.empty() && under_way_ < kUnderWayMax) {
      io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
      if (entry == nullptr) break;
      IoOperation& operation = waiting_.pop();
      prepare(*entry, operation, fixed_);
      io_uring_sqe_set_data(entry, &operation);
      ++under_way_;
      ++begun;
    }
    if (begun == 0 && !unsubmitted_) return 0;
    // What the kernel does not take now (memory is short) stays in the submission queue until the next turn.
    const int taken = io_uring_submit(&ring_);
    check(taken >= 0 || taken == -EAGAIN || taken == -EBUSY || taken == -ENOMEM || taken == -EINTR,
          "io_uring_enter() refuses only for want of resources");
    unsubmitted_ = io_uring_sq_ready(&ring_) != 0;
    return begun;
  }

  std::size_t reap() {
    std::array<io_uring_cqe*, 64> entries{};
    std::size_t ended = 0;
    // One batch: what ends meanwhile is for the next turn, so that others get theirs.
    const unsigned count = io_uring_peek_batch_cqe(&ring_, entries.data(), entries.size());
    for (unsigned i = 0; i < count; ++i) {
      auto* const operation = static_cast<IoOperation*>(io_uring_cqe_get_data(entries[i]));
      const int result = entries[i]->res;
      io_uring_cqe_seen(&ring_, entries[i]);
      --under_way_;
      ++ended;
      operation->on->finish(*operation, result);
    }
    return ended;
  }

  transport::Reactor& reactor_;
  io_uring ring_{};
  transport::MemorySpan fixed_;  // empty: no registered buffers
  int event_fd_ = -1;
  bool open_ = false;
  bool disabled_ = false;
  bool listed_ = false;       // a source of the reactor
  bool unsubmitted_ = false;  // entries that the kernel has not taken yet
  RecordQueue<IoOperation> waiting_;
  unsigned under_way_ = 0;
};

/// 0, or the errno with which the kernel refuses such rings, or their use.
int try_setup(unsigned flags) {
  io_uring ring{};
  if (const int error = io_uring_queue_init(2, &ring, flags); error != 0) return -error;
  io_uring_prep_nop(io_uring_get_sqe(&ring));
  const int submitted = io_uring_submit_and_wait(&ring, 1);
  io_uring_queue_exit(&ring);
  return submitted < 0 ? -submitted : 0;
}

}  // namespace

Result<UringFactory> UringFactory::probe(FixedBuffers fixed_buffers) {
  int error = 0;
  for (const unsigned flags : kSetups) {
    error = try_setup(flags);
    if (error == 0) return UringFactory(flags, fixed_buffers);
    if (error != EINVAL) break;  // EINVAL: flags that this kernel does not know
  }
  return errno_failure(error, "setting up io_uring",
                       "see kernel.io_uring_disabled (sysctl) and, in a container, its seccomp profile");
}

Result<std::unique_ptr<IoEngine>> UringFactory::open(transport::Reactor& reactor, transport::BufferPool& buffers) {
  auto engine = std::make_unique<UringEngine>(reactor);
  if (auto started = engine->start(setup_flags_); !started) return failure(std::move(started.error()));
  if (fixed_buffers_ == FixedBuffers::if_allowed) engine->fix(buffers.memory().memory());
  return engine;
}

}  // namespace rbt::target
