#include "target/store/null_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "target/store/lease_memory.h"

namespace rbt::target {

namespace {

constexpr std::uint64_t kRegion = 2 * kMiB;

class NullQueue final : public StoreQueue {
 public:
  NullQueue(const transport::RegisteredMemory& zeroes, const transport::RegisteredMemory& scratch, BlockShift shift)
      : zeroes_(zeroes), scratch_(scratch), block_shift_(shift) {}

  Progress acquire(Lease& lease, StoreRequest&) override {
    const transport::RegisteredMemory& memory = lease.intent == Intent::read ? zeroes_ : scratch_;
    const std::uint32_t lkey = lease_key(memory, lease);
    std::uint64_t left = lease.range.count.value() << block_shift_.value();
    check(left <= kRegion * lease.few.size(), "a lease is at most as long as the geometry says");
    std::size_t count = 0;
    while (left != 0) {
      const std::uint64_t length = std::min(left, kRegion);
      lease.few[count++] = {memory.memory().data, static_cast<std::uint32_t>(length), lkey};
      left -= length;
    }
    lease.segments = {lease.few.data(), count};
    return Progress::done();
  }
  Progress commit(Lease&, Durability, StoreRequest&) override { return Progress::done(); }
  void release(Lease& lease) noexcept override { lease.segments = {}; }
  Progress flush(StoreRequest&) override { return Progress::done(); }
  Progress discard(std::span<const BlockRange>, StoreRequest&) override { return Progress::done(); }
  Progress write_zeroes(BlockRange, Deallocate, Durability, StoreRequest&) override { return Progress::done(); }

 private:
  const transport::RegisteredMemory& zeroes_;
  const transport::RegisteredMemory& scratch_;
  BlockShift block_shift_;
};

}  // namespace

NullStore::NullStore(std::string spec, const NullOptions& options, const Identity& identity,
                     transport::SharedMemory zeroes, transport::SharedMemory scratch)
    : spec_(std::move(spec)),
      options_(options),
      identity_(identity),
      zeroes_(std::move(zeroes)),
      scratch_(std::move(scratch)),
      registered_zeroes_(zeroes_.span(), transport::RemoteAccess::none),
      registered_scratch_(scratch_.span(), transport::RemoteAccess::none) {}

Result<std::unique_ptr<Store>> NullStore::create(std::string spec, const NullOptions& options,
                                                 const Identity& identity) {
  const std::string where = fmt::format("store '{}'", spec);
  auto zeroes = transport::SharedMemory::create(Bytes(kRegion), {"rbt-null-zeroes", transport::HugePages::never, true});
  if (!zeroes) return failure(std::move(zeroes.error()).within(where));
  auto scratch =
      transport::SharedMemory::create(Bytes(kRegion), {"rbt-null-scratch", transport::HugePages::never, true});
  if (!scratch) return failure(std::move(scratch.error()).within(where));
  return std::unique_ptr<Store>(
      new NullStore(std::move(spec), options, identity, std::move(*zeroes), std::move(*scratch)));
}

Geometry NullStore::geometry() const {
  Geometry geometry;
  geometry.block_shift = options_.block_shift;
  geometry.blocks = options_.block_shift.blocks(options_.size);
  geometry.write_cache = false;
  geometry.discard = Ability::native;
  geometry.write_zeroes = Ability::native;
  geometry.discard_reads_zero = true;
  geometry.optimal_io = options_.block_shift.blocks(Bytes(4096));
  geometry.transfer_max = Bytes(kRegion * Lease{}.few.size());
  return geometry;
}

Result<void> NullStore::prepare(transport::ProtectionDomain& domain, std::uint32_t) {
  for (auto* memory : {&registered_zeroes_, &registered_scratch_})
    if (auto done = memory->ensure(domain); !done)
      return failure(std::move(done.error()).within(fmt::format("store '{}'", spec_)));
  return {};
}

Result<std::unique_ptr<StoreQueue>> NullStore::open_queue(const StoreQueueContext&) {
  return std::make_unique<NullQueue>(registered_zeroes_, registered_scratch_, options_.block_shift);
}

}  // namespace rbt::target
