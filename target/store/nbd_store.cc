#include "target/store/nbd_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/sizes.h"
#include "target/store/identity.h"
#include "target/store/nbd_queue.h"

namespace rbt::target {

namespace {

constexpr Duration kFirstHandshakeMax = std::chrono::seconds(10);

}  // namespace

NbdStore::NbdStore(std::string spec, NbdOptions options, const StoreEnvironment& environment, ZeroPages zeroes,
                   NbdConnected first)
    : spec_(std::move(spec)),
      options_(std::move(options)),
      logger_(environment.logger),
      zeroes_(std::move(zeroes)),
      range_lock_(BlockShift().blocks(Bytes(first.about.size))),
      identity_(options_.identity.value_or(Fingerprint().add("nbd").add(options_.uri).identity())),
      preferred_(first.about.block_preferred),
      first_(std::move(first)),
      size_(first_.about.size),
      flags_(flags_of(first_.about)) {
  if (!first_.about.can_multi_conn) options_.links_max = 1;
  if (options_.read_only) flags_ |= kReadOnly;
  if (shares_links()) shared_ = std::make_unique<Shared[]>(options_.links_max);
}

Result<std::unique_ptr<Store>> NbdStore::create(std::string spec, const NbdOptions& options,
                                                const StoreEnvironment& environment) {
  auto zeroes = ZeroPages::create(spec);
  if (!zeroes) return failure(std::move(zeroes.error()));
  auto first = nbd_connect(options.uri, kFirstHandshakeMax, -1);
  if (!first) return failure(std::move(first.error()).within(fmt::format("store '{}'", spec)));
  const NbdExport about = first->about;
  std::unique_ptr<NbdStore> store(
      new NbdStore(std::move(spec), options, environment, std::move(*zeroes), std::move(*first)));
  if (auto chosen = store->choose_block(); !chosen) return failure(std::move(chosen.error()));
  environment.logger.info("store '{}': {} blocks of {}{}, {}, {}{}{}{}, identity {} out of {}", store->spec_,
                          about.size >> store->block_shift_.value(), store->block_shift_.block_size(),
                          store->read_only() ? ", read-only" : "", store->connections(),
                          about.structured_replies ? "holes need no transfer" : "holes are transferred",
                          about.can_fua     ? ""
                          : about.can_flush ? ", no FUA (a flush instead)"
                                            : ", no flush: what it answers is taken as durable",
                          about.can_trim ? "" : ", no discard", about.can_zero ? "" : ", zeroes are written",
                          uuid_of(store->identity_).to_string(), options.identity ? "uuid=" : "its URI");
  return std::unique_ptr<Store>(std::move(store));
}

std::string NbdStore::connections() const {
  if (!shares_links()) return "a connection per reactor";
  if (options_.links_max == 1) return "one connection for all reactors";
  return fmt::format("{} connections for all reactors", options_.links_max);
}

std::string NbdStore::explain() const {
  return fmt::format("by way of buffers, to and from the server's socket; {}", connections());
}

std::uint32_t NbdStore::flags_of(const NbdExport& about) noexcept {
  return (about.read_only ? kReadOnly : 0U) | (about.can_flush ? kFlush : 0U) | (about.can_fua ? kFua : 0U) |
         (about.can_trim ? kTrim : 0U) | (about.can_zero ? kZero : 0U);
}

Result<void> NbdStore::choose_block() {
  const NbdExport& about = first_.about;
  const auto problem = [&](ErrorKind kind, const std::string& what) {
    return failure(kind, fmt::format("store '{}': {}", spec_, what));
  };
  const auto least = BlockShift::of(std::max<std::uint64_t>(about.block_min, 512));
  if (!least)
    return problem(
        ErrorKind::unsupported,
        fmt::format("the server takes multiples of {} bytes only: blocks of 512 to 4096 can be served (nbdkit: "
                    "--filter=blocksize)",
                    about.block_min));
  block_shift_ = options_.block_shift.value_or(*least);
  if (block_shift_.value() < least->value())
    return problem(ErrorKind::invalid_argument,
                   fmt::format("the server takes multiples of {0} bytes only: block={0} or larger", about.block_min));
  if (about.size == 0 || !block_shift_.is_multiple(about.size))
    return problem(
        ErrorKind::invalid_argument,
        fmt::format("its {} bytes are not whole blocks of {}: {}", about.size, block_shift_.block_size(),
                    about.size != 0 && about.size % 512 == 0 && about.block_min <= 512
                        ? "block=512 serves it as it is"
                        : "make the image longer (qemu-img resize; nbdkit: --filter=truncate round-up=4096)"));
  return {};
}

Geometry NbdStore::geometry() const {
  const std::uint32_t now = flags();
  const auto whole = [&](std::uint64_t bytes) {
    return block_shift_.blocks(Bytes(std::clamp<std::uint64_t>(bytes, block_shift_.block_size(), kMiB)));
  };
  Geometry geometry;
  geometry.block_shift = block_shift_;
  geometry.blocks = block_shift_.blocks(Bytes(size_.load(std::memory_order_acquire)));
  geometry.read_only = (now & kReadOnly) != 0;
  // A server that can neither flush nor write durably says that there is nothing to flush.
  geometry.write_cache = options_.writes == NbdOptions::Writes::cached && (now & (kFlush | kFua)) != 0;
  geometry.discard = (now & kTrim) != 0 && !geometry.read_only ? Ability::native : Ability::none;
  geometry.write_zeroes = can_zero() ? Ability::native : Ability::emulated;
  geometry.optimal_io = whole(preferred_);
  geometry.discard_granularity = geometry.optimal_io;
  geometry.atomic_write = block_shift_.blocks(StagedQueue::kAtomicWrite);
  return geometry;
}

Result<std::unique_ptr<StoreQueue>> NbdStore::open_queue(const StoreQueueContext& context) {
  auto queue = NbdQueue::open(*this, context);
  if (!queue) return failure(std::move(queue.error()).within(fmt::format("store '{}'", spec_)));
  return std::unique_ptr<StoreQueue>(std::move(*queue));
}

NbdStore::Shared& NbdStore::next_shared() noexcept {
  return shared_[queues_.fetch_add(1, std::memory_order_relaxed) % options_.links_max];
}

void NbdStore::note_flushed(std::uint64_t cached) noexcept {
  std::uint64_t before = flushed_.load(std::memory_order_relaxed);
  while (before < cached && !flushed_.compare_exchange_weak(before, cached, std::memory_order_acq_rel)) {
  }
}

// ---- what links say ----

NbdConnected NbdStore::take_first() {
  const std::lock_guard lock(mutex_);
  return std::move(first_);
}

Result<void> NbdStore::admit(const NbdExport& about) {
  const std::lock_guard lock(mutex_);
  if (about.block_min > block_shift_.block_size())
    return failure(
        ErrorKind::mismatch,
        fmt::format("the server takes multiples of {} bytes now, and blocks have {}: serve the export that it "
                    "was, or restart with another block=",
                    about.block_min, block_shift_.block_size()));
  if (!shares_links() && !about.can_multi_conn)
    return failure(ErrorKind::mismatch,
                   "the server does not keep several connections consistent any more: let it (qemu-nbd -e N), or "
                   "restart with connections=1");
  const std::uint32_t flags_now = flags_of(about) | (options_.read_only ? kReadOnly : 0U);
  const std::uint64_t size_before = size_.exchange(about.size, std::memory_order_acq_rel);
  const std::uint32_t flags_before = flags_.exchange(flags_now, std::memory_order_acq_rel);
  if (size_before != about.size)
    logger_.warning("store '{}': it had {} bytes and has {} now{}", spec_, size_before, about.size,
                    about.size < size_before ? ": what lies behind the end fails" : "");
  if (size_before == about.size && flags_before == flags_now) return {};
  if (StoreObserver* const observer = observer_.load(std::memory_order_acquire); observer != nullptr)
    observer->on_geometry_changed();
  return {};
}

void NbdStore::on_lost() noexcept {
  losses_.fetch_add(1, std::memory_order_acq_rel);
  const std::uint64_t flushed = flushed_.load(std::memory_order_acquire);
  const std::uint64_t in_doubt = cached_.load(std::memory_order_acquire) - flushed;
  if (in_doubt == 0 || lost_writes_.exchange(true, std::memory_order_acq_rel)) return;
  logger_.error(
      "store '{}': {} writes had been answered out of the server's cache when the connection was lost, and nobody can "
      "tell "
      "whether it still has them, so that every flush fails from now on: look after the data, then restart; "
      "writes=durable does not get here",
      spec_, in_doubt);
}

}  // namespace rbt::target
