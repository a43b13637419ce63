#include "target/store/ram_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "target/store/lease_memory.h"
#include "target/store/zeroing.h"

namespace rbt::target {

namespace {

// The longest segment: a length has 32 bits, and blocks stay whole.
constexpr std::uint64_t kSegmentMax = (std::uint64_t{1} << 32) - 4096;

class RamQueue final : public StoreQueue, private ZeroedMemory {
 public:
  RamQueue(RamStore& store, transport::Reactor& reactor)
      : store_(store), zeroing_(*this, store.block_shift(), reactor) {}

  Progress acquire(Lease& lease, StoreRequest&) override {
    const transport::MemorySpan& memory = store_.memory().memory();
    const std::uint32_t lkey = lease_key(store_.memory(), lease);
    std::uint64_t offset = bytes(lease.range.first);
    const std::uint64_t end = bytes(lease.range.end());
    check(end <= store_.size().value() && end - offset <= kSegmentMax * lease.few.size(),
          "a lease lies within the store");
    std::size_t count = 0;
    while (offset < end) {
      const auto length = static_cast<std::uint32_t>(std::min(end - offset, kSegmentMax));
      lease.few[count++] = {memory.data + offset, length, lkey};
      offset += length;
    }
    lease.segments = {lease.few.data(), count};
    return Progress::done();
  }

  Progress commit(Lease&, Durability, StoreRequest&) override { return Progress::done(); }
  void release(Lease& lease) noexcept override { lease.segments = {}; }
  Progress flush(StoreRequest&) override { return Progress::done(); }

  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    return zeroing_.discard(ranges, request);
  }

  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    return zeroing_.write_zeroes(range, deallocate, durability, request);
  }

 private:
  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept { return lba.value() << store_.block_shift().value(); }

  bool zero(std::uint64_t offset, std::uint64_t length) override {
    std::memset(store_.memory().memory().data + offset, 0, length);
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
  Zeroing zeroing_;
};

}  // namespace

RamStore::RamStore(std::string spec, const RamOptions& options, const Identity& identity,
                   transport::SharedMemory memory)
    : spec_(std::move(spec)),
      options_(options),
      identity_(identity),
      memory_(std::move(memory)),
      registered_(memory_.span(), transport::RemoteAccess::none) {}

Result<std::unique_ptr<Store>> RamStore::create(std::string spec, const RamOptions& options, const Identity& identity) {
  auto memory = transport::SharedMemory::create(options.size, {"rbt-ram", options.huge_pages, false});
  if (!memory) return failure(std::move(memory.error()).within(fmt::format("store '{}'", spec)));
  return std::unique_ptr<Store>(new RamStore(std::move(spec), options, identity, std::move(*memory)));
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
  geometry.transfer_max = Bytes(std::min(options_.size.value(), kSegmentMax * Lease{}.few.size()));
  return geometry;
}

Result<void> RamStore::prepare(transport::ProtectionDomain& domain, std::uint32_t) {
  auto done = registered_.ensure(domain);
  if (!done)
    return failure(
        std::move(done.error()).within(fmt::format("store '{}': registering its {} bytes", spec_, memory_.size())));
  return done;
}

Result<std::unique_ptr<StoreQueue>> RamStore::open_queue(const StoreQueueContext& context) {
  return std::make_unique<RamQueue>(*this, context.reactor);
}

}  // namespace rbt::target
