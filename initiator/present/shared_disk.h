#pragma once
// A namespace that many threads read and write at once, each of them waiting for its own request: for presenters whose
// requests come on threads of others (nbdkit). One volume, with a thread of its own; data copied once by the calling thread.

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "initiator/present/lane.h"

namespace rbt::initiator {

struct SharedDiskOptions {
  /// `requests` and `queue` are the disk's own; the callbacks come on the disk's thread, from within connect() on the caller's.
  VolumeOptions volume{};
  std::uint32_t requests = 64;  ///< in flight at most, 1 to SharedDisk::kRequestsMax; further callers wait
};

/// What a closed disk leaves to its successor.
struct Remains {
  Succession succession;  ///< for VolumeOptions::predecessor
  /// It had acknowledged writes that may not be durable. If not, the record's `memory` may be put `off`.
  bool unflushed = false;
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

/// Thread-safe, but for connect(), close() and the destructor. Steady-state requests allocate nothing and take no lock; a
/// request larger than kPiece is several commands, up to kWindow of them in flight, and not atomic; blocks are.
class SharedDisk {
 public:
  static constexpr std::uint32_t kRequestsMax = 64;  ///< bits of the word that says which jobs are free
  static constexpr std::size_t kPiece = 256 * kKiB;  ///< of data: one job's buffer
  static constexpr std::size_t kWindow = 8;

  /// Blocks as Volume::open() does. A URI without an NSID means the only namespace.
  [[nodiscard]] static Result<std::unique_ptr<SharedDisk>> connect(const Environment& environment, const Uri& uri,
                                                                   SharedDiskOptions options);
  /// close(). No call is in progress.
  ~SharedDisk();
  SharedDisk(const SharedDisk&) = delete;
  SharedDisk& operator=(const SharedDisk&) = delete;

  /// As the target has it now; valid as long as the disk.
  [[nodiscard]] const Namespace& space() const noexcept { return *space_.load(std::memory_order_acquire); }
  /// Why requests fail, for good; nothing while they are carried out, or wait for a path.
  [[nodiscard]] std::optional<Error> failure() const;

  /// From now on no request waits for a path: when it is lost, or is already, they end as `aborted` or `disconnected`.
  void give_up_when_lost() { lane_->give_up_when_lost(); }
  /// Ends the thread. Requests, also those to come, end as `aborted` or `disconnected`. By one thread at a time.
  void close() { lane_->close(); }
  /// After close().
  [[nodiscard]] Remains remains() const;

  // Each blocks until it is done, for as long as the volume waits for a path. Offsets and lengths in bytes; those that are
  // not whole blocks end as `misaligned`, with nothing done.
  Ending read(std::span<std::byte> into, Bytes offset);
  Ending write(std::span<const std::byte> from, Bytes offset, nvme::ForceUnitAccess fua);
  /// Everything that was done before becomes durable, whatever thread it was done on (NVM 1.0, 3.2.2).
  Ending flush();
  /// Whole blocks within the range; with `fua` a flush follows, for Dataset Management has none.
  Ending discard(Bytes offset, Bytes length, nvme::ForceUnitAccess fua);
  Ending write_zeroes(Bytes offset, Bytes length, nvme::Deallocate deallocate, nvme::ForceUnitAccess fua);

 private:
  struct Transfer;
  SharedDisk() = default;
  void follow(VolumeState state, const Error* why);
  void look();

  [[nodiscard]] Job* try_take() noexcept;
  [[nodiscard]] Job& take() noexcept;
  void give_back(Job& job) noexcept;
  [[nodiscard]] bool aligned(Bytes offset, Bytes length) const noexcept;
  void start_piece(Job& job, const Transfer& transfer, std::uint64_t at, std::size_t size);
  Ending finish_piece(Job& job, const Transfer& transfer);
  Ending transfer(const Transfer& transfer);
  Ending carry_out(Job& job);

  std::array<Job, kRequestsMax> jobs_;
  std::atomic<std::uint64_t> free_{0};  // a bit per job; give_back() releases what take() acquires
  std::deque<Namespace> looks_;         // the lane's thread's; each stays: callers may be looking at it
  std::atomic<const Namespace*> space_{nullptr};
  mutable std::mutex failure_mutex_;
  std::optional<Error> failure_;  // guarded by failure_mutex_
  std::unique_ptr<Lane> lane_;    // the first to go: it calls back
};

}  // namespace rbt::initiator
