#pragma once
// The inside of a VolumeLane: requests that outlive a path, on one queue pair after the other.

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "initiator/unflushed.h"
#include "initiator/volume.h"

namespace rbt::initiator {

/// What the lanes of a volume know of each other. The volume's, but for what it says otherwise, written by all lanes.
struct Volume::Shared {
  /// Some lane's queue pair is of no use any more: Lane::trouble(), which is released with it. Cleared by the volume, with all
  /// lanes halted.
  std::atomic<bool> trouble{false};
  /// One for each write that is kept, taken (release) when its answer is there: whoever has read it (acquire) before it sends a
  /// flush knows of all up to here that they were done before. A write that was answered before another was submitted has the
  /// lesser number, on whatever lanes they were.
  alignas(64) std::atomic<std::uint64_t> acknowledged{0};  // a line of its own: the others are read all the time
  /// Up to here they need not be kept: raised (release) by a flush, read (acquire) by lanes that look for room, and before
  /// anything is written again.
  alignas(64) std::atomic<std::uint64_t> durable{0};
  /// A flush has failed: nobody knows what the medium has. Read and cleared by the volume.
  std::atomic<bool> flush_failed{false};
  /// There may be writes of a predecessor's that are not durable, of which there is no copy: lane 0 flushes, or will as soon as there
  /// is a path. Set by the volume, cleared by whichever flush succeeds.
  std::atomic<bool> inherited{false};
  /// That flush has failed: the next one of a caller's ends with it. Success: nothing is owed.
  std::atomic<nvme::Status> owed{};
  static_assert(decltype(owed)::is_always_lock_free);
};

/// Belongs to its reactor's thread, also while that of the volume's has it do something and waits: open() to close(). Neither
/// knows the other's state: a lane is halted, open, or ended.
class Volume::Lane final : public VolumeLane {
 public:
  /// `volume_reactor`: woken when there is trouble; null for the lane on that reactor.
  Lane(const Clock& clock, transport::Reactor& reactor, const VolumeOptions& options, Shared& shared,
       std::size_t number, transport::Reactor* volume_reactor);
  ~Lane() override = default;

  Submitted submit(Request& request) override;
  [[nodiscard]] const Namespace& disk() const noexcept override { return disk_; }
  [[nodiscard]] transport::Reactor& reactor() const noexcept override { return reactor_; }

  // The volume's, in this order, on the lane's thread. open() and halt() turn the reactor.
  /// A queue pair of `session`. `unflushed`: memory for what is not flushed, if there is none yet; 0: none is kept.
  [[nodiscard]] Result<void> open(Session& session, const Namespace& disk, Bytes unflushed);
  void resume();  ///< sends what there is
  void halt();    ///< what was out is pending again
  void follow(const Namespace& disk) { disk_ = disk; }
  void fail();   ///< everything ends as `disconnected`, within the next turn
  void close();  ///< everything ends as `aborted`, from within

  // Any thread.
  [[nodiscard]] std::size_t number() const noexcept { return number_; }
  [[nodiscard]] std::uint32_t in_flight() const noexcept { return in_flight_.load(std::memory_order_relaxed); }
  [[nodiscard]] bool proven() const noexcept { return proven_.load(std::memory_order_relaxed); }
  void add_to(VolumeStatistics& sum) const noexcept;
  /// Why the queue pair is of no use; null: it is. Until halt().
  [[nodiscard]] const Error* trouble() const noexcept {
    return troubled_.load(std::memory_order_acquire) ? &*trouble_ : nullptr;
  }

  // The volume's thread, while the lane is halted, or open and not resumed.
  /// Null: nothing is kept.
  [[nodiscard]] UnflushedWrites* unflushed() noexcept { return unflushed_ ? &*unflushed_ : nullptr; }
  /// Lets go of what other lanes' flushes have made durable.
  void forget_durable() noexcept;
  [[nodiscard]] QueuePair& queue() noexcept { return *queue_; }

 private:
  enum class State : std::uint8_t {
    halted,  ///< requests wait
    open,    ///< they are sent
    failed,
    closed,
  };
  /// One request of the caller's, from submit() to its done. In one list: free, pending (in order of submission) or ended.
  struct Slot {
    Lane* lane = nullptr;
    Request inner{};  // what the queue pair sees
    Request* outer = nullptr;
    Slot* previous = nullptr;
    Slot* next = nullptr;
    std::optional<UnflushedWrites::Reservation> kept;
    std::uint64_t covers = 0;  // a flush: as far as acknowledgements had come when it was sent
    Instant submitted{};
    bool sent_before = false;
  };

  [[nodiscard]] bool make_room(Slot& slot);
  void pump();
  void on_done(Slot& slot);
  void on_own_flush();
  void flush_if_needed();
  void note_durable(std::uint64_t covered) noexcept;
  void note_trouble(Error why);
  void unlink(Slot& slot) noexcept;
  void settle_kept(Slot& slot, Outcome outcome) noexcept;
  void finish(Slot& slot, Outcome outcome, nvme::Status status);
  void end_later(Slot& slot, Outcome outcome, nvme::Status status);
  void end_all_later(Outcome outcome);
  void run_ended();
  void give_back(Slot& slot);
  void count(const Slot& slot) noexcept;
  void publish_kept() noexcept;
  [[nodiscard]] Instant now() const noexcept { return clock_.now(); }

  const Clock& clock_;
  transport::Reactor& reactor_;
  const VolumeOptions& options_;
  Shared& shared_;
  std::size_t number_;
  transport::Reactor* volume_reactor_;
  State state_ = State::halted;
  Namespace disk_;
  std::unique_ptr<QueuePair> queue_;
  std::optional<Error> trouble_;  // written once before troubled_ is released
  std::atomic<bool> troubled_{false};
  std::atomic<bool> proven_{false};  // a request was carried out on this queue pair

  std::optional<UnflushedWrites> unflushed_;
  Request own_flush_;
  std::uint64_t own_flush_covers_ = 0;
  std::optional<nvme::Status> own_flush_failed_;

  std::vector<Slot> slots_;
  Slot* free_ = nullptr;
  Slot* oldest_ = nullptr;  // pending
  Slot* newest_ = nullptr;
  Slot* unsent_ = nullptr;  // all pending ones from here on have not been sent on this path
  Slot* ended_ = nullptr;   // done is due, in order
  Slot* last_ended_ = nullptr;
  transport::Timer run_ended_;

  // Written here only, each with a plain load and a relaxed store; read by others as they come.
  std::atomic<std::uint32_t> in_flight_{0};
  VolumeStatistics statistics_;
};

}  // namespace rbt::initiator
