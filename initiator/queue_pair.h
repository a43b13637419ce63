#pragma once
// Reading and writing: a queue pair of a session, one per caller thread, on the reactor that this thread
// turns.

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "common/nvme/io_command.h"
#include "common/nvme/status.h"
#include "initiator/namespace.h"
#include "transport/fabric.h"
#include "transport/memory/buffer_pool.h"

namespace rbt::initiator {

enum class Operation : std::uint8_t { read, write, compare, flush, discard, write_zeroes };
[[nodiscard]] std::string_view name(Operation operation) noexcept;

/// How a request ended. QueuePair::failure() has the words for what befell the connection.
enum class Outcome : std::uint8_t {
  pending,  ///< not submitted, or not done yet
  success,
  failed,        ///< the controller said no: Request::status
  timed_out,     ///< no answer in its time; the connection was closed for it
  disconnected,  ///< the connection was lost, or closed for another's timeout or a violation of the protocol
  aborted,       ///< the queue pair was closed by its owner
  // refused by submit(), nothing sent:
  out_of_range,  ///< not within the namespace
  misaligned,    ///< no data, or not whole blocks
  unsupported,   ///< the controller does not have this command, or the namespace is read-only
  unmapped,      ///< the data is not in this process's memory (any more); commands of it that were sent are done
};
[[nodiscard]] std::string_view name(Outcome outcome) noexcept;

/// What became of a call that submits.
enum class [[nodiscard]] Submitted : std::uint8_t{
    accepted,  ///< Request::done will be called, exactly once, never from within the call
    full,      ///< no free command slot (or bounce buffer); nothing was taken: try again after some request is
               ///< done
    refused,   ///< Request::outcome says why; done is not called
    dead,      ///< the connection is gone: QueuePair::failure()
};

/// One request of the caller, made of as many commands as it takes. Lives in the caller's memory, at one
/// address, from an accepted submit() until `done` has been called; so do the iovecs, the ranges and the data
/// (a Volume sends them again). Afterwards it may be used again, also from within `done`.
struct Request {
  /// On the reactor's thread, from within its turn. Must not destroy the queue pair.
  void (*done)(Request& request) = nullptr;
  void* context = nullptr;  ///< the caller's
  Duration timeout{0};      ///< 0: SessionOptions::command_timeout; from the sending of each command

  Outcome outcome = Outcome::pending;
  nvme::Status status;  ///< with Outcome::failed: of the command with the lowest LBA that failed

  // What to do: filled in by the calls of QueuePair.
  Operation operation = Operation::read;
  const Namespace* target = nullptr;
  BlockRange range;
  std::span<const iovec> data;
  std::span<const BlockRange> ranges;  ///< discard
  nvme::ForceUnitAccess fua = nvme::ForceUnitAccess::no;
  nvme::Deallocate deallocate = nvme::Deallocate::no;

  [[nodiscard]] bool in_flight() const noexcept { return in_flight_; }

