// The life of one request of the kernel's, top to bottom: on_answer → decode → begin → submit (or wait in line) → on_done → commit.

#include "initiator/present/ublk_queue.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "common/check.h"
#include "initiator/present/shared_disk.h"

namespace rbt::initiator {

namespace {

constexpr unsigned kSectorShift = 9;  // ublk counts in 512 bytes, whatever the disk's blocks are
// Of one discard: the volume sends it as a command, or a few; a store needs its time for each.
constexpr std::uint64_t kDiscardMax = kGiB;
constexpr std::uint64_t kWriteZeroesBlocksMax = 65536;  // of one command: NLB has 16 bits

[[nodiscard]] std::uint8_t log2_floor(std::uint64_t value) noexcept {
  return static_cast<std::uint8_t>(std::bit_width(value) - 1);
}

}  // namespace

ublk_params ublk_params_of(const Namespace& disk, Bytes io_max, bool read_only) noexcept {
  const std::uint8_t shift = disk.block_shift.value();
  const bool locked = read_only || disk.read_only;
  ublk_params params{};
  params.len = sizeof params;
  params.types = UBLK_PARAM_TYPE_BASIC;
  ublk_param_basic& basic = params.basic;
  if (locked) basic.attrs |= UBLK_ATTR_READ_ONLY;
  // Without the first the kernel sends no flush; the second alone is refused.
  if (disk.volatile_write_cache) basic.attrs |= UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA;
  basic.logical_bs_shift = shift;
  basic.physical_bs_shift = shift;
  basic.io_min_shift = shift;
  const std::uint64_t optimal = std::clamp<std::uint64_t>(disk.optimal_io.value(), 1, std::uint64_t{1} << 16);
  basic.io_opt_shift = static_cast<std::uint8_t>(shift + log2_floor(optimal));
  basic.max_sectors = static_cast<std::uint32_t>(io_max.value() >> kSectorShift);
  basic.dev_sectors = disk.size().value() >> kSectorShift;
  if (locked || (!disk.abilities.discard && !disk.abilities.write_zeroes)) return params;
  params.types |= UBLK_PARAM_TYPE_DISCARD;
  ublk_param_discard& discard = params.discard;
  discard.discard_granularity = disk.block_size();  // 0 is refused, also where only zeroes can be written
  discard.max_discard_segments = 1;                 // all that the driver takes
  if (disk.abilities.discard) discard.max_discard_sectors = kDiscardMax >> kSectorShift;
  if (disk.abilities.write_zeroes)
    discard.max_write_zeroes_sectors = static_cast<std::uint32_t>(kWriteZeroesBlocksMax << (shift - kSectorShift));
  return params;
}

// The flags are bits of op_flags as it is: ublksrv_get_flags() shifts it, and they would never be seen.
std::optional<UblkWish> decode(const ublksrv_io_desc& descriptor, BlockShift shift, Bytes io_max) noexcept {
  const std::uint64_t size = std::uint64_t{descriptor.nr_sectors} << kSectorShift;
  UblkWish wish;
  switch (descriptor.op_flags & 0xff) {
    case UBLK_IO_OP_FLUSH: wish.operation = Operation::flush; return wish;
    case UBLK_IO_OP_READ: wish.operation = Operation::read; break;
    case UBLK_IO_OP_WRITE: wish.operation = Operation::write; break;
    case UBLK_IO_OP_DISCARD: wish.operation = Operation::discard; break;
    case UBLK_IO_OP_WRITE_ZEROES: wish.operation = Operation::write_zeroes; break;
    default: return std::nullopt;
  }
  if (descriptor.start_sector > ~std::uint64_t{0} >> kSectorShift) return std::nullopt;
  const std::uint64_t at = descriptor.start_sector << kSectorShift;
  if (size == 0 || !shift.is_multiple(at) || !shift.is_multiple(size)) return std::nullopt;
  wish.range = {Lba(at >> shift.value()), shift.blocks(Bytes(size))};
  if (wish.operation == Operation::read || wish.operation == Operation::write) {
    if (size > io_max.value()) return std::nullopt;
    wish.bytes = size;
  }
  if (wish.operation != Operation::read && (descriptor.op_flags & UBLK_IO_F_FUA) != 0)
    wish.fua = nvme::ForceUnitAccess::yes;
  if (wish.operation == Operation::write_zeroes && (descriptor.op_flags & UBLK_IO_F_NOUNMAP) == 0)
    wish.deallocate = nvme::Deallocate::yes;
  return wish;
}

// ---- the queue

UblkQueue::UblkQueue(VolumeLane& lane, UblkKernel& kernel, std::span<const std::span<std::byte>> slots)
    : lane_(lane), kernel_(kernel), tags_(slots.size()) {
  for (std::size_t i = 0; i < tags_.size(); ++i) {
    Tag& tag = tags_[i];
    tag.queue = this;
    tag.slot = slots[i];
    tag.request.context = &tag;
    tag.request.done = [](Request& request) {
      Tag& mine = *static_cast<Tag*>(request.context);
      mine.queue->on_done(mine);
    };
  }
}

UblkQueue::~UblkQueue() {
  check(with_volume() == 0, "the volume has ended its requests before their memory goes");
}

void UblkQueue::fetch_all() {
  for (Tag& tag : tags_) {
    check(tag.where == Where::idle, "a tag is fetched once");
    tag.where = Where::kernel;
    ++with_kernel_;
    kernel_.fetch(number_of(tag), tag.slot);
  }
}

void UblkQueue::on_answer(std::uint32_t number, int result, const ublksrv_io_desc& descriptor) {
  Tag& tag = tags_[number];
  check(tag.where == Where::kernel, "the kernel answers for a tag once");
  --with_kernel_;
  if (result != UBLK_IO_RES_OK) {
    tag.where = Where::ended;
    if (why_ended() == 0) why_ended_.store(result < 0 ? -result : EPROTO, std::memory_order_relaxed);
    ended_.store(ended() + 1, std::memory_order_release);
    return;
  }
  const auto wish = decode(descriptor, lane_.disk().block_shift, Bytes(tag.slot.size()));
  if (!wish) return commit(tag, -EOPNOTSUPP);
  begin(tag, *wish);
}

void UblkQueue::begin(Tag& tag, const UblkWish& wish) {
  tag.range = wish.range;
  tag.data = {tag.slot.data(), wish.bytes};
  tag.bytes = static_cast<int>(wish.bytes);  // io_max is 1 MiB at most
  Request& request = tag.request;
  request.operation = wish.operation;
  request.range = wish.range;
  request.data = {&tag.data, wish.bytes == 0 ? std::size_t{0} : std::size_t{1}};
  request.ranges = {&tag.range, wish.operation == Operation::discard ? std::size_t{1} : std::size_t{0}};
  request.fua = wish.fua;
  request.deallocate = wish.deallocate;
  if (first_ == nullptr && submit(tag)) return;
  tag.where = Where::line;
  tag.next = nullptr;
  (first_ == nullptr ? first_ : last_->next) = &tag;
  last_ = &tag;
  ++waiting_;
}

bool UblkQueue::submit(Tag& tag) {
  tag.where = Where::volume;
  switch (lane_.submit(tag.request)) {
    case Submitted::accepted: with_volume_.store(with_volume() + 1, std::memory_order_relaxed); return true;
    case Submitted::full: return false;
    case Submitted::refused: break;
    case Submitted::dead: tag.request.outcome = Outcome::disconnected; break;
  }
  const Ending ending{tag.request.outcome, tag.request.status};
  commit(tag, -errno_of(tag.request.operation, ending, lane_.disk().read_only));
  return true;
}

std::size_t UblkQueue::retry() {
  std::size_t taken = 0;
  while (first_ != nullptr && !let_go_) {
    Tag& tag = *first_;
    Tag* const next = tag.next;  // the tag may be the kernel's again before submit() returns
    if (!submit(tag)) {
      tag.where = Where::line;
      break;
    }
    first_ = next;
    --waiting_;
    ++taken;
  }
  return taken;
}

void UblkQueue::on_done(Tag& tag) {
  check(tag.where == Where::volume, "the volume ends a request once");
  with_volume_.store(with_volume() - 1, std::memory_order_relaxed);
  if (let_go_) return;
  const Ending ending{tag.request.outcome, tag.request.status};
  commit(tag, ending.ok() ? tag.bytes : -errno_of(tag.request.operation, ending, lane_.disk().read_only));
}

void UblkQueue::commit(Tag& tag, int result) {
  tag.where = Where::kernel;
  ++with_kernel_;
  kernel_.commit(number_of(tag), result, tag.slot);
}

}  // namespace rbt::initiator
