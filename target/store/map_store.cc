#include "target/store/map_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "target/store/map_queue.h"
#include "target/store/map_shadow_queue.h"
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
    store_.complete_.store(false, std::memory_order_relaxed);
    return {};
  }
  Result<void> restore() override {
    const auto size = store_.file_->medium().size_now();
    if (!size || *size < store_.mapping_->span().size)
      return failure(ErrorKind::in_use,
                     fmt::format("store '{}': its file has {} bytes, of which {} are mapped: it must "
                                 "be that long again first",
                                 store_.spec_, size.value_or(0), store_.mapping_->span().size));
    if (auto ours = still_ours(); !ours) return ours;
    return store_.registered_ ? store_.registered_->restore() : Result<void>();
  }

 private:
  /// Blocks may be anybody's; the table that says where they lie is not.
  [[nodiscard]] Result<void> still_ours() {
    if (!store_.image_) return {};
    ImageTable& table = store_.image_->table();
    const auto broken = [&](Error error) {
      return failure(ErrorKind::in_use, std::move(error).within(fmt::format("store '{}'", store_.spec_)).message());
    };
    if (table.broken()) return broken(Error(ErrorKind::in_use, "its table is broken: restart"));
    auto compared = table.compare(
        [this](std::uint64_t offset, std::span<std::byte> bytes) { return store_.read_file(offset, bytes); });
    if (!compared) {
      store_.logger_.error("store '{}': {}; it answers with errors until it is opened again", store_.spec_,
                           compared.error().message());
      return broken(std::move(compared.error()));
    }
    return {};
  }

  MapStore& store_;
};

MapStore::MapStore(std::string spec, MapFound found, Atomicity atomicity, const StoreEnvironment& environment)
    : spec_(std::move(spec)),
      found_(std::move(found)),
      atomicity_(atomicity),
      clock_(environment.clock),
      logger_(environment.logger),
      explain_only_(environment.explain_only),
      log_limit_{RateLimit(kLogInterval), RateLimit(kLogInterval), RateLimit(kLogInterval)} {}

Result<std::unique_ptr<Store>> MapStore::create(std::string spec, const MapOptions& options,
                                                const StoreEnvironment& environment) {
  auto found = look_at(options.path);
  if (!found) return failure(std::move(found.error()));
  std::unique_ptr<MapStore> store(new MapStore(std::move(spec), std::move(*found), options.atomicity, environment));
  if (auto opened = store->open(options, environment); !opened) return failure(std::move(opened.error()));
  environment.logger.info("store '{}': {}", store->spec_, store->serving());
  return std::unique_ptr<Store>(std::move(store));
}

MapStore::~MapStore() {
  region_.reset();
  if (mapping_) logger_.info("store '{}': closed; {}", spec_, totals());
}

// ---- opening ----

/// What `options` leave open follows from what the file is. Nothing: its bytes are the blocks.
Result<std::optional<ShadowLayout>> MapStore::choose_form(MapOptions& options) const {
  if (atomicity_ != Atomicity::shadow) {
    if (atomicity_ == Atomicity::in_place || options.read_only) return std::nullopt;
    const auto bytes = MapImage::beginning(options.path, found_.kind);
    if (!bytes || !begins_like_shadow_image(*bytes)) return std::nullopt;
    // A host may have written these bytes to annoy, so that it is no reason to serve nothing, nor to believe them.
    options.read_only = true;
    logger_.warning(
        "store '{}': it begins like a shadow image, whose tables hosts would overwrite: it is served read-only, as the "
        "bytes that it is; atomic=shadow serves the disk that is in it, atomic=in-place lets hosts write where they "
        "like",
        spec_);
    return std::nullopt;
  }
  const auto layout = MapImage::understand(options.path, found_);
  if (!layout) return failure(layout.error());
  if (options.block_shift && options.block_shift->value() != layout->block_shift.value())
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("store '{}': its shadow image has blocks of {} bytes: leave block= out; other blocks are "
                    "to be had by converting it to raw and back",
                    spec_, layout->block_shift.block_size()));
  options.block_shift = layout->block_shift;
  if (!options.identity) options.identity = layout->identity;
  return *layout;
}

