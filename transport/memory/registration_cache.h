#pragma once
// Registrations of memory that somebody else maps and unmaps: what makes a transfer to any pointer both fast and safe.
//
// A registration pins pages; when the mapping changes, the adapter goes on using the old ones and says success. So every
// range that is registered here is a coherence::Region under a watch of its own (coherence/region.h): whoever changes
// the mapping waits until the requests that use it are done and it is deregistered; the next use registers what is mapped
// there then. docs/embedding.md says what a caller sees of it.
//
// What is registered: the pages of the memory that one transfer named, no more, because what is registered can be reached
// by the peer, and what is pinned cannot be reclaimed. What is not: small transfers, for which copying is cheaper, and
// memory that malloc cuts into pieces: whoever gives such pages back holds malloc's lock, which deregistering may need.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "common/log.h"
#include "common/units.h"
#include "transport/coherence/monitor.h"
#include "transport/memory/cached_region.h"
#include "transport/memory/mapping.h"

namespace rbt::transport {

class RegistrationView;

struct RegistrationCacheOptions {
  bool automatic = true;             ///< registers what is used; false: only what add() is given
  std::uint64_t bytes_max = kGiB;    ///< registered automatically, at a time
  std::uint32_t regions_max = 64;    ///< the same, in regions: each takes a userfaultfd and, over shm, a descriptor
  std::size_t size_min = 64 * kKiB;  ///< smaller uses hit, but do not register
  Duration change_wait_max = std::chrono::milliseconds(900);  ///< for whoever changes a mapping
  /// Watches a range. Empty: nothing is watched, which is safe only if no mapping that was used ever changes.
  std::function<Result<std::unique_ptr<coherence::Watch>>(const MemorySpan&)> make_watch{};
};

/// Snapshot.
struct RegistrationCacheCounters {
  std::uint64_t registered = 0;  ///< ranges registered by a use, again after a change, too
  std::uint64_t refused = 0;     ///< uses that were large enough, and were not registered
  std::uint64_t evicted = 0;
  std::uint64_t regions = 0;  ///< now, explicit ones too
  std::uint64_t bytes = 0;    ///< now, explicit ones too
};

/// Thread-safe. Outlives its views.
class RegistrationCache {
 public:
  /// `monitor` null: there is no automatic registration, and what add() registers is not watched.
  RegistrationCache(coherence::Monitor* monitor, RegistrationCacheOptions options, Logger& logger);
  ~RegistrationCache();
  RegistrationCache(const RegistrationCache&) = delete;
  RegistrationCache& operator=(const RegistrationCache&) = delete;

  /// Registers exactly `memory`, with every domain. Errors: in_use (overlaps), those of registering. What cannot be
  /// watched is registered all the same, as ever: then the caller must not change its mapping.
  [[nodiscard]] Result<std::shared_ptr<CachedRegion>> add(const MemorySpan& memory);
  /// Returns when no peer can reach it any more. No request uses it.
  void remove(const std::shared_ptr<CachedRegion>& region) noexcept;
  /// What was added, and will be, is registered with `domain`, too.
  [[nodiscard]] Result<void> add_domain(ProtectionDomain& domain);

  /// Grows with every change of the list. Pairs with the change's release: whoever sees a new value finds it in copy().
  [[nodiscard]] std::uint64_t generation() const noexcept { return generation_.load(std::memory_order_acquire); }
  /// What there is, sorted by address.
  void copy(std::vector<std::shared_ptr<CachedRegion>>& out) const;

  enum class [[nodiscard]] Acquired : std::uint8_t{
      registered,  ///< the list holds it now
      copy,        ///< not registered now
      no_room,     ///< nor soon
      never,       ///< this mapping cannot be: `mapping` says which
      unmapped,    ///< nothing is mapped at some of these addresses
  };
  /// The slow path: finds out what [data, data + size) is, and registers it if that can be. `let_go` is called, without
  /// a lock held, when the list has lost entries: the caller drops its own references that are not in use.
  Acquired acquire(const std::byte* data, std::size_t size, const std::function<void()>& let_go, Mapping& mapping);
  /// What `region` stands for was unmapped: the list need not hold it any more.
  void forget(const coherence::Region& region);
  [[nodiscard]] bool automatic() const noexcept { return automatic_.load(std::memory_order_relaxed); }
  [[nodiscard]] const RegistrationCacheOptions& options() const noexcept { return options_; }
  [[nodiscard]] const MappingTable& mappings() const noexcept { return mappings_; }
  [[nodiscard]] RegistrationCacheCounters counters() const;
  [[nodiscard]] std::vector<ProtectionDomain*> domains() const;
  /// Nothing is listed that was added.
  [[nodiscard]] bool empty() const;

  /// Views: told, on their own threads, when the list has lost entries, so that an idle one holds nobody's memory.
  void attach(RegistrationView& view);
  void detach(RegistrationView& view) noexcept;

 private:
  friend class CachedRegion;
  using Entry = std::shared_ptr<CachedRegion>;
  enum class Watched : std::uint8_t { yes, no };
  [[nodiscard]] Result<void> open(const Entry& entry, Watched watched);
  [[nodiscard]] Result<void> start_kept(const Entry& entry);
  [[nodiscard]] bool insert(const Entry& entry);
  void retire(const Entry& entry) noexcept;
  /// With mutex_ held; the last reference goes without, for what ends with it takes its time.
  [[nodiscard]] Entry unlist(std::size_t index);
  [[nodiscard]] Entry find_holding(const std::byte* data, std::size_t size) const;
  [[nodiscard]] bool clear_way(const std::byte* from, const std::byte* to, const std::function<void()>& let_go);
  [[nodiscard]] bool make_room(std::size_t bytes, const std::function<void()>& let_go);
  [[nodiscard]] bool full(std::size_t bytes) const noexcept;
  [[nodiscard]] bool unlist_unused();
  Acquired restore(const Entry& entry);
  Acquired judge(const Entry& entry, const Error& error);
  void tell_once(std::atomic<bool>& told, const Error& error, std::string_view consequence);

  coherence::Monitor* const monitor_;
  const RegistrationCacheOptions options_;
  Logger& logger_;
  MappingTable mappings_;
  std::atomic<std::uint64_t> generation_{1};
  std::atomic<bool> automatic_;
  std::atomic<bool> told_watch_{false};
  std::atomic<bool> told_registration_{false};
  std::atomic<std::uint64_t> registered_{0};
  std::atomic<std::uint64_t> refused_{0};
  std::atomic<std::uint64_t> evicted_{0};
  std::atomic<std::uint64_t> alive_{0};  // regions that exist, listed or not
  std::atomic<std::uint64_t> alive_bytes_{0};
  std::atomic<std::uint64_t> kept_{0};
  std::atomic<std::uint64_t> kept_bytes_{0};
  mutable std::mutex mutex_;    // guards what follows
  std::vector<Entry> entries_;  // sorted by address
  std::size_t hand_ = 0;        // where the search for something to evict goes on
  std::vector<ProtectionDomain*> domains_;
  std::vector<RegistrationView*> views_;
};

}  // namespace rbt::transport
