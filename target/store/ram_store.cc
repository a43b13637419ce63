#include "target/store/ram_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "common/check.h"
#include "target/store/in_place.h"
#include "target/store/lease_memory.h"
#include "target/store/shadow.h"
#include "target/store/zeroing.h"

namespace rbt::target {

namespace {

class RamQueue final : public StoreQueue, private ZeroedMemory, private InPlaceMemory, private ShadowMemory {
 public:
  RamQueue(RamStore& store, const StoreQueueContext& context)
      : store_(store),
        reactor_(context.reactor),
        in_place_(*this, store.range_lock(), store.block_shift(), context),
        zeroing_(*this, store.block_shift(), context.reactor) {}

  Progress acquire(Lease& lease, StoreRequest& request) override {
    settle();
    return shadow_ ? shadow_->acquire(lease, request) : in_place_.acquire(lease, request);
  }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    return shadow_ ? Progress::done(shadow_->commit(lease)) : in_place_.commit(lease, durability, request);
  }
  void release(Lease& lease) noexcept override { shadow_ ? shadow_->release(lease) : in_place_.release(lease); }
  Progress flush(StoreRequest&) override { return Progress::done(); }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    settle();
    return zeroing_.discard(ranges, request);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    settle();
    return zeroing_.write_zeroes(range, deallocate, durability, request);
  }
  std::uint64_t bytes_copied() const noexcept override { return in_place_.bytes_copied(); }

 private:
  void settle() {
    if (shadow_ || in_place_settled_) return;
    if (store_.settle() == Atomicity::in_place) {
      in_place_settled_ = true;
      return;
    }
    ShadowMemory& memory = *this;
    shadow_.emplace(memory, store_.shadow().table, store_.block_shift(), reactor_);
  }

  // InPlaceMemory
  std::byte* at(std::uint64_t offset) noexcept override { return store_.memory().memory().data + offset; }
  std::uint32_t lkey(const Lease& lease) noexcept override { return lease_key(store_.memory(), lease); }
  bool stages(const Lease& lease) noexcept override {
    return lease.intent == Intent::write && store_.stages(lease.path_mtu);
  }
  StoreStatus land(std::uint64_t offset, std::span<const std::byte> data) override {
    std::memcpy(at(offset), data.data(), data.size());
    return StoreStatus::ok;
  }
  Progress landed(Lease&, Durability, StoreRequest&) override { return Progress::done(); }
  void on_claimed() override { zeroing_.resume(); }

  // ZeroedMemory
  [[nodiscard]] BlockRange blocks(std::uint64_t offset, std::uint64_t length) const noexcept {
    return {Lba(offset >> store_.block_shift().value()), store_.block_shift().blocks(Bytes(length))};
  }
  bool claim(std::uint64_t offset, std::uint64_t length) override {
    const BlockRange range = blocks(offset, length);
    return shadow_ ? shadow_->claim(range.count.value()) : in_place_.claim(range);
  }
  void unclaim() noexcept override { shadow_ ? shadow_->unclaim() : in_place_.unclaim(); }
  bool zero(std::uint64_t offset, std::uint64_t length) override {
    if (shadow_)
      shadow_->zero(blocks(offset, length));
    else
      std::memset(at(offset), 0, length);
    return true;
  }
  std::uint64_t next_data(std::uint64_t offset, std::uint64_t end) noexcept override {
    const transport::MemorySpan& home = store_.memory().memory();
    const std::uint64_t data =
        next_data_in_file(home.fd, home.fd_offset + offset, home.fd_offset + end) - home.fd_offset;
    if (!shadow_) return data;
    // What lies at home may be a hole, and the block elsewhere.
    const BlockRange skipped = blocks(offset, data - offset);
    return store_.shadow().table.first_moved(skipped.first, skipped.end()).value() << store_.block_shift().value();
  }
  Progress take_over(const ZeroingRest&, StoreRequest&) override {
    check(false, "memory of our own never refuses to be zeroed");
    return Progress::done(StoreStatus::write_error);
  }

  // ShadowMemory
  Piece piece(BlockTable::Place place, const Lease& lease) noexcept override {
    RamShadow& shadow = store_.shadow();
    if (place < shadow.table.blocks())
      return {store_.memory().memory().data, 0, shadow.table.blocks(), lease_key(store_.memory(), lease)};
    return {shadow.memory.data(), shadow.table.blocks(), shadow.table.spare(), lease_key(shadow.registered, lease)};
  }
  BlockTable::Place place_of(const std::byte* data) noexcept override {
    RamShadow& shadow = store_.shadow();
    const auto into = [&](const std::byte* begin) {
      return static_cast<std::uint64_t>(data - begin) >> store_.block_shift().value();
    };
    const auto& home = store_.memory().memory();
    const bool at_home = std::greater_equal<>()(data, home.data) && std::less<>()(data, home.data + home.size);
    return static_cast<BlockTable::Place>(at_home ? into(home.data)
                                                  : shadow.table.blocks() + into(shadow.memory.data()));
  }

  StoreStatus move(Lba first, std::span<const BlockTable::Place> places) override {
    BlockTable& table = store_.shadow().table;
    BlockTable::Freed freed(table);
    for (const BlockTable::Place place : places) {
      table.commit(first, place, freed);
      first = first + Blocks(1);
    }
    return StoreStatus::ok;
  }

  RamStore& store_;
  transport::Reactor& reactor_;
  bool in_place_settled_ = false;
  InPlace in_place_;
  std::optional<Shadow> shadow_;
  Zeroing zeroing_;
};

}  // namespace

