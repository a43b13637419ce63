#include "target/store/map_shadow_queue.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <utility>

#include "common/check.h"
#include "common/nvme/endian.h"

namespace rbt::target {

using transport::coherence::Pass;
using transport::coherence::Passage;

namespace {

// Lease::pass: how it has its memory.
constexpr std::uint64_t kStaged = 0;  // a buffer
constexpr std::uint64_t kLeft = 1;    // places; the pass was given back by commit()
constexpr std::uint64_t kPass = 2;    // places; more by the pass's word

}  // namespace

MapShadowQueue::MapShadowQueue(MapStore& store, const StoreQueueContext& context)
    : store_(store),
      tally_(store.new_tally()),
      shadow_(*this, store.image()->table().blocks(), store.block_shift(), context.reactor),
      staging_(*this, store.range_lock(), store.block_shift(), context),
      zeroing_(*this, store.block_shift(), context.reactor) {}

Result<std::unique_ptr<StoreQueue>> MapShadowQueue::open(MapStore& store, const StoreQueueContext& context) {
  std::unique_ptr<MapShadowQueue> queue(new MapShadowQueue(store, context));
  auto use = RegionUse::open(store.region(), context.reactor, queue.get());
  if (!use) return failure(std::move(use.error()));
  queue->use_ = std::move(*use);
  queue->access_ = std::make_unique<MapAccess>(store, *queue->use_);
  return std::unique_ptr<StoreQueue>(std::move(queue));
}

BlockRange MapShadowQueue::blocks(std::uint64_t offset, std::uint64_t length) const noexcept {
  return {Lba(offset >> store_.block_shift().value()), store_.block_shift().blocks(Bytes(length))};
}

// ---- leases ----

StoreStatus MapShadowQueue::refusal(Intent intent) const noexcept {
  if (intent == Intent::write && store_.read_only()) return StoreStatus::read_only;
  if (!table().broken()) return StoreStatus::ok;
  return intent == Intent::read ? StoreStatus::read_error : StoreStatus::write_error;
}

void MapShadowQueue::enter(Lease& lease) noexcept {
  lease.pass = kStaged;
  const Pass pass = use_->enter();
  if (!pass) return;
  if (store_.lkey(lease))
    lease.pass = kPass + pass.word;
  else
    (void)use_->leave(pass);
}

Progress MapShadowQueue::acquire(Lease& lease, StoreRequest& request) {
  if (const auto status = refusal(lease.intent); status != StoreStatus::ok) return Progress::done(status);
  enter(lease);
  tally_->add(lease.pass != kStaged, lease.range.count.value() << store_.block_shift().value());
  return lease.pass == kStaged ? staging_.acquire(lease, request) : shadow_.acquire(lease, request);
}

Progress MapShadowQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  if (const auto status = refusal(Intent::write); status != StoreStatus::ok) return Progress::done(status);
  if (lease.pass == kStaged) return staging_.commit(lease, durability, request);
  for (const transport::Segment& segment : lease.segments)
    store_.mapping()->persist(static_cast<std::uint64_t>(segment.data - store_.mapping()->span().data), segment.length);
  // Before the table knows: what came after the fence went to pages that are nobody's, and must not become blocks.
  const Passage passage = use_->leave({std::exchange(lease.pass, kLeft) - kPass, true});
  return Progress::done(passage == Passage::clean ? shadow_.commit(lease) : StoreStatus::unavailable);
}

void MapShadowQueue::release(Lease& lease) noexcept {
  if (lease.pass == kStaged) return staging_.release(lease);
  shadow_.release(lease);
  if (lease.pass >= kPass) (void)use_->leave({lease.pass - kPass, true});
}

// ---- places ----

// The keys are looked up late: those of a fence that did not wait for us are gone, and 0 is no key of anybody.
ShadowMemory::Piece MapShadowQueue::piece(BlockTable::Place, const Lease& lease) noexcept {
  return {store_.mapping()->span().data + layout().place_offset(0), 0,
          layout().blocks.value() + layout().landing.value(), store_.lkey(lease).value_or(0)};
}

ShadowMemory::Piece MapShadowQueue::zeroes(const Lease& lease) noexcept {
  const auto& memory = store_.image()->zeroes();
  const auto keys = lease.domain == nullptr ? std::nullopt : memory.keys(*lease.domain);
  return {memory.memory().data, 0, memory.memory().size >> store_.block_shift().value(), keys ? keys->lkey : 0};
}

BlockTable::Place MapShadowQueue::place_of(const std::byte* data) noexcept {
  const auto& zeroes = store_.image()->zeroes().memory();
  if (std::greater_equal<>()(data, zeroes.data) && std::less<>()(data, zeroes.data + zeroes.size))
    return BlockTable::kZeroes;
  const auto offset = static_cast<std::uint64_t>(data - store_.mapping()->span().data);
  return static_cast<BlockTable::Place>((offset - layout().place_offset(0)) >> store_.block_shift().value());
}

