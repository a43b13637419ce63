#pragma once
// Every namespace of the target: they are added, removed and change their size here, and every reactor is told.
//
//   add      reserve NSID and identity; every reactor opens its way to the store; hosts are told
//   remove   no reactor lets another command in; the last command out closes each one's way; the store is given back
//   refresh  the store's geometry now; every reactor uses it; hosts are told

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "target/reservation/reservations.h"
#include "target/subsystem.h"
#include "target/target.h"

namespace rbt::target {

struct Core;
class ReactorContext;

/// Thread-safe. What Target::add_namespace(), … promise is written there.
class Namespaces {
 public:
  explicit Namespaces(Core& core) noexcept : core_(core) {}

  [[nodiscard]] Result<Nsid> add(const Subsystem& subsystem, std::unique_ptr<Store> store,
                                 const NamespaceOptions& options);
  [[nodiscard]] Result<void> remove(const Subsystem& subsystem, Nsid nsid, NamespaceGone on_gone);
  [[nodiscard]] Result<void> refresh(const Subsystem& subsystem, Nsid nsid);

  /// The target serves: stores are heard from now on, and asked once what they may have said before.
  void start();
  /// The target ends: no store is heard any more.
  void close();

  void append_to(std::vector<NamespaceStatistics>& statistics) const;
  [[nodiscard]] std::size_t leaving() const noexcept { return leaving_.load(std::memory_order_relaxed); }

 private:
  using Key = std::pair<std::size_t, Nsid>;  // index of the subsystem

  /// A namespace, and the ear at its store.
  struct Entry final : StoreObserver {
    Entry(Namespaces& owner_, Nsid nsid, const Subsystem& subsystem, std::unique_ptr<Store> store, std::size_t reactors,
          std::uint64_t opening)
        : owner(owner_), ns(nsid, subsystem, std::move(store), reactors, opening) {
      ns.store().observe(this);
    }
    void on_geometry_changed() noexcept override { owner.hear(*this); }
    Namespaces& owner;
    Namespace ns;
    bool adding = true;               // some reactor may not know it yet; guarded by mutex_
    std::atomic<bool> heard = false;  // a refresh is on its way that will see what is said now
  };
  /// On its way out; goes with the last message about it.
  struct Departure {
    Departure(std::unique_ptr<Entry> entry_, NamespaceGone on_gone_, std::size_t reactors)
        : entry(std::move(entry_)), on_gone(std::move(on_gone_)), admitting(reactors), using_it(reactors) {}
    std::unique_ptr<Entry> entry;
    NamespaceGone on_gone;
    std::atomic<std::size_t> admitting;  // reactors that may still let commands in
    std::atomic<std::size_t> using_it;   // reactors that still have a way to the store
  };

  [[nodiscard]] Result<Entry*> reserve(const Subsystem& subsystem, std::unique_ptr<Store> store,
                                       std::optional<Nsid> nsid, KeptReservations kept);
  [[nodiscard]] std::optional<Nsid> free_nsid(const Subsystem& subsystem);
  void set_free(const Subsystem& subsystem, Nsid nsid);
  [[nodiscard]] Result<void> attach_everywhere(Namespace& ns);
  void depart(std::unique_ptr<Entry> entry, NamespaceGone on_gone);
  void finish(Departure& departure);
  void hear(Entry& entry) noexcept;
  [[nodiscard]] std::vector<std::pair<const Subsystem*, Nsid>> all() const;
  void tell_hosts(const Subsystem& subsystem, Nsid nsid);
  /// On the reactor's thread; at once if that is not running.
  template <typename Body>
  void on_reactor(ReactorContext& reactor, Body body);

  Core& core_;
  mutable std::mutex mutex_;
  std::map<Key, std::unique_ptr<Entry>> entries_;     // guarded by mutex_
  std::map<Identity, const Namespace*> by_identity_;  // guarded by mutex_
  // By subsystem: every NSID below is taken, so that a thousand additions do not count to a thousand each. Guarded by mutex_.
  std::map<std::size_t, std::uint32_t> taken_below_;
  std::uint64_t openings_ = 0;           // guarded by mutex_
  std::atomic<std::size_t> leaving_{0};  // statistics
  std::mutex hearing_mutex_;             // taken last: stores speak at any time
  bool hearing_ = false;                 // guarded by hearing_mutex_
};

}  // namespace rbt::target