RamStore::RamStore(std::string spec, const RamOptions& options, const Identity& identity, StoreMemory memory,
                   Logger& logger, SharedArena* arena)
    : spec_(std::move(spec)),
      options_(options),
      identity_(identity),
      memory_(std::move(memory)),
      registered_(memory_.span(), transport::RemoteAccess::none),
      logger_(logger),
      arena_(arena),
      range_lock_(options.block_shift.blocks(options.size), RangeLock::Growth::never),
      settled_(options.atomicity == Atomicity::in_place ? Atomicity::in_place : Atomicity::automatic) {}

Result<std::unique_ptr<Store>> RamStore::create(std::string spec, const RamOptions& options, const Identity& identity,
                                                Logger& logger, SharedArena* arena) {
  auto memory = StoreMemory::create(options.size, {"rbt-ram", options.huge_pages, false}, arena);
  if (!memory) return failure(std::move(memory.error()).within(fmt::format("store '{}'", spec)));
  std::unique_ptr<RamStore> store(new RamStore(std::move(spec), options, identity, std::move(*memory), logger, arena));
  if (options.atomicity == Atomicity::shadow)
    if (auto made = store->make_shadow(); !made) return failure(std::move(made.error()));
  return store;
}

Result<void> RamStore::make_shadow() {
  const Bytes size = landing_size(options_.size);
  const Blocks spare = options_.block_shift.blocks(size);
  const Blocks blocks = options_.block_shift.blocks(options_.size);
  if (blocks.value() + spare.value() > BlockTable::kPlacesMax)
    return failure(ErrorKind::unsupported,
                   fmt::format("store '{}': atomic=shadow with {} blocks: {} are the most; use larger blocks, or "
                               "atomic=in-place",
                               spec_, blocks.value(), BlockTable::kPlacesMax - spare.value()));
  auto memory = StoreMemory::create(size, {"rbt-ram-spare", options_.huge_pages, false}, arena_);
  if (!memory) return failure(std::move(memory.error()).within(fmt::format("store '{}': landing blocks", spec_)));
  shadow_ = std::make_unique<RamShadow>(blocks, spare, std::move(*memory));
  settled_.store(Atomicity::shadow, std::memory_order_release);
  return {};
}

Atomicity RamStore::settle() noexcept {
  auto settled = settled_.load(std::memory_order_acquire);
  if (settled != Atomicity::automatic) return settled;
  const std::lock_guard lock(settling_);
  settled = settled_.load(std::memory_order_relaxed);
  if (settled == Atomicity::automatic) settled_.store(settled = Atomicity::in_place, std::memory_order_release);
  return settled;
}

/// At the first connection: shadow, if its packets would tear blocks.
void RamStore::choose(std::uint32_t path_mtu) {
  const std::lock_guard lock(settling_);
  if (settled_.load(std::memory_order_relaxed) != Atomicity::automatic) return;
  if (!may_shadow() || !tears(path_mtu, options_.block_shift, false)) {
    settled_.store(Atomicity::in_place, std::memory_order_release);
    return;
  }
  if (auto made = make_shadow(); !made) {
    logger_.warning("{}; writes go by way of a buffer instead", made.error().message());
    settled_.store(Atomicity::in_place, std::memory_order_release);
  }
}

std::string RamStore::explain() const {
  std::string_view how = "in place, without a copy, but for writes whose packets are smaller than a block";
  if (options_.atomicity == Atomicity::in_place)
    how = "in place, without a copy; packets that are smaller than a block can leave it half new";
  else if (options_.atomicity == Atomicity::shadow)
    how = "without a copy, written to landing blocks first";
  else if (may_shadow())
    how =
        "in place, without a copy; where packets are smaller than a block, written to landing blocks first, without "
        "one, too";
  return fmt::format("memory of this program; served {}", how);
}

Geometry RamStore::geometry() const {
  Geometry geometry;
  geometry.block_shift = options_.block_shift;
  geometry.blocks = options_.block_shift.blocks(options_.size);
  geometry.write_cache = false;
  geometry.discard = Ability::emulated;
  geometry.write_zeroes = Ability::emulated;
  geometry.discard_reads_zero = true;
  geometry.optimal_io = options_.block_shift.blocks(Bytes(4096));
  geometry.transfer_max = std::min(geometry.transfer_max, options_.size);
  // In place commands take turns, and so does a Write Zeroes of that length. What may become shadow must not promise it.
  if (!may_shadow()) geometry.atomic_write = options_.block_shift.blocks(Bytes(Zeroing::kSliceMax));
  return geometry;
}

Result<void> RamStore::prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) {
  if (options_.atomicity == Atomicity::in_place && tears(path_mtu, options_.block_shift, false) &&
      !warned_.exchange(true, std::memory_order_relaxed))
    logger_.warning(
        "store '{}': its blocks of {} bytes are written in place, as atomic=in-place demands, by a connection whose "
        "packets hold {}: a connection that is lost leaves blocks half new; leave atomic= out, or use atomic=shadow",
        spec_, options_.block_shift.block_size(), path_mtu);
  choose(path_mtu);
  if (auto done = ensure(registered_, domain); !done) return done;
  return settle() == Atomicity::shadow ? ensure(shadow_->registered, domain) : Result<void>();
}

Result<void> RamStore::ensure(transport::RegisteredMemory& memory, transport::ProtectionDomain& domain) const {
  auto done = memory.ensure(domain);
  if (!done)
    return failure(std::move(done.error())
                       .within(fmt::format("store '{}': registering its {} bytes", spec_, memory.memory().size)));
  return done;
}

Result<std::unique_ptr<StoreQueue>> RamStore::open_queue(const StoreQueueContext& context) {
  return std::make_unique<RamQueue>(*this, context);
}

}  // namespace rbt::target
