#include "target/store/mapped_plugin_queue.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/check.h"
#include "target/store/atomicity.h"
#include "target/store/lease_memory.h"

namespace rbt::target {

MappedPluginQueue::MappedPluginQueue(PluginStore& store, void* queue, const StoreQueueContext& context)
    : PluginQueue(store, queue, context),
      mapped_(*store.mapped()),
      in_place_(*this, store.range_lock(), geometry().block_shift, context),
      zeroing_(*this, geometry().block_shift, context.reactor) {}

BlockRange MappedPluginQueue::blocks(std::uint64_t offset, std::uint64_t length) const noexcept {
  return {Lba(offset >> geometry().block_shift.value()), geometry().block_shift.blocks(Bytes(length))};
}

Progress MappedPluginQueue::acquire(Lease& lease, StoreRequest& request) {
  if (lease.intent == Intent::write && read_only()) return Progress::done(StoreStatus::read_only);
  return in_place_.acquire(lease, request);
}

Progress MappedPluginQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  return in_place_.commit(lease, durability, request);
}

void MappedPluginQueue::release(Lease& lease) noexcept {
  in_place_.release(lease);
}

Progress MappedPluginQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  if (geometry().discard == Ability::none) return Progress::done();
  return zeroing_.discard(ranges, request);
}

Progress MappedPluginQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                         StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  if (durability == Durability::cached || !geometry().write_cache)
    return zeroing_.write_zeroes(range, deallocate, durability, request);
  PluginWork& work = make(RBT_FLUSH, request);  // when the zeroes are there
  const Progress progress = zeroing_.write_zeroes(range, deallocate, durability, work);
  if (!progress.pending) on_below_done(work, progress.status);
  return returned(work);
}

std::uint32_t MappedPluginQueue::lkey(const Lease& lease) noexcept {
  return lease_key(mapped_, lease);
}

/// What can be flushed is taken for memory that outlives the process.
bool MappedPluginQueue::stages(const Lease& lease) noexcept {
  return lease.intent == Intent::write && tears(lease.path_mtu, geometry().block_shift, geometry().write_cache);
}

StoreStatus MappedPluginQueue::land(std::uint64_t offset, std::span<const std::byte> data) {
  if (span().fd < 0) {
    std::memcpy(at(offset), data.data(), data.size());
    return StoreStatus::ok;
  }
  for (std::size_t done = 0; done < data.size();) {
    const auto place = static_cast<::off_t>(span().fd_offset + offset + done);
    const ::ssize_t wrote = ::pwrite(span().fd, data.data() + done, data.size() - done, place);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return StoreStatus::write_error;
    done += static_cast<std::size_t>(wrote);
  }
  return StoreStatus::ok;
}

Progress MappedPluginQueue::landed(Lease&, Durability durability, StoreRequest& request) {
  if (durability == Durability::cached || !geometry().write_cache) return Progress::done();
  return begin(make(RBT_FLUSH, request));
}

bool MappedPluginQueue::zero(std::uint64_t offset, std::uint64_t length) {
  std::memset(at(offset), 0, length);
  return true;
}

Progress MappedPluginQueue::take_over(const ZeroingRest&, StoreRequest&) {
  check(false, "a plugin's memory can always be zeroed");
  return Progress::done(StoreStatus::unsupported);
}

}  // namespace rbt::target
