#include "target/store/map_queue.h"

#include <utility>

namespace rbt::target {

using transport::coherence::Pass;
using transport::coherence::Passage;

MapQueue::MapQueue(MapStore& store, const StoreQueueContext& context)
    : store_(store),
      tally_(store.new_tally()),
      in_place_(*this, store.range_lock(), store.block_shift(), context),
      zeroing_(*this, store.block_shift(), context.reactor) {}

Result<std::unique_ptr<StoreQueue>> MapQueue::open(MapStore& store, const StoreQueueContext& context) {
  std::unique_ptr<MapQueue> queue(new MapQueue(store, context));
  auto use = RegionUse::open(store.region(), context.reactor, queue.get());
  if (!use) return failure(std::move(use.error()));
  queue->use_ = std::move(*use);
  queue->access_ = std::make_unique<MapAccess>(store, *queue->use_);
  if (store.kind() == MapKind::fsdax) {
    auto file = store.file().open_queue(context);
    if (!file) return file;
    queue->file_ = std::move(*file);
  }
  return std::unique_ptr<StoreQueue>(std::move(queue));
}

std::uint64_t MapQueue::bytes(Lba lba) const noexcept {
  return lba.value() << store_.block_shift().value();
}

BlockRange MapQueue::blocks(std::uint64_t offset, std::uint64_t length) const noexcept {
  return {Lba(offset >> store_.block_shift().value()), Blocks(length >> store_.block_shift().value())};
}

// ---- leases ----

/// Lease::pass: 0, by way of a buffer; else in place, one more than the word of the pass. few[1].lkey: the key.
void MapQueue::enter(Lease& lease) noexcept {
  lease.pass = 0;
  const bool covered = bytes(lease.range.end()) <= store_.mapping()->span().size;
  const bool torn = lease.intent == Intent::write && store_.stages(lease);
  if (!covered || torn) return;
  const Pass pass = use_->enter();
  if (!pass) return;
  const auto key = store_.lkey(lease);
  const std::uint64_t offset = bytes(lease.range.first);
  const bool reads = lease.intent == Intent::read;
  if (!key || (reads && store_.may_miss_pages(lease, offset, bytes(lease.range.end()) - offset))) {
    (void)use_->leave(pass);
    return;
  }
  lease.few[1].lkey = *key;  // now, because a fence that does not wait for us takes it away
  lease.pass = pass.word + 1;
}

Progress MapQueue::acquire(Lease& lease, StoreRequest& request) {
  if (lease.intent == Intent::write && store_.read_only()) return Progress::done(StoreStatus::read_only);
  enter(lease);
  tally_->add(lease.pass != 0, bytes(lease.range.end()) - bytes(lease.range.first));
  return in_place_.acquire(lease, request);
}

Progress MapQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  return in_place_.commit(lease, durability, request);
}

void MapQueue::release(Lease& lease) noexcept {
  // Nobody asks any more how a write that is not committed has ended.
  if (lease.pass != 0 && lease.intent == Intent::write) (void)take_landed(lease);
  in_place_.release(lease);
  // For reads there is nothing to believe or not: what moved after a fence moved under a key that the adapter refuses.
  if (lease.pass != 0) (void)use_->leave({lease.pass - 1, true});
}

StoreStatus MapQueue::take_landed(const Lease& lease) noexcept {
  const std::uint64_t offset = bytes(lease.range.first);
  return store_.landing().take(offset, bytes(lease.range.end()) - offset);
}

std::byte* MapQueue::at(std::uint64_t offset) noexcept {
  return store_.mapping()->span().data + offset;
}

StoreStatus MapQueue::fetch(std::uint64_t offset, std::span<std::byte> data) {
  return access_->read(offset, data);
}

StoreStatus MapQueue::land(std::uint64_t offset, std::span<const std::byte> data) {
  return access_->write(offset, data);
}

Progress MapQueue::landed(Lease& lease, Durability durability, StoreRequest& request) {
  if (lease.pass == 0) {
    const bool lasts = durability == Durability::cached || !access_->take_unsynced();
    return lasts ? Progress::done() : file_->flush(request);
  }
  if (const auto status = take_landed(lease); status != StoreStatus::ok) return Progress::done(status);
  const std::uint64_t offset = bytes(lease.range.first);
  store_.mapping()->persist(offset, bytes(lease.range.end()) - offset);
  // Here and not at release(): what came after the fence went to pages that are nobody's, and must not be answered with
  // success.
  const Passage passage = use_->leave({std::exchange(lease.pass, 0) - 1, true});
  return Progress::done(passage == Passage::clean ? StoreStatus::ok : StoreStatus::unavailable);
}

Progress MapQueue::flush(StoreRequest& request) {
  return file_ == nullptr || store_.read_only() ? Progress::done() : file_->flush(request);
}

// ---- zeroes: never by giving pages back, which a registration would not notice ----

Progress MapQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (store_.read_only()) return Progress::done(StoreStatus::read_only);
  return zeroing_.discard(ranges, request);
}

Progress MapQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) {
  if (store_.read_only()) return Progress::done(StoreStatus::read_only);
  if (!store_.file().reaches(bytes(range.end()))) return Progress::done(StoreStatus::out_of_range);
  if (durability == Durability::durable && file_ != nullptr)
    return file_->write_zeroes(range, deallocate, durability, request);
  return zeroing_.write_zeroes(range, deallocate, durability, request);
}

bool MapQueue::claim(std::uint64_t offset, std::uint64_t length) {
  return in_place_.claim(blocks(offset, length));
}

bool MapQueue::zero(std::uint64_t offset, std::uint64_t length) {
  zero_status_ = access_->zero(offset, length);
  return zero_status_ == StoreStatus::ok;
}

std::uint64_t MapQueue::next_data(std::uint64_t offset, std::uint64_t end) noexcept {
  if (store_.kind() == MapKind::devdax) return offset;  // every byte of it is there
  return next_data_in_file(store_.file().medium().fd(), offset, end);
}

/// It failed. A discard was only advice.
Progress MapQueue::take_over(const ZeroingRest& rest, StoreRequest&) {
  return Progress::done(rest.ranges.empty() ? zero_status_ : StoreStatus::ok);
}

}  // namespace rbt::target
