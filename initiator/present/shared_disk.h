#pragma once
// A namespace that many threads read and write at once, each of them waiting for its own request: for presenters whose
// requests come on threads of others (nbdkit). One session, one lane or a few, data copied once by the calling thread.

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "initiator/initiator.h"
#include "initiator/present/lane.h"

namespace rbt::initiator {

struct SharedDiskOptions {
  /// io_queues is how many lanes there are to be; the URI's queues= goes before it. on_event is the disk's own.
  SessionOptions session{};
  std::uint32_t requests = 64;  ///< in flight at most, 1 to SharedDisk::kRequestsMax; further callers wait
};

/// How a request of a SharedDisk ended: never Outcome::pending.
struct [[nodiscard]] Ending {
  Outcome outcome = Outcome::success;
  nvme::Status status;  ///< with Outcome::failed
  [[nodiscard]] bool ok() const noexcept { return outcome == Outcome::success; }
};
/// "LBA Out of Range", "disconnected".
[[nodiscard]] std::string describe(const Ending& ending);

/// The errno that a block device's user is told, chosen among those that NBD can carry (EPERM, EROFS, EIO, EINVAL, ENOSPC,
/// ENOTSUP): 0 for success. Whether the namespace is read-only tells why a write is unsupported.
[[nodiscard]] int errno_of(Operation operation, const Ending& ending, bool read_only) noexcept;

/// The same unique identifiers and block size: what was written to one is in the other.
[[nodiscard]] bool same_disk(const Namespace& one, const Namespace& other) noexcept;

/// Thread-safe, but for connect() and the destructor. Steady-state requests allocate nothing and take no lock; a request
/// larger than kPiece is several commands, up to kWindow of them in flight, and not atomic; blocks are.
class SharedDisk {
 public:
  static constexpr std::uint32_t kRequestsMax = 64;  ///< bits of the word that says which jobs are free
  static constexpr std::size_t kPiece = 256 * kKiB;  ///< of data: one job's buffer
  static constexpr std::size_t kWindow = 8;

  /// Blocks until connected: SessionOptions::connect_timeout for the session, and the same for each lane. A URI without an
  /// NSID means the only namespace.
  [[nodiscard]] static Result<std::unique_ptr<SharedDisk>> connect(const Environment& environment, const Uri& uri,
                                                                   SharedDiskOptions options);
  /// No call is in progress. Blocks as Session::close().
  ~SharedDisk();
  SharedDisk(const SharedDisk&) = delete;
  SharedDisk& operator=(const SharedDisk&) = delete;

  /// As it was when last looked at; valid as long as the disk.
  [[nodiscard]] const Namespace& space() const noexcept { return *space_.load(std::memory_order_acquire); }
  [[nodiscard]] const Session& session() const noexcept { return *session_; }
  [[nodiscard]] std::size_t lanes() const noexcept { return lanes_.size(); }
  /// The target has said that namespaces have changed, and nobody has looked since.
  [[nodiscard]] bool changed() const noexcept { return changed_.load(std::memory_order_acquire); }
  /// Reads the namespace's size again. Blocks. Errors: it is gone, or another disk now (mismatch).
  [[nodiscard]] Result<void> look_again();
  /// Why requests fail: the session is lost, or a lane, and with it the requests that come to it. Nothing while all is well.
  /// Final: connect anew.
  [[nodiscard]] std::optional<Error> failure() const;

  // Each blocks until it is done, for the command timeout per command at most. Offsets and lengths in bytes; those that are
  // not whole blocks end as `misaligned`, with nothing done.
  Ending read(std::span<std::byte> into, Bytes offset);
  Ending write(std::span<const std::byte> from, Bytes offset, nvme::ForceUnitAccess fua);
  /// Everything that was done before becomes durable, whatever thread and lane it was done on (NVM 1.0, 3.2.2).
  Ending flush();
  /// Whole blocks within the range; with `fua` a flush follows, for Dataset Management has none.
  Ending discard(Bytes offset, Bytes length, nvme::ForceUnitAccess fua);
  Ending write_zeroes(Bytes offset, Bytes length, nvme::Deallocate deallocate, nvme::ForceUnitAccess fua);

 private:
  struct Transfer;
  SharedDisk() = default;
  [[nodiscard]] Result<void> open_lanes(const Environment& environment, const SharedDiskOptions& options);

  [[nodiscard]] Job* try_take() noexcept;
  [[nodiscard]] Job& take() noexcept;
  void give_back(Job& job) noexcept;
  [[nodiscard]] bool aligned(Bytes offset, Bytes length) const noexcept;
  void start_piece(Job& job, const Transfer& transfer, std::uint64_t at, std::size_t size);
  Ending finish_piece(Job& job, const Transfer& transfer);
  Ending transfer(const Transfer& transfer);
  Ending carry_out(Job& job);

  std::unique_ptr<Session> session_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // before their session in destruction
  std::array<Job, kRequestsMax> jobs_;
  std::atomic<std::uint64_t> free_{0};  // a bit per job; give_back() releases what take() acquires
  std::atomic<bool> changed_{false};    // set by the session's thread
  std::mutex look_mutex_;
  std::deque<Namespace> looks_;  // guarded by look_mutex_; each stays: requests point to them
  std::atomic<const Namespace*> space_{nullptr};
};

}  // namespace rbt::initiator
