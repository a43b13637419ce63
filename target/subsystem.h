#pragma once
// Who is served what: subsystems and their namespaces. Built before the target starts, unchanged after: any thread reads.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/nvme/nqn.h"
#include "common/units.h"
#include "target/registers.h"
#include "target/store/store.h"

namespace rbt::target {

/// One reactor's counters of one namespace: written by that reactor, read by any thread as a snapshot (relaxed: each
/// number for itself is right, together they may be of slightly different moments).
struct alignas(64) NamespaceCounters {
  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> other{0};
  std::atomic<std::uint64_t> bytes_read{0};
  std::atomic<std::uint64_t> bytes_written{0};
  std::atomic<std::uint64_t> errors{0};
};
/// The single writer's increment: no locked instruction.
inline void count(std::atomic<std::uint64_t>& counter, std::uint64_t by = 1) noexcept {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}
/// A sum over reactors.
struct NamespaceTotals {
  std::uint64_t reads = 0, writes = 0, other = 0, bytes_read = 0, bytes_written = 0, errors = 0;
  NamespaceTotals& operator+=(const NamespaceCounters& counters) noexcept;
  NamespaceTotals& operator+=(const NamespaceTotals& totals) noexcept;
};

class Namespace {
 public:
  /// `index`: its place among all namespaces of the target. `reactors`: how many will count.
  Namespace(Nsid nsid, std::size_t index, std::unique_ptr<Store> store, std::size_t reactors);

  [[nodiscard]] Nsid nsid() const noexcept { return nsid_; }
  [[nodiscard]] std::size_t index() const noexcept { return index_; }
  [[nodiscard]] Store& store() const noexcept { return *store_; }
  /// As it was when the namespace was added.
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] const Identity& identity() const noexcept { return store_->identity(); }
  [[nodiscard]] NamespaceCounters& counters(std::size_t reactor) const noexcept { return counters_[reactor]; }
  [[nodiscard]] NamespaceTotals totals() const noexcept;

 private:
  Nsid nsid_;
  std::size_t index_;
  std::unique_ptr<Store> store_;
  Geometry geometry_;
  std::size_t reactors_;
  std::unique_ptr<NamespaceCounters[]> counters_;
};

class Subsystem {
 public:
  static constexpr std::uint32_t kNsidMax = 1024;

  struct Description {
    nvme::Nqn nqn;
    ControllerKind kind = ControllerKind::io;
    bool allow_any_host = false;
    std::vector<nvme::Nqn> allowed_hosts;
    std::string serial;
    std::string model;
  };
  explicit Subsystem(Description description) : description_(std::move(description)) {}

  [[nodiscard]] const nvme::Nqn& nqn() const noexcept { return description_.nqn; }
  [[nodiscard]] ControllerKind kind() const noexcept { return description_.kind; }
  [[nodiscard]] const std::string& serial() const noexcept { return description_.serial; }
  [[nodiscard]] const std::string& model() const noexcept { return description_.model; }
  [[nodiscard]] bool allows(const nvme::Nqn& host) const noexcept;

  /// Null if there is none.
  [[nodiscard]] const Namespace* find(Nsid nsid) const noexcept {
    // by subtraction: NSID 0 wraps to a number beyond every table
    const std::uint32_t slot = nsid.value() - 1;
    return slot < by_nsid_.size() ? by_nsid_[slot] : nullptr;
  }
  /// In ascending order of NSID.
  [[nodiscard]] std::span<const Namespace* const> namespaces() const noexcept { return ascending_; }
  /// The highest NSID in use: NN of Identify Controller. 0: no namespaces.
  [[nodiscard]] std::uint32_t nsid_highest() const noexcept { return static_cast<std::uint32_t>(by_nsid_.size()); }
  /// The lowest NSID not in use; nothing if all are.
  [[nodiscard]] std::optional<Nsid> free_nsid() const noexcept;
  [[nodiscard]] bool has_write_cache() const noexcept;

  /// Before the start. `ns` is free in NSID.
  void add(std::unique_ptr<Namespace> ns);

 private:
  Description description_;
  std::vector<std::unique_ptr<Namespace>> owned_;
  std::vector<const Namespace*> by_nsid_;  // [nsid - 1]
  std::vector<const Namespace*> ascending_;
};

}  // namespace rbt::target
