#pragma once
// The reservations of one namespace, and how everybody learns of a change:
//
//   submit     commands come from any reactor, and are carried out one after the other
//   keep       what is to survive a power loss is written down, off the reactors; if that fails, nothing has changed
//   tell       every reactor takes the new view, tells its hosts, stops what a preempted host has under way
//   answer     when all of them have
//
// So whoever is answered knows that no command is admitted any more that the change forbids; and after Preempt and Abort, that
// none of a preempted host is left that could touch a block. Commands on their way through a reactor look at its view and at
// nothing else.

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/log.h"
#include "target/reservation/state.h"
#include "target/store/store.h"

namespace rbt::target {

struct Core;
class Subsystem;

/// What was kept of them when the namespace was last served.
struct KeptReservations {
  std::string path;  ///< empty: nothing can be kept
  ReservationState state{};
};
/// Reads `path`, or begins it. What cannot be used is said in the log, and the namespace begins without registrants; a
/// damaged file is put aside, one of another namespace is left alone. Slow path.
[[nodiscard]] KeptReservations load_reservations(const std::string& path, const Identity& identity,
                                                 const std::string& who, Logger& logger);

/// What every reactor is told.
struct ReservationNews {
  const Subsystem& subsystem;
  Nsid nsid;
  std::uint64_t opening;  ///< which namespace of that NSID
  std::shared_ptr<const ReservationView> view;
  std::vector<std::pair<nvme::HostId, nvme::ReservationNotice>> notices;
  std::vector<nvme::HostId> aborted;  ///< hosts whose commands are stopped
  std::function<void()> when_all_know;
  std::atomic<std::size_t> missing;  // reactors; each releases what it did, the last one acquires it
  /// By every reactor, once.
  void arrive() {
    if (missing.fetch_sub(1, std::memory_order_acq_rel) == 1) when_all_know();
  }
};

/// Feature 83h.
struct SetReservationPersistence {
  bool on;
};

/// Thread-safe. Outlives its namespace as long as a change is on its way.
class Reservations : public std::enable_shared_from_this<Reservations> {
 public:
  using Change = std::variant<nvme::ReservationRegister, nvme::ReservationAcquire, nvme::ReservationRelease,
                              SetReservationPersistence>;
  using Answer = std::function<void(nvme::Status)>;

  Reservations(Core& core, const Subsystem& subsystem, Nsid nsid, std::uint64_t opening, const Identity& identity,
               std::string who, KeptReservations kept);

  /// `answer` is called on any thread, now or later.
  void submit(const nvme::HostId& host, Change change, Answer answer);
  /// As of the last change that was carried out.
  [[nodiscard]] ReservationState state() const;
  [[nodiscard]] std::shared_ptr<const ReservationView> view() const;
  /// RESCAP, bit 0.
  [[nodiscard]] bool can_persist() const noexcept { return !path_.empty(); }

 private:
  struct Request {
    nvme::HostId host;
    Change change;
    Answer answer;
  };
  void next();
  [[nodiscard]] ReservationOutcome judge(const Request& request, ReservationState& state) const;
  void keep(Request request, ReservationState after, ReservationOutcome outcome);
  void carry_out(const Request& request, ReservationState after, ReservationOutcome outcome);
  void finish(const Request& request, nvme::Status status);
  void complain(const std::string& what);

  Core& core_;
  const Subsystem& subsystem_;
  const Nsid nsid_;
  const std::uint64_t opening_;
  const Identity identity_;
  const std::string who_;
  const std::string path_;
  RateLimit limit_{std::chrono::seconds(1)};  // of the one that is busy
  mutable std::mutex mutex_;
  std::list<Request> waiting_;                   // guarded by mutex_
  bool busy_ = false;                            // guarded by mutex_; one change is on its way
  ReservationState state_;                       // guarded by mutex_
  bool uncertain_ = false;                       // the change on its way's: the file may say what was refused
  std::shared_ptr<const ReservationView> view_;  // guarded by mutex_
};

}  // namespace rbt::target
