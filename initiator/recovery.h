#pragma once
// The inside of a Volume: the state machine (recovery.cc), and its lanes, which have the requests (volume_lane.h).

#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common/nvme/access.h"
#include "common/nvme/recovery.h"
#include "initiator/volume.h"
#include "initiator/volume_lane.h"

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

/// A lane's share of VolumeOptions::unflushed, and the most that one request carries.
[[nodiscard]] Bytes unflushed_of_lane(const VolumeOptions& options) noexcept;
[[nodiscard]] Bytes request_max_of(const VolumeOptions& options) noexcept;

/// Error: invalid_argument.
[[nodiscard]] Result<void> check_predecessor(const Succession& predecessor);

/// The owner's thread; what it has the lanes do is done on theirs (on_lanes()). While a volume is `reconnecting` or `fenced` and progress() is not running, nothing is connected.
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
  [[nodiscard]] Result<void> make_lanes();
  [[nodiscard]] std::size_t lanes() const noexcept { return lanes_.size(); }
  [[nodiscard]] Lane& lane(std::size_t which) const noexcept { return *lanes_[which]; }
  [[nodiscard]] VolumeState state() const noexcept { return state_; }
  [[nodiscard]] const Error* failure() const noexcept { return failure_ ? &*failure_ : nullptr; }
  [[nodiscard]] const Namespace& disk() const noexcept { return disk_; }
  [[nodiscard]] Bytes request_max() const noexcept { return request_max_of(options_); }
  [[nodiscard]] std::uint32_t in_flight() const noexcept;
  [[nodiscard]] const VolumeStatistics& statistics() noexcept;
  [[nodiscard]] Succession succession() const;
  [[nodiscard]] transport::BufferPool* buffers() noexcept { return buffers_.get(); }
  [[nodiscard]] transport::Reactor& reactor() const noexcept { return reactor_; }

 private:
  /// An association that commands went out on, and may still be carried out.
  struct Old {
    nvme::AssociationId id;  // number 0: it has not said
    std::size_t uri = 0;     // uris_.size(): none of ours
    Instant silent;          // by then its keep-alive has ended it; max: it has none
  };
  // succession.cc
  void succeed(const Succession& predecessor);
  [[nodiscard]] Result<void> check_host();
  [[nodiscard]] Result<void> check_inheritance(const std::optional<nvme::Incarnation>& incarnation);
  [[nodiscard]] Result<void> note_succession();

  // The path.
  [[nodiscard]] Result<void> try_every_path();
  void advance(VolumeState to, const Error* why);
  [[nodiscard]] const Error* trouble() const noexcept;
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
  [[nodiscard]] Result<void> check_queues();
  [[nodiscard]] Result<void> open_queues();
  void choose_memory(const std::optional<nvme::RecoveryInfo>& info) noexcept;
  [[nodiscard]] bool keeps_any() const noexcept;
  [[nodiscard]] Result<void> write_again();
  [[nodiscard]] Result<void> write_again(const UnflushedWrites& log, const UnflushedWrites::Entry& entry);
  void try_again_later();

  // disk_change.cc
  void on_event(const nvme::AsyncEvent& event);
  void look_again();
  void follow_disk(const Namespace& now);
  [[nodiscard]] std::optional<nvme::Incarnation> incarnation() const noexcept;
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

  // volume.cc
  void on_lanes(const std::function<void(Lane&)>& what);
  void drop_lanes(std::size_t left);

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
  bool look_at_access_ = false;  // the target says that it has changed
  bool hurry_ = false;           // it was of use before it was lost
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
  nvme::AssociationId association_;
  std::size_t association_uri_ = 0;
  Duration association_keep_alive_{};
  bool used_ = false;  // commands went out on the association
  std::optional<Old> old_;
  std::optional<Succession> noted_;  // as on_succession was told last
  /// That everything kept was acknowledged by, unless a flush has failed since; none: not sure.
  std::optional<nvme::Incarnation> incarnation_;
  VolumeStatistics statistics_;  // what is not the lanes'
  VolumeStatistics summed_;

  Shared shared_;
  struct Thread {
    std::unique_ptr<transport::Reactor> reactor;
    std::thread thread;
  };
  std::vector<Thread> threads_;  // of the second lane and all that follow, unless others turn them
  std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace rbt::initiator
