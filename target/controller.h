#pragma once
// One controller: what a host gets when it connects an admin queue, alive until its last queue has gone.

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "common/clock.h"
#include "common/nvme/nqn.h"
#include "common/nvme/status.h"
#include "common/units.h"
#include "target/admin/changed_namespaces.h"
#include "target/admin/reservation_notices.h"
#include "target/host.h"
#include "target/registers.h"
#include "target/subsystem.h"
#include "transport/reactor/timer.h"

namespace rbt::target {

class Command;

/// The host has to learn that its access state has changed, once until it has read the log (Base 2.0, 5.2).
class AccessNotice {
 public:
  void note() noexcept { due_ = !told_; }
  [[nodiscard]] bool due() const noexcept { return due_; }
  void set_told() noexcept {
    due_ = false;
    told_ = true;
  }
  void clear() noexcept { due_ = told_ = false; }

 private:
  bool due_ = false;
  bool told_ = false;
};

/// The last commands that failed (Base 2.0, 5.16.1.2). Thread-safe: all queues of a controller write it, rarely.
class ErrorLog {
 public:
  static constexpr std::size_t kEntries = 64;  // ELPE is one less
  struct Entry {
    std::uint64_t number = 0;  ///< 1 for the controller's first error; 0: no entry
    Qid qid;
    Cid cid;
    nvme::Status status;
    Nsid nsid;
    Lba lba;
    std::uint16_t location = 0xffff;  ///< of the parameter at fault (status.h)
  };
  void record(Entry entry) noexcept;
  /// Newest first; entries without a number at the end.
  [[nodiscard]] std::array<Entry, kEntries> newest_first() const noexcept;
  [[nodiscard]] std::uint64_t total() const noexcept;

 private:
  mutable std::mutex mutex_;
  std::array<Entry, kEntries> ring_{};  // guarded by mutex_
  std::uint64_t total_ = 0;             // guarded by mutex_
};

/// Features that a host can set (Base 2.0, 5.27). The admin queue's reactor.
struct Features {
  std::uint32_t async_events = 0;  ///< 0Bh
  std::uint64_t timestamp_ms = 0;  ///< 0Eh as last set, 48 bits
  Instant timestamp_set_at{};
  bool timestamp_by_host = false;
};

/// Belongs to the reactor of its admin queue, its home; what other threads may call is marked.
class Controller {
 public:
  static constexpr std::size_t kHeldEventsMax = 4;  // AERL is one less
  static constexpr std::uint32_t kAbortsMax = 4;    // ACL is one less
  struct Identity {
    Cntlid cntlid;
    nvme::Nqn host_nqn;
    nvme::HostId host_id;
  };

  /// What it says of itself to its host, for good.
  struct Offer {
    std::uint32_t queue_entries_max;
    std::uint32_t io_queues_max;
    bool write_cache;  ///< some namespace has a volatile one
  };

  /// `on_expired` is called on the home reactor when the host has been silent for the keep-alive timeout.
  Controller(Identity identity, const Subsystem& subsystem, const Offer& offer, transport::TimerQueue& timers,
             const Clock& clock, std::function<void()> on_expired);

  // Any thread.
  [[nodiscard]] const Identity& identity() const noexcept { return identity_; }
  [[nodiscard]] const Subsystem& subsystem() const noexcept { return subsystem_; }
  [[nodiscard]] ControllerKind kind() const noexcept { return subsystem_.kind(); }
  /// Its host on the subsystem's list; null: it is not there, and sees everything.
  [[nodiscard]] const Host* host() const noexcept { return host_; }
  [[nodiscard]] ErrorLog& error_log() noexcept { return error_log_; }
  /// Commands may be carried out. Written at home; a queue that still sees the old value acts as if its command had
  /// come a moment earlier.
  [[nodiscard]] bool ready() const noexcept { return ready_.load(std::memory_order_relaxed); }
  /// A command has come: postpones the end (traffic-based keep alive, Base 2.0, 3.9.3).
  void note_traffic() noexcept {
    if (!traffic_.load(std::memory_order_relaxed)) traffic_.store(true, std::memory_order_relaxed);
  }
  /// Volatile write cache, feature 06h. Off: every write is made durable before it is answered. It is off for good if
  /// Identify Controller has not told of one, because then the host does not flush: a namespace with a cache may have come
  /// later.
  [[nodiscard]] bool write_cache_enabled() const noexcept { return write_cache_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint32_t io_queues_granted() const noexcept {
    return io_queues_granted_.load(std::memory_order_relaxed);
  }

  /// VWC of Identify Controller, feature 06h exists.
  [[nodiscard]] bool offers_write_cache() const noexcept { return offer_.write_cache; }

  // Home.
  [[nodiscard]] const Registers& registers() const noexcept { return registers_; }
  [[nodiscard]] nvme::Expected<Registers::Effect> set_property(const nvme::PropertyAccess& access) noexcept;
  void finish_reset() noexcept { registers_.finish_reset(); }
  [[nodiscard]] Features& features() noexcept { return features_; }
  void set_write_cache(bool enabled) noexcept { write_cache_.store(enabled, std::memory_order_relaxed); }
  void grant_io_queues(std::uint32_t count) noexcept { io_queues_granted_.store(count, std::memory_order_relaxed); }
  [[nodiscard]] std::uint32_t io_queues_max() const noexcept { return offer_.io_queues_max; }

  /// 0: off, except that a discovery controller then gets two minutes: nothing else would ever end it.
  void set_keep_alive(std::chrono::milliseconds timeout);
  [[nodiscard]] std::chrono::milliseconds keep_alive() const noexcept { return keep_alive_; }
  void stop_keep_alive() noexcept { timer_.cancel(); }

  /// Asynchronous Event Requests without an event, at most kHeldEventsMax.
  [[nodiscard]] std::vector<Command*>& held_events() noexcept { return held_events_; }
  [[nodiscard]] ChangedNamespaces& changed_namespaces() noexcept { return changed_namespaces_; }
  [[nodiscard]] AccessNotice& access_notice() noexcept { return access_notice_; }
  [[nodiscard]] ReservationNotices& reservation_notices() noexcept { return reservation_notices_; }
  /// Abort commands that wait for other reactors, at most kAbortsMax.
  [[nodiscard]] std::uint32_t& aborts() noexcept { return aborts_; }

 private:
  void on_timer();

  const Identity identity_;
  const Subsystem& subsystem_;
  const Host* const host_;
  const Offer offer_;
  const Clock& clock_;
  ErrorLog error_log_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> traffic_{false};  // set by every queue, cleared by the timer
  std::atomic<bool> write_cache_;
  std::atomic<std::uint32_t> io_queues_granted_;

  Registers registers_;
  Features features_;
  std::chrono::milliseconds keep_alive_{0};
  std::vector<Command*> held_events_;
  ChangedNamespaces changed_namespaces_;
  AccessNotice access_notice_;
  ReservationNotices reservation_notices_;
  std::uint32_t aborts_ = 0;
  std::function<void()> on_expired_;
  transport::Timer timer_;
};

}  // namespace rbt::target