Result<void> MapStore::open(MapOptions options, const StoreEnvironment& environment) {
  const auto layout = choose_form(options);
  if (!layout) return failure(layout.error());
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
  auto mapped = map(options.persister);
  // What has no read(2) and write(2) has no other way.
  if (!mapped && (found_.kind == MapKind::devdax || on_hugetlbfs(file_->medium().fd())))
    return failure(std::move(mapped.error()).within(fmt::format("store '{}'", spec_)));
  if (*layout) {
    const Geometry& all = file_->medium().geometry();
    auto image =
        MapImage::open(**layout, all.blocks.value() << all.block_shift.value(),
                       [this](std::uint64_t offset, std::span<std::byte> bytes) { return read_file(offset, bytes); });
    if (!image) return failure(std::move(image.error()).within(fmt::format("store '{}'", spec_)));
    image_ = std::move(*image);
  }
  if (mapped) {
    open_memory(environment);
  } else {
    why_copied_ = mapped.error().message();
    mapping_.reset();
  }
  return {};
}

void MapStore::open_memory(const StoreEnvironment& environment) {
  if (auto done = allocate(); !done) {
    why_copied_ = done.error().message();
    if (found_.kind != MapKind::hugetlbfs) mapping_.reset();
    return;
  }
  if (leased(found_.kind)) guard(environment.monitor);
  if (!mapping_) return;
  const bool guarded = region_ != nullptr || !leased(found_.kind);
  if (guarded && found_.kind != MapKind::fsdax) {
    transport::MemorySpan span = mapping_->span();
    if (!image_ && atomicity_ != Atomicity::in_place) span.landing = &landing_;
    registered_.emplace(span, transport::RemoteAccess::none);
  }
  if (registered_ && region_ != nullptr) registered_->fence();  // until the guard stands
  if (region_ != nullptr) begin_guarding();
}

/// Where our own CPU writes into the file's pages (shm), all of them must be there: one that cannot be found then is a
/// SIGBUS. Where nothing of ours writes there, they come with their use.
Result<void> MapStore::allocate() {
  const Geometry& all = file_->medium().geometry();
  const bool written = image_ != nullptr || atomicity_ == Atomicity::in_place;
  if (!written || all.read_only || explain_only_ || found_.kind == MapKind::devdax) return {};
  while (::fallocate(file_->medium().fd(), 0, 0, static_cast<::off_t>(all.blocks.value() << all.block_shift.value())) !=
         0)
    if (errno != EINTR)
      return errno_failure(errno, "finding memory for all of it",
                           "it is written by way of buffers, as long as there is some");
  return {};
}

bool MapStore::may_miss_pages(const Lease& lease, std::uint64_t offset, std::uint64_t length) noexcept {
  const bool by_cpu = lease.domain == nullptr || lease.domain->uses_landings();
  if (!by_cpu || found_.kind != MapKind::tmpfs || complete_.load(std::memory_order_relaxed)) return false;
  struct ::stat about {};
  // Of a file that has grown, nobody knows where what it has lies.
  if (::fstat(file_->medium().fd(), &about) == 0 &&
      static_cast<std::uint64_t>(about.st_size) == mapping_->span().size &&
      static_cast<std::uint64_t>(about.st_blocks) * 512 >= mapping_->span().size) {
    complete_.store(true, std::memory_order_relaxed);
    return false;
  }
  static const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  std::array<unsigned char, 64> there;  // its lowest bit: this page is
  for (std::uint64_t at = offset / page * page; at < offset + length; at += there.size() * page) {
    const std::uint64_t pages = std::min<std::uint64_t>(there.size(), (offset + length - at + page - 1) / page);
    if (::mincore(mapping_->span().data + at, pages * page, there.data()) != 0) return true;
    if (!std::all_of(there.begin(), there.begin() + pages, [](unsigned char byte) { return (byte & 1) != 0; }))
      return true;
  }
  return false;
}

/// Slow path.
Result<void> MapStore::read_file(std::uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const std::int64_t moved =
        found_.kind == MapKind::devdax
            ? copy_from_mapping(mapping_->span().data + offset, bytes.data(), bytes.size())
            : ::pread(file_->medium().fd(), bytes.data(), bytes.size(), static_cast<::off_t>(offset));
    if (moved < 0 && found_.kind != MapKind::devdax && errno == EINTR) continue;
    if (moved <= 0)
      return errno_failure(moved == 0                       ? EIO
                           : found_.kind == MapKind::devdax ? static_cast<int>(-moved)
                                                            : errno,
                           fmt::format("reading its bytes {} to {}", offset, offset + bytes.size()));
    offset += static_cast<std::uint64_t>(moved);
    bytes = bytes.subspan(static_cast<std::size_t>(moved));
  }
  return {};
}

