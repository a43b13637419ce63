#include "target/store/ram_store.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "target/store/lease_memory.h"
#include "target/store/store_request.h"

namespace rbt::target {

namespace {

// A turn of the reactor zeroes this much at the most: about 50 µs of memset, so that keep-alive and everybody else's
// commands go on beside a discard of the whole store.
constexpr std::uint64_t kSliceMax = 512 * kKiB;

// The longest segment: a length has 32 bits, and blocks stay whole.
constexpr std::uint64_t kSegmentMax = (std::uint64_t{1} << 32) - 4096;

/// Ranges that are being filled with zeroes.
struct Zeroing {
  Zeroing* next;
  StoreRequest* request;
  const BlockRange* ranges;  // those not yet begun
  std::size_t ranges_left;
  std::uint64_t offset;  // of the range in work, in bytes
  std::uint64_t end;
};

class RamQueue final : public StoreQueue, private transport::Source {
 public:
  RamQueue(RamStore& store, transport::Reactor& reactor) : store_(store), reactor_(reactor) {}
  ~RamQueue() override {
    check(zeroing_.empty(), "a store queue is destroyed when nothing is pending");
    if (listed_) reactor_.remove(*this);
  }

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
    Zeroing work{nullptr, &request, ranges.data(), ranges.size(), 0, 0};
    return begin(work, request);
  }

  Progress write_zeroes(BlockRange range, Deallocate, Durability, StoreRequest& request) override {
    Zeroing work{nullptr, &request, nullptr, 0, bytes(range.first), bytes(range.end())};
    return begin(work, request);
  }

 private:
  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept { return lba.value() << store_.block_shift().value(); }

  /// The first slice at once; what is longer goes on turn by turn.
  Progress begin(Zeroing& work, StoreRequest& request) {
    if (zero_slice(work)) return Progress::done();
    auto& record = StoreRequestAccess::make<Zeroing>(request);
    record = work;
    zeroing_.push(record);
    if (!std::exchange(listed_, true)) reactor_.add(*this);
    return Progress::later();
  }

  std::size_t poll() override {
    if (zero_slice(zeroing_.front())) zeroing_.pop().request->on_store_done(StoreStatus::ok);
    if (zeroing_.empty()) {
      listed_ = false;
      reactor_.remove(*this);
    }
    return 1;
  }
  [[nodiscard]] bool arm() override { return zeroing_.empty(); }  // it is a source only while there is work

  /// Zeroes up to kSliceMax bytes. True: all of it is done.
  bool zero_slice(Zeroing& work) {
    std::uint64_t budget = kSliceMax;
    while (true) {
      while (work.offset < work.end) {
        if (budget == 0) return false;
        work.offset = next_data(work.offset, work.end);
        const std::uint64_t length = std::min(budget, work.end - work.offset);
        std::memset(store_.memory().memory().data + work.offset, 0, length);
        work.offset += length;
        budget -= length;
      }
      if (work.ranges_left == 0) return true;
      work.offset = bytes(work.ranges->first);
      work.end = bytes(work.ranges->end());
      ++work.ranges;
      --work.ranges_left;
    }
  }

  /// The first byte in [offset, end) that has a page, else end: zeroing what was never touched would only allocate it.
  [[nodiscard]] std::uint64_t next_data(std::uint64_t offset, std::uint64_t end) const noexcept {
    const ::off_t data = ::lseek(store_.memory().memory().fd, static_cast<::off_t>(offset), SEEK_DATA);
    if (data >= 0) return std::min(static_cast<std::uint64_t>(data), end);
    return errno == ENXIO ? end : offset;  // hugetlbfs cannot tell: all of it is data then
  }

  RamStore& store_;
  transport::Reactor& reactor_;
  RecordQueue<Zeroing> zeroing_;
  bool listed_ = false;  // a source of the reactor
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

Result<void> RamStore::prepare(transport::ProtectionDomain& domain) {
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
