#include "initiator/present/ublk_ring.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/check.h"

namespace rbt::initiator {

namespace {

// New requests and copies of write data are task work of this thread, done when it enters the kernel anyway; TASKRUN_FLAG tells
// without a system call that there is some. Not DEFER_TASKRUN: with it such work is the ring's own, and a process that is killed leaves
// to the kernel's cleaning up what RingKeeper keeps from going wrong (Debian's 6.12.95 oopsed in io_fallback_tw in 1 of 5 kills).
constexpr unsigned kSetup = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;

std::size_t whole_pages(std::size_t bytes) noexcept {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

}  // namespace

Result<std::unique_ptr<UblkRing>> UblkRing::open(transport::Reactor& reactor, const UblkShape& shape, int device) {
  std::unique_ptr<UblkRing> ring(new UblkRing(reactor, shape, device));
  if (auto made = ring->make_ring(); !made) return failure(std::move(made.error()));
  return ring;
}

UblkRing::~UblkRing() {
  close();
}

// The kernel takes no writable mapping.
Result<void> UblkRing::map_descriptors() {
  mapping_ = whole_pages(shape_.depth * sizeof(ublksrv_io_desc));
  const std::size_t stride = whole_pages(UBLK_MAX_QUEUE_DEPTH * sizeof(ublksrv_io_desc));
  for (std::uint32_t i = 0; i < shape_.queues; ++i) {
    void* const at = ::mmap(nullptr, mapping_, PROT_READ, MAP_SHARED | MAP_POPULATE, device_,
                            static_cast<off_t>(UBLKSRV_CMD_BUF_OFFSET + (shape_.first + i) * stride));
    if (at == MAP_FAILED)
      return errno_failure(
          errno, fmt::format("mapping the descriptors of queue {} of /dev/ublkc{}", shape_.first + i, shape_.number));
    descriptors_.push_back(static_cast<const ublksrv_io_desc*>(at));
  }
  return {};
}

Result<void> UblkRing::make_ring() {
  const std::uint32_t tags = shape_.queues * shape_.depth;
  const std::uint32_t entries = std::bit_ceil(tags);
  check(tags <= kTagsMax, "a ring has an entry for every tag");
  if (const int error = io_uring_queue_init(entries, &ring_, kSetup); error != 0)
    return errno_failure(-error, fmt::format("opening an io_uring of {} entries", entries),
                         "raise the limits of open files and memory");
  ring_open_ = true;
  auto keeper = RingKeeper::start(ring_.ring_fd);
  if (!keeper) return failure(std::move(keeper.error()));
  keeper_ = std::move(*keeper);
  // The ring's own descriptor loses wake-ups in some kinds of rings; a registered eventfd does in none.
  event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_fd_ < 0) return errno_failure(errno, "creating an eventfd", "raise the limit of open files (`ulimit -n`)");
  if (const int refused = io_uring_register_eventfd(&ring_, event_fd_); refused != 0)
    return errno_failure(-refused, "giving an io_uring its eventfd");
  io_uring_cq_eventfd_toggle(&ring_, false);
  return reactor_.watch(event_fd_, EPOLLIN, [this](std::uint32_t) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(event_fd_, &count, sizeof count);  // EAGAIN: nothing to quieten
  });
}

void UblkRing::serve(UblkQueue& queue, std::function<void()> on_taken_back) {
  queue_ = &queue;
  on_taken_back_ = std::move(on_taken_back);
  reactor_.add(*this);
}

// Ring, mappings, device: while one of them is there the kernel does not take the device for let go.
void UblkRing::close() {
  if (std::exchange(queue_, nullptr) != nullptr) reactor_.remove(*this);
  if (event_fd_ >= 0) {
    reactor_.unwatch(event_fd_);
    ::close(std::exchange(event_fd_, -1));
  }
  keeper_.reset();
  if (std::exchange(ring_open_, false)) io_uring_queue_exit(&ring_);
  for (const ublksrv_io_desc* const at : descriptors_)
    ::munmap(const_cast<ublksrv_io_desc*>(at), mapping_);
  descriptors_.clear();
  if (device_ >= 0) ::close(std::exchange(device_, -1));
}

// ---- to the kernel

void UblkRing::fetch(std::uint32_t tag, std::span<std::byte> slot) {
  put(ublk::kFetch, tag, -1, slot);
}

void UblkRing::commit(std::uint32_t tag, int result, std::span<std::byte> slot) {
  put(ublk::kCommitAndFetch, tag, result, slot);
}

void UblkRing::put(const ublk::Io& what, std::uint32_t tag, int result, std::span<std::byte> slot) {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  check(entry != nullptr, "there is an entry for every tag");
  std::memset(entry, 0, sizeof *entry);
  entry->opcode = IORING_OP_URING_CMD;
  entry->fd = device_;
  entry->cmd_op = shape_.encoded ? what.encoded : what.number;
  entry->user_data = tag;
  ublksrv_io_cmd command{};
  command.q_id = static_cast<std::uint16_t>(shape_.first + tag / shape_.depth);
  command.tag = static_cast<std::uint16_t>(tag % shape_.depth);
  command.result = result;
  command.addr = reinterpret_cast<std::uintptr_t>(slot.data());
  static_assert(offsetof(io_uring_sqe, addr3) == 48 && sizeof(io_uring_sqe) == 64);
  std::memcpy(reinterpret_cast<std::byte*>(entry) + 48, &command, sizeof command);
}

std::size_t UblkRing::submit() {
  const unsigned ready = io_uring_sq_ready(&ring_);
  if (ready == 0) return 0;
  // What the kernel does not take now (memory is short) stays until the next turn.
  const int taken = io_uring_submit(&ring_);
  check(taken >= 0 || taken == -EAGAIN || taken == -EBUSY || taken == -ENOMEM || taken == -EINTR,
        "io_uring_enter() refuses only for want of resources");
  return ready;
}

Result<void> UblkRing::begin() {
  (void)submit();
  auto mapped = map_descriptors();
  if (mapped)
    (void)reap();
  else
    close();
  return mapped;
}

// ---- from the kernel

std::size_t UblkRing::reap() {
  std::array<io_uring_cqe*, 128> entries{};
  const unsigned count = io_uring_peek_batch_cqe(&ring_, entries.data(), entries.size());
  const std::uint32_t before = queue_->ended();
  for (unsigned i = 0; i < count; ++i) {
    const auto tag = static_cast<std::uint32_t>(entries[i]->user_data);
    queue_->on_answer(tag, entries[i]->res, descriptor(tag));
  }
  io_uring_cq_advance(&ring_, count);
  if (queue_->ended() != before) on_taken_back_();
  return count;
}

// Results first: entering the kernel with them brings the next requests.
std::size_t UblkRing::poll() {
  const std::size_t submitted = submit();
  const std::size_t done = submitted + queue_->retry() + reap();
  if (queue_->all_ended()) close();
  return done;
}

bool UblkRing::arm() {
  io_uring_cq_eventfd_toggle(&ring_, true);
  // Between our store to the flag and our look at what is there, as the kernel has one between what it puts there and its look
  // at the flag: one of the two sees the other.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const unsigned flags = std::atomic_ref(*ring_.sq.kflags).load(std::memory_order_relaxed);
  return io_uring_sq_ready(&ring_) == 0 && io_uring_cq_ready(&ring_) == 0 &&
         (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) == 0;
}

void UblkRing::disarm() {
  if (ring_open_) io_uring_cq_eventfd_toggle(&ring_, false);
}

}  // namespace rbt::initiator
