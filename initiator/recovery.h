#pragma once
// The inside of a Volume: the state machine (recovery.cc) and the requests that outlive a path (volume.cc).

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/nvme/access.h"
#include "common/nvme/recovery.h"
#include "initiator/unflushed.h"
#include "initiator/volume.h"

namespace rbt::initiator {

/// docs/recovery.md. advance() is the only one who writes the state.
[[nodiscard]] constexpr bool may_follow(VolumeState from, VolumeState to) noexcept {
  switch (to) {
    case VolumeState::live: return from == VolumeState::fenced;
    case VolumeState::lost: return from == VolumeState::live || from == VolumeState::fenced;
    case VolumeState::reconnecting: return from == VolumeState::lost;
    case VolumeState::fenced: return from == VolumeState::reconnecting;
    case VolumeState::failed:
      return from == VolumeState::lost || from == VolumeState::reconnecting || from == VolumeState::fenced;
    case VolumeState::closed: return from != VolumeState::closed;
  }
  return false;
}

/// The command did not reach its namespace, by this path, at this time (Base 2.0, 3.3.3.2.4): it may by another, or later.
[[nodiscard]] constexpr bool is_path_error(nvme::Status status) noexcept {
  return status.type() == 3;
}

/// Error: invalid_argument.
[[nodiscard]] Result<void> check_predecessor(const Succession& predecessor);

/// The owner's thread. While a volume is `reconnecting` or `fenced` and progress() is not running, nothing is connected.
class Volume::Implementation {
 public:
  Implementation(const Environment& environment, std::span<const Uri> uris, transport::Reactor& reactor,
                 const VolumeOptions& options);
  ~Implementation();

  // recovery.cc
  [[nodiscard]] Result<void> open();
  void close();
  [[nodiscard]] bool progress_due() const noexcept;
  void progress();

  // volume.cc
  Submitted submit(Request& request);
  [[nodiscard]] VolumeState state() const noexcept { return state_; }
  [[nodiscard]] const Error* failure() const noexcept { return failure_ ? &*failure_ : nullptr; }
  [[nodiscard]] const Namespace& disk() const noexcept { return disk_; }
  [[nodiscard]] Bytes request_max() const noexcept;
  [[nodiscard]] std::uint32_t in_flight() const noexcept { return in_flight_; }
  [[nodiscard]] const VolumeStatistics& statistics() noexcept;
  [[nodiscard]] Succession succession() const;
  [[nodiscard]] transport::BufferPool* buffers() noexcept { return buffers_.get(); }
  [[nodiscard]] transport::Reactor& reactor() const noexcept { return reactor_; }

 private:
  /// One request of the caller's, from submit() to its done. In one list: free, pending (in order of submission) or ended.
  struct Slot {
    Implementation* volume = nullptr;
    Request inner{};  // what the queue pair sees
    Request* outer = nullptr;
    Slot* previous = nullptr;
    Slot* next = nullptr;
    std::optional<UnflushedWrites::Reservation> kept;
    std::uint64_t covers = 0;  // a flush: as far as acknowledgements had come when it was sent
    Instant submitted{};
    bool sent = false;  // on the queue pair that there is
    bool sent_before = false;
  };
  /// An association that commands went out on, and may still be carried out.
  struct Old {
    nvme::AssociationId id;  // number 0: it has not said
    std::size_t uri = 0;     // uris_.size(): none of ours
    Instant silent;          // by then its keep-alive has ended it; max: it has none
  };
  /// What a predecessor had acknowledged and not flushed, of which there is no copy here.
  enum class Inheritance : std::uint8_t {
    none,       // or durable, or given up
    unflushed,  // a flush is on its way, or will be as soon as there is a path
  };

  // succession.cc
  void succeed(const Succession& predecessor);
  [[nodiscard]] Result<void> check_host();
  [[nodiscard]] Result<void> check_inheritance(const std::optional<nvme::Incarnation>& incarnation);
  [[nodiscard]] Result<void> note_succession();

  // The path.
  [[nodiscard]] Result<void> try_every_path();
  void advance(VolumeState to, const Error* why);
  [[nodiscard]] bool path_lives() const noexcept;
  void look_after_path();
  void take_down();
  [[nodiscard]] Instant silent_from(Instant now, Duration keep_alive) const noexcept;
  void lose(Error why);
  void fail(Error why);
  void attempt();
  [[nodiscard]] Result<void> connect();
  [[nodiscard]] Duration reach_timeout() noexcept;
  [[nodiscard]] Result<const Namespace*> find_disk(const Uri& uri);
  [[nodiscard]] Result<void> compare_disk(const Namespace& now);
  [[nodiscard]] Result<std::optional<nvme::RecoveryInfo>> read_recovery_info(Nsid nsid);
  [[nodiscard]] Result<void> fence(const std::optional<nvme::RecoveryInfo>& info);
  [[nodiscard]] Result<void> fence_by_target(const Old& old);
  [[nodiscard]] Result<void> open_queue();
  [[nodiscard]] Result<void> choose_memory(const std::optional<nvme::RecoveryInfo>& info);
  [[nodiscard]] Result<void> write_again();
  [[nodiscard]] Result<void> write_again(const UnflushedWrites::Entry& entry);
  void try_again_later();

