#pragma once
// How a file store reads and writes: operations on descriptors that never block the reactor. io_uring does it where
// the kernel lets us, a few threads elsewhere (uring_engine.h, thread_engine.h); tests put faults in between.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "common/check.h"
#include "common/result.h"
#include "transport/memory/buffer_pool.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

struct IoDescriptor;

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
  std::uint64_t offset = 0;    ///< bytes
  std::uint64_t length = 0;    ///< bytes; less than 2 GiB for read and write
  IoDescriptor* on = nullptr;  ///< set by submit()
  Kind kind = Kind::read;
};

/// Told what became of an operation, on the reactor's thread, from poll().
class IoHandler {
 public:
  virtual ~IoHandler() = default;
  /// `result` as the system call would return it: bytes transferred (perhaps fewer than asked for) or 0; -errno.
  virtual void on_io_done(IoOperation& operation, std::int64_t result) = 0;
};

/// What an engine knows of a descriptor.
struct IoDescriptor {
  int fd;
  IoHandler& handler;
  std::size_t under_way = 0;

  void finish(IoOperation& operation, std::int64_t result) {
    --under_way;
    handler.on_io_done(operation, result);
  }
};

/// One reactor's way to one descriptor. Destroy it when nothing is under way.
class IoQueue {
 public:
  virtual ~IoQueue() = default;
  /// Begins `operation`, soon; its handler hears of it later, always. Any number; what the kernel has no room for
  /// waits in order. Operations under way at the same time run in any order.
  virtual void submit(IoOperation& operation) = 0;
};

/// What one reactor's queues have in common: a ring, or threads. It is a source of the reactor while something is under
/// way. On the reactor's thread, or before that runs. Outlives its queues.
class IoEngine {
 public:
  virtual ~IoEngine() = default;
  /// `fd` and `handler` outlive the queue.
  [[nodiscard]] virtual std::unique_ptr<IoQueue> open(int fd, IoHandler& handler) = 0;
};

/// The queue of an engine that has a submit() of its own.
template <typename Engine>
class EngineQueue final : public IoQueue {
 public:
  EngineQueue(Engine& engine, int fd, IoHandler& handler) : engine_(engine), descriptor_{fd, handler} {}
  ~EngineQueue() override { check(descriptor_.under_way == 0, "an I/O queue is destroyed when nothing is under way"); }
  void submit(IoOperation& operation) override {
    operation.on = &descriptor_;
    ++descriptor_.under_way;
    engine_.submit(operation);
  }

 private:
  Engine& engine_;
  IoDescriptor descriptor_;
};

/// Thread-safe.
class IoEngineFactory {
 public:
  virtual ~IoEngineFactory() = default;
  /// `reactor` and `buffers` outlive the engine. `buffers`: where most data comes from and goes to.
  [[nodiscard]] virtual Result<std::unique_ptr<IoEngine>> open(transport::Reactor& reactor,
                                                               transport::BufferPool& buffers) = 0;
  /// For messages: "io_uring", "threads".
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
};

}  // namespace rbt::target
