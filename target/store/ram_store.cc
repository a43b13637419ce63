#include "target/store/ram_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "target/store/in_place.h"
#include "target/store/lease_memory.h"
#include "target/store/zeroing.h"

namespace rbt::target {

namespace {

class RamQueue final : public StoreQueue, private ZeroedMemory, private InPlaceMemory {
 public:
  RamQueue(RamStore& store, const StoreQueueContext& context)
      : store_(store),
        in_place_(*this, store.range_lock(), store.block_shift(), context),
        zeroing_(*this, store.block_shift(), context.reactor) {}

  Progress acquire(Lease& lease, StoreRequest& request) override { return in_place_.acquire(lease, request); }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    return in_place_.commit(lease, durability, request);
  }
  void release(Lease& lease) noexcept override { in_place_.release(lease); }
  Progress flush(StoreRequest&) override { return Progress::done(); }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    return zeroing_.discard(ranges, request);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    return zeroing_.write_zeroes(range, deallocate, durability, request);
  }
  std::uint64_t bytes_copied() const noexcept override { return in_place_.bytes_copied(); }

 private:
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
  bool claim(std::uint64_t offset, std::uint64_t length) override { return in_place_.claim(blocks(offset, length)); }
  void unclaim() noexcept override { in_place_.unclaim(); }
  bool zero(std::uint64_t offset, std::uint64_t length) override {
    std::memset(at(offset), 0, length);
    return true;
  }
  std::uint64_t next_data(std::uint64_t offset, std::uint64_t end) noexcept override {
    return next_data_in_file(store_.memory().memory().fd, offset, end);
  }
  Progress take_over(const ZeroingRest&, StoreRequest&) override {
    check(false, "memory of our own never refuses to be zeroed");
    return Progress::done(StoreStatus::write_error);
  }

  RamStore& store_;
  InPlace in_place_;
  Zeroing zeroing_;
};

}  // namespace

RamStore::RamStore(std::string spec, const RamOptions& options, const Identity& identity,
                   transport::SharedMemory memory, Logger& logger)
    : spec_(std::move(spec)),
      options_(options),
      identity_(identity),
      memory_(std::move(memory)),
      registered_(memory_.span(), transport::RemoteAccess::none),
      logger_(logger),
      range_lock_(options.block_shift.blocks(options.size)) {}

Result<std::unique_ptr<Store>> RamStore::create(std::string spec, const RamOptions& options, const Identity& identity,
                                                Logger& logger) {
  auto memory = transport::SharedMemory::create(options.size, {"rbt-ram", options.huge_pages, false});
  if (!memory) return failure(std::move(memory.error()).within(fmt::format("store '{}'", spec)));
  return std::unique_ptr<Store>(new RamStore(std::move(spec), options, identity, std::move(*memory), logger));
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
  // Commands take turns, and so does a Write Zeroes of that length.
  geometry.atomic_write = options_.block_shift.blocks(Bytes(Zeroing::kSliceMax));
  return geometry;
}

Result<void> RamStore::prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) {
  if (options_.atomicity == Atomicity::in_place && tears(path_mtu, options_.block_shift, false) &&
      !warned_.exchange(true, std::memory_order_relaxed))
    logger_.warning(
        "store '{}': its blocks of {} bytes are written in place, as atomic=in-place demands, by a connection whose "
        "packets hold {}: a connection that is lost leaves blocks half new; leave atomic= out, or use atomic=shadow",
        spec_, options_.block_shift.block_size(), path_mtu);
  auto done = registered_.ensure(domain);
  if (!done)
    return failure(
        std::move(done.error()).within(fmt::format("store '{}': registering its {} bytes", spec_, memory_.size())));
  return done;
}

Result<std::unique_ptr<StoreQueue>> RamStore::open_queue(const StoreQueueContext& context) {
  return std::make_unique<RamQueue>(*this, context);
}

}  // namespace rbt::target
