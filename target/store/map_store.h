#pragma once
// A disk that is memory: a memfd, a file on tmpfs or hugetlbfs, persistent memory. Hosts' data moves straight into and out
// of its pages by RDMA, with no copy; where that is not possible, or not now, by way of buffers.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "target/store/atomicity.h"
#include "target/store/file_store.h"
#include "target/store/map_image.h"
#include "target/store/map_landing.h"
#include "target/store/map_look.h"
#include "target/store/mapping.h"
#include "target/store/range_lock.h"
#include "target/store/store.h"
#include "transport/coherence/region.h"
#include "transport/memory/registered_memory.h"

namespace rbt::target {

struct MapOptions {
  std::string path;
  std::optional<BlockShift> block_shift = std::nullopt;  ///< none: 512, or the image's own
  bool read_only = false;
  std::optional<Identity> identity = std::nullopt;  ///< none: the one kept with the file
  Atomicity atomicity = Atomicity::automatic;       ///< shadow: the file is a shadow image (shadow_image.h)
  Persister* persister = nullptr;                   ///< for tests: takes the place of libpmem
};

/// What a queue has moved. Written by its reactor, read by anybody (relaxed: statistics).
struct alignas(64) MapTally {
  std::atomic<std::uint64_t> in_place{0};        ///< bytes, in leases on the memory itself
  std::atomic<std::uint64_t> through_buffer{0};  ///< bytes, in leases on buffers
  void add(bool to_in_place, std::uint64_t bytes) noexcept {
    auto& sum = to_in_place ? in_place : through_buffer;
    sum.store(sum.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
  }
};

/// Who can take the pages away decides how it is guarded:
///  * memfd: sealed against shrinking, growing, punching and writing by others, for good;
///  * devdax: a device that stays while it is open;
///  * tmpfs, hugetlbfs, fs-dax: a write lease (a coherence region, restored by itself). While somebody else has the file
///    open, it is read and written through the descriptor, so that each side sees what the other writes.
/// What no guard can be had for is served through the descriptor all the time, and what is no memory exactly as file:
/// does. Thread-safe.
class MapStore final : public Store {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Store>> create(std::string spec, const MapOptions& options,
                                                             const StoreEnvironment& environment);
  ~MapStore() override;

  [[nodiscard]] Geometry geometry() const override;
  void observe(StoreObserver* observer) noexcept override { file_->observe(observer); }
  [[nodiscard]] const Identity& identity() const noexcept override { return file_->identity(); }
  [[nodiscard]] const std::string& spec() const noexcept override { return spec_; }
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override;
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;
  [[nodiscard]] std::string explain() const override;

  // For queues.
  [[nodiscard]] MapKind kind() const noexcept { return found_.kind; }
  /// Null: nothing is mapped, everything goes through the descriptor.
  [[nodiscard]] const Mapping* mapping() const noexcept { return mapping_ ? &*mapping_ : nullptr; }
  /// The key of the mapping for `lease`; nothing if the lease's domain cannot reach it.
  [[nodiscard]] std::optional<std::uint32_t> lkey(const Lease& lease) const noexcept;
  /// What guards the mapping; null: nobody can take it away.
  [[nodiscard]] transport::coherence::Region* region() const noexcept { return region_.get(); }
  /// What atomic=shadow serves; null: the file's bytes are the blocks.
  [[nodiscard]] MapImage* image() const noexcept { return image_.get(); }
  /// Whether the mapping can be written without a pass, for good: nobody can take its pages away.
  [[nodiscard]] bool pages_stay() const noexcept {
    return mapping_ && (found_.kind == MapKind::memfd || found_.kind == MapKind::devdax);
  }
  /// Whether that write goes by way of a buffer, lest it leave a block half new. Files outlive this process: a block that it
  /// was copying when it was killed would stay torn, unless the copy is landing()'s.
  [[nodiscard]] bool stages(const Lease& lease) const noexcept {
    if (atomicity_ == Atomicity::in_place || !tears(lease.path_mtu, block_shift(), true)) return false;
    return lease.domain == nullptr || !lease.domain->uses_landings();
  }
  /// Whether a CPU that reads these bytes in place may meet a page that is not there: a hole of a file on tmpfs. It would have to
  /// be found now, and where there is no room for it, that is a SIGBUS. An adapter has all pages: they were registered. For who
  /// has a pass.
  [[nodiscard]] bool may_miss_pages(const Lease& lease, std::uint64_t offset, std::uint64_t length) noexcept;
  /// What the mapping is registered with, except for atomic=in-place, which takes what comes, and images, whose blocks are
  /// nobody's yet when data lands in them.
  [[nodiscard]] MapLanding& landing() noexcept { return landing_; }
  [[nodiscard]] FileStore& file() const noexcept { return *file_; }
  [[nodiscard]] RangeLock& range_lock() noexcept { return file_->range_lock(); }
  [[nodiscard]] bool read_only() const noexcept { return file_->medium().geometry().read_only; }
  [[nodiscard]] BlockShift block_shift() const noexcept { return file_->medium().geometry().block_shift; }
  [[nodiscard]] std::shared_ptr<MapTally> new_tally();
  /// A copy failed: the log says so, at most once a second.
  void report(Intent intent, std::uint64_t offset, std::uint64_t length, int error);
  /// A queue has heard that the region is fenced, or coherent again: the log says so once.
  void on_region_changed(transport::coherence::RegionState state);

 private:
  /// Fences and restores; looks before if the file is still long enough.
  class Guarded;
  MapStore(std::string spec, MapFound found, Atomicity atomicity, const StoreEnvironment& environment);
  [[nodiscard]] Result<void> open(MapOptions options, const StoreEnvironment& environment);
  [[nodiscard]] Result<std::optional<ShadowLayout>> choose_form(MapOptions& options) const;
  [[nodiscard]] Result<void> open_image(const ShadowLayout& layout);
  [[nodiscard]] Result<void> allocate();
  void open_memory(const StoreEnvironment& environment);
  [[nodiscard]] Result<void> read_file(std::uint64_t offset, std::span<std::byte> bytes) const;
  [[nodiscard]] Result<void> ensure(transport::ProtectionDomain& domain);
  [[nodiscard]] Result<void> map(Persister* persister);
  [[nodiscard]] Result<void> seal();
  void guard(transport::coherence::Monitor* monitor);
  void begin_guarding();
  [[nodiscard]] std::string serving() const;
  [[nodiscard]] std::string totals() const;

  std::string spec_;
  MapFound found_;
  const Atomicity atomicity_;
  const Clock& clock_;
  Logger& logger_;
  const bool explain_only_;
  std::string why_copied_;  // why nothing is mapped, or registered; constant once opened
  std::optional<Mapping> mapping_;
  std::optional<transport::RegisteredMemory> registered_;
  std::unique_ptr<FileStore> file_;
  MapLanding landing_{*this};
  std::unique_ptr<MapImage> image_;
  std::unique_ptr<Guarded> guarded_;
  std::unique_ptr<transport::coherence::Region> region_;  // before what it fences, and the descriptor it leases, goes
  std::atomic<bool> warned_{false};                       // that blocks may be torn; set once
  std::atomic<bool> away_{false};                         // what the log was told last
  std::atomic<bool> complete_{false};                     // no holes; while it is ours nobody makes new ones
  std::mutex log_mutex_;                                  // guards:
  std::array<RateLimit, 3> log_limit_;                    // away, back, failures
  mutable std::mutex mutex_;                              // guards what follows
  std::vector<const transport::ProtectionDomain*> refused_;
  std::vector<std::shared_ptr<MapTally>> tallies_;
};

}  // namespace rbt::target
