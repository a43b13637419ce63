#pragma once
// How a file store reads and writes: operations on one descriptor that never block the reactor. io_uring does it where
// the kernel lets us, a few threads elsewhere (uring_queue.h, thread_queue.h); tests put faults in between.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "common/result.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

/// One system call's worth of work. Intrusive: it lives in the request it belongs to.
struct IoOperation {
  enum class Kind : std::uint8_t {
    read,
    write,
    write_durable,   ///< RWF_DSYNC
    sync_data,       ///< fdatasync
    punch_hole,      ///< fallocate: gives the space back, reads as zeroes
    zero_range,      ///< fallocate: reads as zeroes, keeps the space
    discard_device,  ///< BLKDISCARD
  };
  IoOperation* next = nullptr;
  std::byte* data = nullptr;
  std::uint64_t offset = 0;  ///< bytes
  std::uint64_t length = 0;  ///< bytes; less than 2 GiB for read and write
  Kind kind = Kind::read;
};

/// Told what became of an operation, on the reactor's thread, from poll().
class IoHandler {
 public:
  virtual ~IoHandler() = default;
  /// `result` as the system call would return it: bytes transferred (perhaps fewer than asked for) or 0; -errno.
  virtual void on_io_done(IoOperation& operation, std::int64_t result) = 0;
};

/// One reactor's way to one descriptor. It is a source of the reactor while something is under way. Destroy it when
/// nothing is.
class IoQueue {
 public:
  virtual ~IoQueue() = default;
  /// Begins `operation`, soon; its handler hears of it later, always. Any number; what the kernel has no room for
  /// waits in order. Operations under way at the same time run in any order.
  virtual void submit(IoOperation& operation) = 0;
};

/// Thread-safe.
class IoQueueFactory {
 public:
  virtual ~IoQueueFactory() = default;
  /// `fd`, `reactor` and `handler` outlive the queue.
  [[nodiscard]] virtual Result<std::unique_ptr<IoQueue>> open(int fd, transport::Reactor& reactor,
                                                              IoHandler& handler) = 0;
  /// For messages: "io_uring", "threads".
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
};

}  // namespace rbt::target
