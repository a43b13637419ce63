#include "transport/memory/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "common/check.h"

namespace rbt::transport {

namespace {

unsigned order_of(std::size_t size) noexcept {
  const std::size_t block = std::bit_ceil(std::max(size, BufferPool::kBlockMin));
  return static_cast<unsigned>(std::countr_zero(block) - std::countr_zero(BufferPool::kBlockMin));
}

}  // namespace

Result<std::unique_ptr<BufferPool>> BufferPool::create(Bytes size, RemoteAccess access,
                                                       const SharedMemory::Options& options) {
  const std::uint64_t rounded = (std::max<std::uint64_t>(size.value(), 1) + kBlockMax - 1) / kBlockMax * kBlockMax;
  auto arena = SharedMemory::create(Bytes(rounded), options);
  if (!arena) return failure(std::move(arena.error()));
  return std::unique_ptr<BufferPool>(new BufferPool(std::move(*arena), access));
}

BufferPool::BufferPool(SharedMemory arena, RemoteAccess access)
    : arena_(std::move(arena)), registered_(arena_.span(), access), frames_(arena_.size() / kBlockMin) {
  free_.fill(kNone);
  constexpr std::uint32_t kFramesPerBlock = kBlockMax / kBlockMin;
  // Highest address first, so that the lowest is handed out first.
  for (auto frame = static_cast<std::uint32_t>(frames_.size()); frame > 0; frame -= kFramesPerBlock)
    push(kOrders - 1, frame - kFramesPerBlock);
  free_bytes_ = arena_.size();
}

void BufferPool::push(unsigned order, std::uint32_t frame) noexcept {
  Link& link = frames_[frame];
  link = {free_[order], kNone, static_cast<std::uint8_t>(order)};
  if (link.next != kNone) frames_[link.next].previous = frame;
  free_[order] = frame;
}

void BufferPool::unlink(unsigned order, std::uint32_t frame) noexcept {
  const Link link = std::exchange(frames_[frame], Link{});
  if (link.next != kNone) frames_[link.next].previous = link.previous;
  if (link.previous != kNone) {
    frames_[link.previous].next = link.next;
  } else {
    free_[order] = link.next;
  }
}

std::span<std::byte> BufferPool::allocate(std::size_t size) noexcept {
  check(size > 0 && size <= kBlockMax, "a pool buffer has 1 byte to kBlockMax");
  if (first_waiter_ != nullptr && !serving_waiters_) return {};  // whoever waits came first
  const unsigned order = order_of(size);
  unsigned from = order;
  while (from < kOrders && free_[from] == kNone)
    ++from;
  if (from == kOrders) return {};
  const std::uint32_t frame = free_[from];
  unlink(from, frame);
  while (from > order) {  // split: the upper half of each block stays free
    --from;
    push(from, frame + (std::uint32_t{1} << from));
  }
  free_bytes_ -= kBlockMin << order;
  return {arena_.data() + std::size_t{frame} * kBlockMin, kBlockMin << order};
}

void BufferPool::free(std::span<std::byte> block) noexcept {
  const auto offset = static_cast<std::size_t>(block.data() - arena_.data());
  unsigned order = order_of(block.size());
  check(offset < arena_.size() && offset % block.size() == 0 && block.size() == kBlockMin << order,
        "a block comes back as it was handed out");
  free_bytes_ += block.size();
  auto frame = static_cast<std::uint32_t>(offset / kBlockMin);
  check(frames_[frame].free_order == kOrders, "a block comes back once");
  while (order + 1 < kOrders) {
    const std::uint32_t buddy = frame ^ (std::uint32_t{1} << order);
    if (frames_[buddy].free_order != order) break;
    unlink(order, buddy);
    frame = std::min(frame, buddy);
    ++order;
  }
  push(order, frame);
  wake_waiters();
}

void BufferPool::wait(BufferWaiter& waiter) noexcept {
  if (waiter.waiting_) return;
  waiter.waiting_ = true;
  waiter.next_waiter_ = nullptr;
  if (last_waiter_ != nullptr) {
    last_waiter_->next_waiter_ = &waiter;
  } else {
    first_waiter_ = &waiter;
  }
  last_waiter_ = &waiter;
}

void BufferPool::cancel(BufferWaiter& waiter) noexcept {
  if (!waiter.waiting_) return;
  waiter.waiting_ = false;
  BufferWaiter* previous = nullptr;
  for (BufferWaiter* w = first_waiter_; w != &waiter; w = w->next_waiter_)
    previous = w;
  (previous != nullptr ? previous->next_waiter_ : first_waiter_) = waiter.next_waiter_;
  if (last_waiter_ == &waiter) last_waiter_ = previous;
}

void BufferPool::wake_waiters() noexcept {
  if (serving_waiters_) return;
  serving_waiters_ = true;
  while (first_waiter_ != nullptr) {
    BufferWaiter* const waiter = first_waiter_;
    const std::uint64_t before = free_bytes_;
    first_waiter_ = waiter->next_waiter_;
    if (first_waiter_ == nullptr) last_waiter_ = nullptr;
    waiter->waiting_ = false;
    waiter->on_buffer_available();
    if (waiter->waiting_) {
      // It asked again, so it did not get what it needs: it goes back to the head, and nobody overtakes it.
      cancel(*waiter);
      waiter->waiting_ = true;
      waiter->next_waiter_ = first_waiter_;
      first_waiter_ = waiter;
      if (last_waiter_ == nullptr) last_waiter_ = waiter;
      if (free_bytes_ <= before) break;
    }
  }
  serving_waiters_ = false;
}

}  // namespace rbt::transport