 private:
  friend class QueuePair;
  friend class Volume;
  std::uint64_t sent_ = 0;  // blocks (discard: ranges) given to commands so far
  std::size_t piece_ = 0;   // where in `data` the next command begins
  std::size_t piece_offset_ = 0;
  std::uint64_t range_offset_ = 0;  // discard: blocks of ranges[sent_] given to commands
  std::uint64_t failed_at_ = 0;     // position of the command that `status` is from
  std::uint32_t commands_ = 0;      // sent, not done
  bool in_flight_ = false;
};

struct QueuePairOptions {
  std::uint32_t depth = 128;  ///< commands outstanding, 1 to 1023; less if the controller allows less: see depth()
  Bytes buffers{0};           ///< for buffers(): registered memory that the caller takes its buffers from; 0: none
  Bytes bounce{8 * kMiB};     ///< registered memory for requests whose data the peer cannot reach; at least 2 MiB
  /// The connection has ended, and not by its owner: failure() says why. What is outstanding is told later. On the reactor's
  /// thread, from within any call or turn; of the queue pair it may call what is const.
  std::function<void()> on_lost{};
};

/// Work done so far. One thread: read it on the reactor's.
struct QueuePairCounters {
  std::uint64_t requests = 0;
  std::uint64_t commands = 0;
  std::uint64_t errors = 0;  ///< requests done with another outcome than success
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t bytes_in_capsule = 0;  ///< of bytes_written: sent inside the capsule
  std::uint64_t bytes_bounced = 0;     ///< copied between the caller's memory and the queue pair's
  transport::PollGroupCounters transport;
};

/// One NVMe I/O queue. Belongs to the thread that turns its reactor: every call, callbacks too. Made by
/// Session::open_queue_pair(); destroy it before its session and its reactor.
///
/// Data: the peer moves it with RDMA straight from and to the iovecs if the bytes of one command are
/// contiguous and lie in buffers(), in one RegisteredBuffer of the session, or, with Environment::monitor, in memory that
/// can be registered on the spot and watched (BufferCacheOptions). Otherwise the command's data is
/// copied through the queue pair's own memory, once, and counted (bytes_bounced): one keyed descriptor is all
/// that every target takes (MSDBD 1). Requests beyond transfer_max become several commands, sent as slots
/// come free; they are not atomic together, blocks are.
///
/// With a monitor any thread may unmap, remap, replace or discard memory at any time after the requests that name it are
/// done, with no word to us. Doing so before is a mistake: it waits for requests whose memory is registered,
/// BufferCacheOptions::change_wait_max at most (from the reactor's own thread, which cannot see them done meanwhile, it
/// always ends in Outcome::disconnected); requests whose data is copied need their memory until they are done.
class QueuePair {
 public:
  /// Closes: what is outstanding is done with Outcome::aborted, from within. Turns the reactor until the
  /// fabric has let the memory go, at most 6 s. Not from within a callback.
  ~QueuePair();
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  /// The data's length must be a multiple of the block size; it says how many blocks. NVM 1.0, 3.2.
  Submitted read(Request& request, const Namespace& from, Lba first, std::span<const iovec> data);
  Submitted write(Request& request, const Namespace& to, Lba first, std::span<const iovec> data,
                  nvme::ForceUnitAccess fua = nvme::ForceUnitAccess::no);
  /// Fails with compare_failure if the blocks differ from the data.
  Submitted compare(Request& request, const Namespace& with, Lba first, std::span<const iovec> data);
  /// Everything that was done before this call becomes durable.
  Submitted flush(Request& request, const Namespace& of);
  /// The contents may be forgotten. Any number of ranges.
  Submitted discard(Request& request, const Namespace& in, std::span<const BlockRange> ranges);
  Submitted write_zeroes(Request& request, const Namespace& in, BlockRange range,
                         nvme::Deallocate deallocate = nvme::Deallocate::no,
                         nvme::ForceUnitAccess fua = nvme::ForceUnitAccess::no);
  /// What the calls above do once the request is filled in.
  Submitted submit(Request& request);

  /// Turns the reactor until `request` is done (its `done`, if any, has been called then). False: `deadline`
  /// passed first.
  [[nodiscard]] bool wait(const Request& request, Instant deadline);

  /// Registered memory for data without a copy: QueuePairOptions::buffers bytes of it; null if that was 0.
  [[nodiscard]] transport::BufferPool* buffers() noexcept;

  [[nodiscard]] bool live() const noexcept;
  /// Why the connection ended; null while it has not.
  [[nodiscard]] const Error* failure() const noexcept;
  /// Commands that may be outstanding: what was asked for, cut to what the controller allows.
  [[nodiscard]] std::uint32_t depth() const noexcept;
  /// Requests submitted and not done.
  [[nodiscard]] std::uint32_t in_flight() const noexcept;
  [[nodiscard]] Qid qid() const noexcept;
  [[nodiscard]] QueuePairCounters counters() const;

 private:
  friend class Session;
  class Implementation;
  explicit QueuePair(std::unique_ptr<Implementation> implementation) noexcept;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace rbt::initiator