/// Straight into the mapping where its pages are sure to stay for good; else by way of the kernel, which does not die of a
/// file that somebody has just cut short, and does not stop in the middle of an entry whoever is killed.
StoreStatus MapShadowQueue::write_entries(Lba first, std::span<const std::uint64_t> entries) {
  const std::uint64_t offset = layout().entry_offset(first);
  if (store_.pages_stay()) {
    auto* const table = reinterpret_cast<std::uint64_t*>(store_.mapping()->span().data + offset);
    for (std::size_t i = 0; i < entries.size(); ++i)
      std::atomic_ref(table[i]).store(std::bit_cast<std::uint64_t>(nvme::Le64(entries[i])), std::memory_order_release);
    store_.mapping()->persist(offset, entries.size_bytes());
    return StoreStatus::ok;
  }
  std::array<nvme::Le64, 512> bytes;
  check(entries.size() <= bytes.size(), "a group of entries is a page");
  std::copy(entries.begin(), entries.end(), bytes.begin());
  return access_->write(offset, std::as_bytes(std::span(bytes).first(entries.size())));
}

// ---- by way of buffers ----

std::byte* MapShadowQueue::at(std::uint64_t) noexcept {
  check(false, "in a shadow image nothing is read or written in place");
  return nullptr;
}

StoreStatus MapShadowQueue::fetch(std::uint64_t offset, std::span<std::byte> data) {
  const BlockRange range = blocks(offset, data.size());
  const std::size_t block = store_.block_shift().block_size();
  BlockTable::Freed freed(table().blocks());
  for (Lba lba = range.first; lba < range.end(); lba = lba + Blocks(1)) {
    const BlockTable::Place place = table().blocks().pin(lba);
    const std::span<std::byte> into = data.first(block);
    data = data.subspan(block);
    StoreStatus status = StoreStatus::ok;
    if (place == BlockTable::kZeroes)
      std::memset(into.data(), 0, into.size());
    else
      status = access_->read(layout().place_offset(place), into);
    table().blocks().unpin(place, freed);
    if (status != StoreStatus::ok) return status;
  }
  return StoreStatus::ok;
}

/// Places are only taken for as long as this takes, so that there are some unless other hosts, in place, have them all:
/// then the host is told to try again.
StoreStatus MapShadowQueue::land(std::uint64_t offset, std::span<const std::byte> data) {
  const BlockRange range = blocks(offset, data.size());
  const std::size_t block = store_.block_shift().block_size();
  std::array<BlockTable::Place, 64> places{};
  for (Lba lba = range.first; lba < range.end();) {
    const auto count = std::min<std::uint64_t>(places.size(), (range.end() - lba).value());
    const auto taken = std::span(places).first(count);
    if (!table().blocks().take(taken)) return StoreStatus::unavailable;
    for (const BlockTable::Place place : taken) {
      const auto status = access_->write(layout().place_offset(place), data.first(block));
      data = data.subspan(block);
      if (status == StoreStatus::ok) continue;
      BlockTable::Freed freed(table().blocks());
      for (const BlockTable::Place unused : taken)
        freed.add(unused);
      return status;
    }
    if (const auto status = move(lba, taken); status != StoreStatus::ok) return status;
    lba = lba + Blocks(count);
  }
  return StoreStatus::ok;
}

// ---- zeroes: an entry says so ----

Progress MapShadowQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (const auto status = refusal(Intent::write); status != StoreStatus::ok) return Progress::done(status);
  return zeroing_.discard(ranges, request);
}

Progress MapShadowQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                      StoreRequest& request) {
  if (const auto status = refusal(Intent::write); status != StoreStatus::ok) return Progress::done(status);
  return zeroing_.write_zeroes(range, deallocate, durability, request);
}

bool MapShadowQueue::zero(std::uint64_t offset, std::uint64_t length) {
  zero_status_ = table().zero(blocks(offset, length), *this);
  return zero_status_ == StoreStatus::ok;
}

std::uint64_t MapShadowQueue::next_data(std::uint64_t offset, std::uint64_t end) noexcept {
  constexpr std::uint64_t kLookMax = 65536;  // blocks: 0.1 ms; what is behind them may be data
  BlockRange range = blocks(offset, end - offset);
  range.count = std::min(range.count, Blocks(kLookMax));
  Lba lba = range.first;
  while (lba < range.end() && table().blocks().look(lba).zeroes)
    lba = lba + Blocks(1);
  return lba.value() << store_.block_shift().value();
}

/// It failed; the table is broken.
Progress MapShadowQueue::take_over(const ZeroingRest&, StoreRequest&) {
  return Progress::done(zero_status_);
}

}  // namespace rbt::target
