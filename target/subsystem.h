#pragma once
// Who is served what: subsystems and their namespaces.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/nvme/nqn.h"
#include "common/units.h"
#include "target/hosts.h"
#include "target/registers.h"
#include "target/store/store.h"
#include "target/turns.h"

namespace rbt::target {

class Reservations;
class Subsystem;
struct Host;

/// One reactor's counters of one namespace: written by that reactor, read by any thread as a snapshot (relaxed: each
/// number for itself is right, together they may be of slightly different moments).
struct alignas(64) NamespaceCounters {
  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> other{0};
  std::atomic<std::uint64_t> bytes_read{0};
  std::atomic<std::uint64_t> bytes_written{0};
  std::atomic<std::uint64_t> errors{0};
  std::atomic<std::uint64_t> media_errors{0};  // of these, the medium's
};
/// The single writer's increment: no locked instruction.
inline void count(std::atomic<std::uint64_t>& counter, std::uint64_t by = 1) noexcept {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}
/// A sum over reactors.
struct NamespaceTotals {
  std::uint64_t reads = 0, writes = 0, other = 0, bytes_read = 0, bytes_written = 0, errors = 0, media_errors = 0;
  NamespaceTotals& operator+=(const NamespaceCounters& counters) noexcept;
  NamespaceTotals& operator+=(const NamespaceTotals& totals) noexcept;
};

/// A namespace as all reactors share it: what does not change while it is there, and the counters. Each reactor has its own
/// way to it (namespace_table.h). Owned by Namespaces (namespaces.h).
class Namespace {
 public:
  /// `reactors`: how many will count. `opening`: of all that the target has ever added, which one this is.
  Namespace(Nsid nsid, const Subsystem& subsystem, std::unique_ptr<Store> store, std::size_t reactors,
            std::uint64_t opening);
  ~Namespace();

  // Any thread.
  [[nodiscard]] Nsid nsid() const noexcept { return nsid_; }
  [[nodiscard]] const Subsystem& subsystem() const noexcept { return subsystem_; }
  [[nodiscard]] Store& store() const noexcept { return *store_; }
  [[nodiscard]] const Identity& identity() const noexcept { return store_->identity(); }
  [[nodiscard]] std::uint64_t opening() const noexcept { return opening_; }
  [[nodiscard]] NamespaceCounters& counters(std::size_t reactor) const noexcept { return counters_[reactor]; }
  [[nodiscard]] NamespaceTotals totals() const noexcept;
  [[nodiscard]] Turns& turns() noexcept { return turns_; }
  [[nodiscard]] Reservations& reservations() const noexcept { return *reservations_; }
  /// Percent that a Format NVM has left to do; 0: there is none. What it has done is seen with the 0.
  [[nodiscard]] std::uint8_t format_left() const noexcept { return format_left_.load(std::memory_order_acquire); }
  /// False: there is one already. Else the caller's, who ends it with 0.
  [[nodiscard]] bool begin_format() noexcept {
    std::uint8_t none = 0;
    return format_left_.compare_exchange_strong(none, 100, std::memory_order_acq_rel);
  }
  void set_format_left(std::uint8_t percent) noexcept { format_left_.store(percent, std::memory_order_release); }
  /// By its owner, before anybody knows it.
  void set_reservations(std::shared_ptr<Reservations> reservations) noexcept {
    reservations_ = std::move(reservations);
  }
  /// For messages: "namespace 1 (ram:size=1GiB) of nqn.…".
  [[nodiscard]] std::string who() const;

  /// What hosts are told of its size; guarded by its owner.
  Geometry geometry;
  /// The end of it: no reactor uses the store any more.
  [[nodiscard]] std::unique_ptr<Store> take_store() noexcept;

 private:
  Nsid nsid_;
  const Subsystem& subsystem_;
  std::unique_ptr<Store> store_;
  std::size_t reactors_;
  std::uint64_t opening_;
  std::unique_ptr<NamespaceCounters[]> counters_;
  Turns turns_;
  std::shared_ptr<Reservations> reservations_;
  std::atomic<std::uint8_t> format_left_{0};  // written by the reactor of the one who formats; releases the blocks
};

/// What hosts connect to. Built before the target starts, unchanged after: any thread reads.
class Subsystem {
 public:
  /// The highest NSID, and the most namespaces (NN and MNAN of Identify Controller).
  static constexpr std::uint32_t kNsidMax = 4096;

  struct Description {
    nvme::Nqn nqn;
    ControllerKind kind = ControllerKind::io;
    bool allow_any_host = false;
    std::vector<AllowedHost> allowed_hosts;
    std::string serial;
    std::string model;
  };
  /// `index`: its place among the target's subsystems.
  Subsystem(std::size_t index, Description description);
  ~Subsystem();

  [[nodiscard]] std::size_t index() const noexcept { return index_; }
  [[nodiscard]] const nvme::Nqn& nqn() const noexcept { return description_.nqn; }
  [[nodiscard]] ControllerKind kind() const noexcept { return description_.kind; }
  [[nodiscard]] const std::string& serial() const noexcept { return description_.serial; }
  [[nodiscard]] const std::string& model() const noexcept { return description_.model; }
  /// Whether a host may come in. One whose NQN is on the list has to be one of those, whoever else may.
  [[nodiscard]] bool allows(const nvme::Nqn& nqn, const nvme::HostId& id) const noexcept;
  /// Null: it is not on the list.
  [[nodiscard]] const Host* find(const nvme::Nqn& nqn, const nvme::HostId& id) const noexcept;
  /// What changes of them: their masks.
  [[nodiscard]] const std::vector<std::unique_ptr<Host>>& hosts() const noexcept { return hosts_; }

 private:
  std::size_t index_;
  Description description_;
  std::vector<std::unique_ptr<Host>> hosts_;
};

}  // namespace rbt::target
