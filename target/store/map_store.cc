#include "target/store/map_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "target/store/map_queue.h"
#include "transport/coherence/lease.h"
#include "transport/coherence/monitor.h"

namespace rbt::target {

namespace coherence = transport::coherence;

namespace {

constexpr Duration kLogInterval = std::chrono::seconds(1);

// memfd_create(2): what others, and we by mistake, can do to it no more. FUTURE_WRITE (Linux 5.1) leaves the mappings that
// are there, and is what forbids punching holes.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

bool keeps_its_pages(int seals) noexcept {
  return (seals & F_SEAL_SHRINK) != 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
}

bool on_hugetlbfs(int fd) noexcept {
  struct statfs system {};
  return ::fstatfs(fd, &system) == 0 && system.f_type == HUGETLBFS_MAGIC;
}

bool leased(MapKind kind) noexcept {
  return kind == MapKind::tmpfs || kind == MapKind::hugetlbfs || kind == MapKind::fsdax;
}

/// Why it takes the same way as file:, and what would help.
std::string why_not_memory(const MapFound& found) {
  if (found.is == "a block device")
    return "the pages of a block device belong to the page cache, and no adapter may write there; persistent memory "
           "can be had as a character device: ndctl create-namespace -f -e NAMESPACE -m devdax";
  return "its pages belong to the page cache, which has to know when they are written, and no adapter may write there; "
         "a "
         "file on tmpfs or hugetlbfs, a memfd or a devdax device is served without a copy";
}

}  // namespace

class MapStore::Guarded final : public coherence::Registration {
 public:
  explicit Guarded(MapStore& store) noexcept : store_(store) {}
  Result<void> fence() override {
    if (store_.registered_) store_.registered_->fence();
    return {};
  }
  Result<void> restore() override {
    const auto size = store_.file_->medium().size_now();
    if (!size || *size < store_.mapping_->span().size)
      return failure(ErrorKind::in_use,
                     fmt::format("store '{}': its file has {} bytes, of which {} are mapped: it must "
                                 "be that long again first",
                                 store_.spec_, size.value_or(0), store_.mapping_->span().size));
    return store_.registered_ ? store_.registered_->restore() : Result<void>();
  }

