#pragma once
// The namespaces of a subsystem as one reactor serves them. They come, go and change their size by messages to the reactor:
// the commands on it look them up without a lock, and hold what they use.

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/units.h"
#include "target/reservation/state.h"
#include "target/store/hand_over.h"
#include "target/store/range_lock.h"
#include "target/store/store.h"
#include "target/subsystem.h"

namespace rbt::target {

class Command;
class ReactorContext;

/// A command's wish for blocks that nobody else changes meanwhile.
struct TurnClaim : RangeLock::Claim {
  Command* command = nullptr;
};

/// How a connection's data get into the store's memory: what Store::prepare() wants to know.
struct Reach {
  transport::ProtectionDomain* domain = nullptr;  ///< its fabric keeps it
  std::uint32_t path_mtu = 0;
  friend bool operator==(const Reach&, const Reach&) = default;
};

/// One namespace on one reactor. The reactor's thread.
class ServedNamespace final : private HandOver::Receiver {
 public:
  ServedNamespace(Namespace& shared, ReactorContext& reactor);

  [[nodiscard]] Nsid nsid() const noexcept { return shared_.nsid(); }
  [[nodiscard]] const Namespace& shared() const noexcept { return shared_; }
  [[nodiscard]] Namespace& shared() noexcept { return shared_; }
  [[nodiscard]] const Identity& identity() const noexcept { return shared_.identity(); }
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  void set_geometry(const Geometry& geometry) noexcept { geometry_ = geometry; }
  [[nodiscard]] NamespaceCounters& counters() const noexcept { return counters_; }
  /// Reservations let `host` do that. One load while nothing is reserved.
  [[nodiscard]] bool admits(const nvme::HostId& host, BlockAccess access) const noexcept {
    return reservation_ == nullptr || reservation_->admits(host, access);
  }
  void set_reservation(std::shared_ptr<const ReservationView> view) noexcept { reservation_ = std::move(view); }
  /// After prepare().
  [[nodiscard]] StoreQueue& queue() const noexcept { return *queue_; }
  /// StoreQueue::bytes_copied(); any time.
  [[nodiscard]] std::uint64_t bytes_copied() const noexcept { return queue_ != nullptr ? queue_->bytes_copied() : 0; }
  /// Makes it usable here by connections that reach it so. Any number of times.
  [[nodiscard]] Result<void> prepare(const Reach& reach);

  /// A command has found it and uses it until leave(), found again or not.
  void enter() noexcept { ++commands_; }
  void leave() noexcept {
    if (--commands_ == 0 && leaving_) last_left();
  }
  [[nodiscard]] std::uint32_t commands() const noexcept { return commands_; }
  /// No command finds it any more; the reactor hears when the last one has left.
  void set_leaving() noexcept { leaving_ = true; }
  [[nodiscard]] bool leaving() const noexcept { return leaving_; }

  // Turns (turns.h).
  /// What changes blocks goes freely, between these two; else it takes turns.
  [[nodiscard]] bool goes_freely() const noexcept { return lock_ == nullptr; }
  void enter_freely() noexcept { ++free_writers_; }
  void leave_freely() noexcept {
    if (--free_writers_ == 0 && joining_) join();
  }
  /// Not freely: true, the claim has its range until end_turn(); false, Command::on_turn() comes.
  [[nodiscard]] bool take_turn(TurnClaim& claim);
  void end_turn(const TurnClaim& claim) noexcept { lock_->release(claim.range, claim.intent); }
  /// True: nobody goes freely on any reactor. False: Command::on_turn() comes when it is so.
  [[nodiscard]] bool await_turns(Command& command);
  /// Messages of the reactor that has begun, and of the last one that is ready.
  void begin_turns() noexcept;
  void on_turns_complete();

 private:
  void last_left() noexcept;
  void join() noexcept;
  void on_handed_over(HandOver::Record& record) override;

  Namespace& shared_;
  ReactorContext& reactor_;
  NamespaceCounters& counters_;  // this reactor's
  Geometry geometry_;
  std::shared_ptr<const ReservationView> reservation_;  // null: there is none
  std::unique_ptr<StoreQueue> queue_;
  std::uint32_t commands_ = 0;
  bool leaving_ = false;

  RangeLock* lock_;  // the namespace's, once there are turns
  std::uint32_t free_writers_ = 0;
  bool joining_ = false;                  // when none of these is left
  std::vector<Command*> awaiting_turns_;  // the first pairs of all; empty from then on
  HandOver hand_over_;
};

/// Those of one subsystem. The reactor's thread.
class NamespaceTable {
 public:
  /// Null if there is none.
  [[nodiscard]] ServedNamespace* find(Nsid nsid) const noexcept {
    // by subtraction: NSID 0 wraps to a number beyond every table
    const std::uint32_t slot = nsid.value() - 1;
    return slot < by_nsid_.size() ? by_nsid_[slot] : nullptr;
  }
  /// The first one above `nsid`; null if there is none.
  [[nodiscard]] ServedNamespace* after(Nsid nsid) const noexcept;
  /// Everything here is usable by these: of the connections that there are or were.
  [[nodiscard]] const std::vector<Reach>& reaches() const noexcept { return reaches_; }
  /// In ascending order of NSID.
  [[nodiscard]] std::span<const std::unique_ptr<ServedNamespace>> all() const noexcept { return ascending_; }
  [[nodiscard]] bool has_write_cache() const noexcept;

  /// Makes all of them, and those to come, usable by connections that reach them so. Errors name the namespace.
  [[nodiscard]] Result<void> prepare(const Reach& reach);
  /// Its NSID is free. Usable by every connection so far. Errors: the store's; nothing was added.
  [[nodiscard]] Result<void> add(std::unique_ptr<ServedNamespace> ns);
  /// Null if there is none.
  [[nodiscard]] std::unique_ptr<ServedNamespace> take(Nsid nsid) noexcept;

 private:
  std::vector<ServedNamespace*> by_nsid_;  // [nsid - 1]
  std::vector<std::unique_ptr<ServedNamespace>> ascending_;
  std::vector<Reach> reaches_;
};

}  // namespace rbt::target
