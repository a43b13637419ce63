#include "target/store/drop_unflushed.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "target/store/drop_queue.h"

namespace rbt::target {

Result<std::unique_ptr<DropUnflushed>> DropUnflushed::create(std::unique_ptr<Store> below,
                                                             const DropUnflushedOptions& options) {
  auto overlay = Overlay::create(options.memory, below->geometry().block_shift);
  if (!overlay) return failure(std::move(overlay.error()).within(fmt::format("store '{}'", below->spec())));
  return std::unique_ptr<DropUnflushed>(new DropUnflushed(std::move(below), std::move(*overlay)));
}

Geometry DropUnflushed::geometry() const {
  Geometry geometry = below().geometry();
  geometry.write_cache = true;
  geometry.transfer_max = std::min(geometry.transfer_max, Bytes(transport::BufferPool::kBlockMax));
  geometry.atomic_write = Blocks(1);  // it is written down piece by piece
  geometry.atomic_write_failing = Blocks(1);
  return geometry;
}

Result<void> DropUnflushed::prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) {
  if (auto done = below().prepare(domain, path_mtu); !done) return done;
  const std::lock_guard lock(mutex_);
  for (DropQueue* const queue : queues_)
    if (auto done = queue->memory().ensure(domain); !done) return done;
  if (std::find(domains_.begin(), domains_.end(), &domain) == domains_.end()) domains_.push_back(&domain);
  return {};
}

Result<std::unique_ptr<StoreQueue>> DropUnflushed::open_queue(const StoreQueueContext& context) {
  auto below_queue = below().open_queue(context);
  if (!below_queue) return below_queue;
  // Buffers of its own: one that waited for the reactor's while holding one of them could wait for ever.
  constexpr Bytes kBuffers(8 * kMiB);
  auto buffers = transport::BufferPool::create(kBuffers, transport::RemoteAccess::none, {"rbt-unflushed"});
  if (!buffers) return failure(std::move(buffers.error()).within(fmt::format("store '{}'", spec())));
  const std::lock_guard lock(mutex_);
  for (transport::ProtectionDomain* const domain : domains_)
    if (auto done = (*buffers)->memory().ensure(*domain); !done) return failure(std::move(done.error()));
  auto queue = std::make_unique<DropQueue>(*this, std::move(*below_queue), std::move(*buffers), context.reactor);
  queues_.push_back(queue.get());
  return queue;
}

void DropUnflushed::forget(DropQueue& queue) noexcept {
  const std::lock_guard lock(mutex_);
  queues_.erase(std::find(queues_.begin(), queues_.end(), &queue));
}

bool DropUnflushed::Turns::ask(DropWork& work) {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(taken_, true)) return true;
  waiting_.push_back(&work);
  return false;
}

DropWork* DropUnflushed::Turns::pass() {
  const std::lock_guard lock(mutex_);
  if (waiting_.empty()) {
    taken_ = false;
    return nullptr;
  }
  DropWork* const next = waiting_.front();
  waiting_.erase(waiting_.begin());
  return next;
}

}  // namespace rbt::target