 private:
  MapStore& store_;
};

MapStore::MapStore(std::string spec, MapFound found, const StoreEnvironment& environment)
    : spec_(std::move(spec)),
      found_(std::move(found)),
      clock_(environment.clock),
      logger_(environment.logger),
      explain_only_(environment.explain_only),
      log_limit_{RateLimit(kLogInterval), RateLimit(kLogInterval), RateLimit(kLogInterval)} {}

Result<std::unique_ptr<Store>> MapStore::create(std::string spec, const MapOptions& options,
                                                const StoreEnvironment& environment) {
  auto found = look_at(options.path);
  if (!found) return failure(std::move(found.error()));
  std::unique_ptr<MapStore> store(new MapStore(std::move(spec), std::move(*found), environment));
  if (auto opened = store->open(options, environment); !opened) return failure(std::move(opened.error()));
  environment.logger.info("store '{}': {}", store->spec_, store->serving());
  return std::unique_ptr<Store>(std::move(store));
}

MapStore::~MapStore() {
  region_.reset();
  if (mapping_) logger_.info("store '{}': closed; {}", spec_, totals());
}

// ---- opening ----

Result<void> MapStore::open(const MapOptions& options, const StoreEnvironment& environment) {
  const FileOptions file{.name = {"map", options.path},
                         .block_shift = options.block_shift,
                         .read_only = options.read_only,
                         .direct = found_.kind == MapKind::other ? DirectIo::if_possible : DirectIo::never,
                         .identity = options.identity};
  auto medium =
      found_.kind == MapKind::devdax ? FileMedium::open_devdax(file, environment) : FileMedium::open(file, environment);
  if (!medium) return failure(std::move(medium.error()));
  auto opened = FileStore::over(spec_, std::move(*medium), environment);
  if (!opened) return failure(std::move(opened.error()));
  file_ = std::move(*opened);
  if (found_.kind == MapKind::other) {
    why_copied_ = why_not_memory(found_);
    return {};
  }
  if (auto mapped = map(); !mapped) {
    // What has no read(2) and write(2) has no other way.
    if (found_.kind == MapKind::devdax || on_hugetlbfs(file_->medium().fd()))
      return failure(std::move(mapped.error()).within(fmt::format("store '{}'", spec_)));
    why_copied_ = mapped.error().message();
    mapping_.reset();
    return {};
  }
  if (leased(found_.kind)) guard(environment.monitor);
  if (!mapping_) return {};
  const bool guarded = region_ != nullptr || !leased(found_.kind);
  if (guarded && found_.kind != MapKind::fsdax) registered_.emplace(mapping_->span(), transport::RemoteAccess::none);
  if (registered_ && region_ != nullptr) registered_->fence();  // until the guard stands
  if (region_ != nullptr) begin_guarding();
  return {};
}

Result<void> MapStore::map() {
  const FileMedium& medium = file_->medium();
  const bool persistent = found_.kind == MapKind::devdax || found_.kind == MapKind::fsdax;
  const bool writable = !medium.geometry().read_only;
  auto mapping = Mapping::create(medium.fd(), medium.geometry().blocks.value() << block_shift().value(),
                                 {.writable = writable,
                                  .persistence = persistent ? Persistence::cache_lines : Persistence::none,
                                  .synchronous = found_.kind == MapKind::fsdax});
  if (!mapping) {
    const bool sealed = found_.kind == MapKind::memfd && writable && keeps_its_pages(::fcntl(medium.fd(), F_GET_SEALS));
    if (!sealed) return failure(std::move(mapping.error()));
    return failure(
        ErrorKind::permission,
        "it was sealed against new writers, by its owner or when it was served before: serve it ,readonly, or "
        "copy it into a new one");
  }
  mapping_.emplace(std::move(*mapping));
  return found_.kind == MapKind::memfd ? seal() : Result<void>();
}

Result<void> MapStore::seal() {
  const int fd = file_->medium().fd();
  if (explain_only_ && (::fcntl(fd, F_GET_SEALS) & F_SEAL_SEAL) == 0) return {};
  if (::fcntl(fd, F_ADD_SEALS, kSeals) == 0 || keeps_its_pages(::fcntl(fd, F_GET_SEALS))) return {};
  return errno_failure(errno, "sealing it against being cut short or punched",
                       "whoever makes it must say MFD_ALLOW_SEALING, and keep no writable mapping of it from being "
                       "made: without the seals its pages could be exchanged under the adapter");
}

/// A lease, where there can be one. Nothing is registered yet.
void MapStore::guard(coherence::Monitor* monitor) {
  const auto without = [this](std::string reason) {
    why_copied_ = std::move(reason);
    // Huge pages cannot be written with write(2): they are copied into and out of the mapping, which takes no guard.
    if (found_.kind != MapKind::hugetlbfs) mapping_.reset();
  };
  if (file_->medium().geometry().read_only)
    return without("a write lease, which guards it, needs a file that is open for writing: leave out ,readonly");
  if (monitor == nullptr) return without("this program watches no leases (StoreEnvironment::monitor)");
  auto watch = monitor->leases().watch(file_->medium().fd(), file_->medium().name().path);
  if (!watch) return without(watch.error().message());
  std::vector<std::unique_ptr<coherence::Watch>> watches;
  watches.push_back(std::move(*watch));
  guarded_ = std::make_unique<Guarded>(*this);
  auto region = monitor->add(*guarded_, std::move(watches), {.name = spec_, .restore_by_itself = true});
  if (!region) return without(region.error().message());
  region_ = std::move(*region);
}

void MapStore::begin_guarding() {
  auto guarded = region_->restore();
  if (guarded) return;
  if (guarded.error().kind() == ErrorKind::in_use) {
    logger_.warning("store '{}': {}; it is copied until then", spec_, guarded.error().message());
    away_.store(true, std::memory_order_relaxed);
    region_->restore_when_possible();
    return;
  }
  why_copied_ = guarded.error().message();
  region_.reset();
  registered_.reset();
  if (found_.kind != MapKind::hugetlbfs) mapping_.reset();
}

// ---- what others ask ----

Geometry MapStore::geometry() const {
  Geometry geometry = file_->geometry();
  if (!mapping_) return geometry;
  geometry.write_cache = found_.kind == MapKind::fsdax;  // by way of the descriptor it has one
  geometry.discard = geometry.read_only ? Ability::none : Ability::emulated;
  geometry.discard_reads_zero = !geometry.read_only;
  geometry.write_zeroes = Ability::emulated;
  // Commands take turns, and so does a Write Zeroes of that length.
  geometry.atomic_write = block_shift().blocks(Bytes(Zeroing::kSliceMax));
  if (on_hugetlbfs(file_->medium().fd()))  // what was added later can be read, and not written
    geometry.blocks = std::min(geometry.blocks, block_shift().blocks(Bytes(mapping_->span().size)));
  return geometry;
}

Result<void> MapStore::prepare(transport::ProtectionDomain& domain, std::uint32_t) {
  if (!registered_) return {};
  const std::lock_guard lock(mutex_);
  if (std::find(refused_.begin(), refused_.end(), &domain) != refused_.end()) return {};
  auto done = registered_->ensure(domain);
  if (done) return {};
  refused_.push_back(&domain);
  logger_.warning("store '{}': its {} bytes cannot be registered with {}: {}; hosts there are served by way of buffers",
                  spec_, mapping_->span().size, domain.name(), done.error().message());
  return {};
}

std::optional<std::uint32_t> MapStore::lkey(const Lease& lease) const noexcept {
  if (!registered_) return std::nullopt;
  if (lease.domain == nullptr) return 0;
  const auto keys = registered_->keys(*lease.domain);
  if (!keys) return std::nullopt;
  return keys->lkey;
}

Result<std::unique_ptr<StoreQueue>> MapStore::open_queue(const StoreQueueContext& context) {
  if (!mapping_) return file_->open_queue(context);
  auto queue = MapQueue::open(*this, context);
  if (!queue) return failure(std::move(queue.error()).within(fmt::format("store '{}'", spec_)));
  return queue;
}

std::shared_ptr<MapTally> MapStore::new_tally() {
  const std::lock_guard lock(mutex_);
  return tallies_.emplace_back(std::make_shared<MapTally>());
}

// ---- what people are told ----

std::string MapStore::serving() const {
  if (!mapping_) return fmt::format("{}; served as file: does, by way of buffers: {}", found_.is, why_copied_);
  if (found_.kind == MapKind::fsdax)
    return fmt::format(
        "{}; by way of buffers and stores to persistent memory, as no adapter can reach it; guarded by a "
        "write lease; as a devdax device it would be served without a copy",
        found_.is);
  if (!registered_) return fmt::format("{}; by way of buffers: {}", found_.is, why_copied_);
  const std::string_view guard = found_.kind == MapKind::memfd ? "sealed: its pages cannot be taken away"
                                 : found_.kind == MapKind::devdax
                                     ? "a device: its pages stay"
                                     : "guarded by a write lease: whoever opens it for writing waits until no adapter "
                                       "reaches it";
  return fmt::format("{}; served in place, without a copy, to hosts whose device can register it; {}", found_.is,
                     guard);
}

std::string MapStore::explain() const {
  std::string text = serving();
  if (mapping_ && mapping_->persistence() == Persistence::cache_lines)
    text += "\ndurable: written back out of the CPU's caches before the answer";
  else if (mapping_)
    text += "\ndurable: it is memory: it survives this program, and not the machine";
  if (away_.load(std::memory_order_relaxed))
    text += "\nnow: somebody else has it open, so it is copied until they close it";
  return text;
}

std::string MapStore::totals() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t in_place = 0;
  std::uint64_t through_buffer = 0;
  for (const auto& tally : tallies_) {
    in_place += tally->in_place.load(std::memory_order_relaxed);
    through_buffer += tally->through_buffer.load(std::memory_order_relaxed);
  }
  return fmt::format("so far {} bytes in place, {} by way of buffers", in_place, through_buffer);
}

void MapStore::on_region_changed(coherence::RegionState state) {
  const bool away = state != coherence::RegionState::coherent;
  if (away_.exchange(away, std::memory_order_relaxed) == away) return;  // another queue has said so
  const auto counters = region_->counters();
  const std::lock_guard lock(log_mutex_);
  if (!log_limit_[away ? 0 : 1].allow(clock_.now())) return;
  if (away)
    logger_.info("store '{}': somebody else opens its file: copied until they close it; {}", spec_, totals());
  else
    logger_.info(
        "store '{}': in place again; its lease was broken {} times, whoever broke it waited {} ms at the most; {}",
        spec_, counters.events, counters.blocked_max / std::chrono::milliseconds(1), totals());
}

void MapStore::report(Intent intent, std::uint64_t offset, std::uint64_t length, int error) {
  const std::lock_guard lock(log_mutex_);
  if (!log_limit_[2].allow(clock_.now())) return;
  const std::string what = fmt::format("store '{}': {} {} bytes at byte {}", spec_,
                                       intent == Intent::read ? "reading" : "writing", length, offset);
  logger_.error("{}", Error::from_errno(error, what).message());
}

}  // namespace rbt::target