Result<void> MapStore::map(Persister* persister) {
  const FileMedium& medium = file_->medium();
  const bool persistent = found_.kind == MapKind::devdax || found_.kind == MapKind::fsdax;
  const bool writable = !medium.geometry().read_only;
  auto mapping = Mapping::create(medium.fd(), medium.geometry().blocks.value() << block_shift().value(),
                                 {.writable = writable,
                                  .persistence = persistent ? Persistence::cache_lines : Persistence::none,
                                  .persister = persister,
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
  if (image_) return image_->geometry(geometry);
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

Result<void> MapStore::prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) {
  if (!registered_) return {};
  if (atomicity_ == Atomicity::in_place && !read_only() && tears(path_mtu, block_shift(), true) &&
      !warned_.exchange(true, std::memory_order_relaxed))
    logger_.warning(
        "store '{}': its blocks of {} bytes are written in place, as atomic=in-place demands, {}: who is lost or "
        "killed "
        "leaves blocks half new; leave atomic= out, or use atomic=shadow",
        spec_, block_shift().block_size(),
        path_mtu == 0 ? "by a CPU" : fmt::format("by a connection whose packets hold {}", path_mtu));
  const std::lock_guard lock(mutex_);
  if (std::find(refused_.begin(), refused_.end(), &domain) != refused_.end()) return {};
  auto done = ensure(domain);
  if (done) return {};
  refused_.push_back(&domain);
  logger_.warning("store '{}': its {} bytes cannot be registered with {}: {}; hosts there are served by way of buffers",
                  spec_, mapping_->span().size, domain.name(), done.error().message());
  return {};
}

Result<void> MapStore::ensure(transport::ProtectionDomain& domain) {
  if (image_)
    if (auto done = image_->zeroes().ensure(domain); !done) return done;
  return registered_->ensure(domain);
}

std::optional<std::uint32_t> MapStore::lkey(const Lease& lease) const noexcept {
  if (!registered_) return std::nullopt;
  if (lease.domain == nullptr) return 0;
  const auto keys = registered_->keys(*lease.domain);
  if (!keys) return std::nullopt;
  return keys->lkey;
}

Result<std::unique_ptr<StoreQueue>> MapStore::open_queue(const StoreQueueContext& context) {
  if (!mapping_ && !image_) return file_->open_queue(context);
  auto queue = image_ ? MapShadowQueue::open(*this, context) : MapQueue::open(*this, context);
  if (!queue) return failure(std::move(queue.error()).within(fmt::format("store '{}'", spec_)));
  return queue;
}

std::shared_ptr<MapTally> MapStore::new_tally() {
  const std::lock_guard lock(mutex_);
  return tallies_.emplace_back(std::make_shared<MapTally>());
}

// ---- what people are told ----

std::string MapStore::serving() const {
  if (image_ && !registered_) return fmt::format("a shadow image in {}; by way of buffers: {}", found_.is, why_copied_);
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
  const auto way = image_ ? fmt::format("served without a copy, written to one of {} landing blocks first",
                                        image_->layout().landing.value())
                          : std::string("served in place, without a copy,");
  return fmt::format("{}{}; {} to hosts whose device can register it; {}", image_ ? "a shadow image in " : "",
                     found_.is, way, guard);
}

std::string MapStore::explain() const {
  std::string text = serving();
  if (found_.kind == MapKind::other) text += "\n" + file_->explain();
  if (registered_ && !image_ && atomicity_ == Atomicity::automatic && !read_only())
    text += fmt::format(
        "\nbut writes take a buffer where packets are smaller than its blocks of {} bytes, to keep these whole: "
        "a shadow image (--convert-image, atomic=shadow) needs no copy there",
        block_shift().block_size());
  if (mapping_ && mapping_->persistence() == Persistence::cache_lines)
    text += "\ndurable: written back out of the CPU's caches before the answer";
  else if (mapping_ || image_)
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
