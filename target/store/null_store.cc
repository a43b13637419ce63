#include "target/store/null_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "target/store/lease_memory.h"

namespace rbt::target {

namespace {

constexpr std::uint64_t kRegion = NullMemory::kRegion;

class NullQueue final : public StoreQueue {
 public:
  NullQueue(const NullMemory& memory, BlockShift shift) : memory_(memory), block_shift_(shift) {}

  Progress acquire(Lease& lease, StoreRequest&) override {
    const transport::RegisteredMemory& memory =
        lease.intent == Intent::read ? memory_.registered_zeroes : memory_.registered_scratch;
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
  const NullMemory& memory_;
  BlockShift block_shift_;
};

}  // namespace

NullMemory::NullMemory(transport::SharedMemory zeroes_, transport::SharedMemory scratch_)
    : zeroes(std::move(zeroes_)),
      scratch(std::move(scratch_)),
      registered_zeroes(zeroes.span(), transport::RemoteAccess::none),
      registered_scratch(scratch.span(), transport::RemoteAccess::none) {}

Result<std::shared_ptr<NullMemory>> NullMemory::create() {
  using transport::SharedMemory;
  auto zeroes = SharedMemory::create(Bytes(kRegion), {"rbt-null-zeroes", transport::HugePages::never, true});
  if (!zeroes) return failure(std::move(zeroes.error()));
  auto scratch = SharedMemory::create(Bytes(kRegion), {"rbt-null-scratch", transport::HugePages::never, true});
  if (!scratch) return failure(std::move(scratch.error()));
  return std::make_shared<NullMemory>(std::move(*zeroes), std::move(*scratch));
}

NullStore::NullStore(std::string spec, const NullOptions& options, const Identity& identity,
                     std::shared_ptr<NullMemory> memory)
    : spec_(std::move(spec)), options_(options), identity_(identity), memory_(std::move(memory)) {}

Result<std::unique_ptr<Store>> NullStore::create(std::string spec, const NullOptions& options, const Identity& identity,
                                                 SharedArena* arena) {
  auto memory = arena != nullptr ? arena->null_memory() : NullMemory::create();
  if (!memory) return failure(std::move(memory.error()).within(fmt::format("store '{}'", spec)));
  return std::unique_ptr<Store>(new NullStore(std::move(spec), options, identity, std::move(*memory)));
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
  for (auto* memory : {&memory_->registered_zeroes, &memory_->registered_scratch})
    if (auto done = memory->ensure(domain); !done)
      return failure(std::move(done.error()).within(fmt::format("store '{}'", spec_)));
  return {};
}

Result<std::unique_ptr<StoreQueue>> NullStore::open_queue(const StoreQueueContext&) {
  return std::make_unique<NullQueue>(*memory_, options_.block_shift);
}

}  // namespace rbt::target