  // disk_change.cc
  void on_event(const nvme::AsyncEvent& event);
  void look_again();
  void follow_disk(const Namespace& now);
  void tell_changes();
  void tell(DiskChange change);

  // access.cc
  [[nodiscard]] Result<nvme::AccessState> read_access(std::uint32_t group);
  [[nodiscard]] Result<void> check_access(const Namespace& found);
  void look_at_access();
  void begin_round();
  void next_in_round();

  [[nodiscard]] Duration left() const noexcept;
  [[nodiscard]] Instant step_deadline() const noexcept;
  [[nodiscard]] Instant now() const noexcept { return environment_.clock.now(); }

  // Requests.
  [[nodiscard]] bool make_room(Slot& slot);
  void pump();
  void on_done(Slot& slot);
  void on_own_flush();
  void flush_if_needed();
  void unlink(Slot& slot) noexcept;
  void settle_kept(Slot& slot, Outcome outcome) noexcept;
  void finish(Slot& slot, Outcome outcome, nvme::Status status);
  void end_later(Slot& slot, Outcome outcome, nvme::Status status);
  void end_all_later(Outcome outcome);
  void run_ended();
  void count(const Slot& slot) noexcept;

  Environment environment_;
  std::vector<Uri> uris_;
  transport::Reactor& reactor_;
  VolumeOptions options_;

  VolumeState state_ = VolumeState::reconnecting;
  std::optional<Error> failure_;
  bool fatal_ = false;            // what connect() has found will not change
  bool silence_awaited_ = false;  // some path works, but for the old association, which only its keep-alive ends
  bool opened_ = false;
  std::size_t uri_ = 0;  // the path that is, or will be tried next
  // Every URI is tried once per round; first for an optimized one, then for any.
  std::size_t untried_ = 0;
  bool optimized_only_ = false;
  bool second_best_ = false;          // there is one, in this round
  std::optional<Error> round_fatal_;  // what one of them has found will not change
  nvme::AccessState access_ = nvme::AccessState::optimized;
  bool look_at_access_ = false;             // the target says that it has changed
  std::optional<nvme::Status> path_error_;  // a command has ended with it
  bool proven_ = false;                     // a request was carried out on this path
  bool hurry_ = false;                      // it was of use before it was lost
  Instant live_since_{};
  Instant lost_at_{};
  Instant next_attempt_ = Instant::min();
  Instant give_up_at_ = Instant::max();
  Duration backoff_{};
  Duration connecting_took_{};                           // the whole of it, the last time
  std::uint64_t tries_ = 0;                              // since the path was lost
  RateLimit attempts_logged_{std::chrono::seconds(10)};  // a target may be away for days
  transport::Timer wake_;

  Namespace disk_;
  bool disk_gone_ = false;   // the target has removed it
  bool look_again_ = false;  // the target says that something has changed
  struct Told {
    Blocks blocks;
    bool read_only = false;
    bool gone = false;
  } told_;  // as the caller knows it
  std::unique_ptr<transport::BufferPool> buffers_;
  std::unique_ptr<Session> session_;
  std::vector<std::unique_ptr<RegisteredBuffer>> registered_;
  std::unique_ptr<QueuePair> queue_;
  nvme::AssociationId association_;
  std::size_t association_uri_ = 0;
  Duration association_keep_alive_{};
  bool used_ = false;  // commands went out on the association
  std::optional<Old> old_;
  std::optional<Succession> noted_;  // as on_succession was told last
  Inheritance inheritance_ = Inheritance::none;

  std::optional<UnflushedWrites> unflushed_;
  std::optional<nvme::Incarnation> incarnation_;  // that everything kept was acknowledged by; none: not sure
  Request own_flush_;
  std::uint64_t own_flush_covers_ = 0;
  std::optional<nvme::Status> own_flush_failed_;
  std::optional<nvme::Status> owed_;  // the next flush of the caller's ends with it: what was inherited may be lost

  std::vector<Slot> slots_;
  Slot* free_ = nullptr;
  Slot* oldest_ = nullptr;  // pending
  Slot* newest_ = nullptr;
  Slot* unsent_ = nullptr;  // all pending ones from here on have not been sent on this path
  Slot* ended_ = nullptr;   // done is due, in order
  Slot* last_ended_ = nullptr;
  transport::Timer run_ended_;
  std::uint32_t in_flight_ = 0;
  VolumeStatistics statistics_;
};

}  // namespace rbt::initiator
