#include "target/store/overlay.h"

#include <cstring>
#include <utility>

#include "common/check.h"

namespace rbt::target {

namespace {

/// Walks through segments block by block. A block never lies in two segments: stores hand out whole ones.
class BlockCursor {
 public:
  BlockCursor(Overlay::Segments segments, std::size_t block) noexcept : segments_(segments), block_(block) {}
  std::byte* next() noexcept {
    while (offset_ == segments_.front().length) {
      segments_ = segments_.subspan(1);
      offset_ = 0;
    }
    std::byte* const at = segments_.front().data + offset_;
    offset_ += block_;
    check(offset_ <= segments_.front().length, "a segment of a lease holds whole blocks");
    return at;
  }

 private:
  Overlay::Segments segments_;
  std::size_t block_;
  std::size_t offset_ = 0;
};

}  // namespace

Overlay::Overlay(transport::SharedMemory memory, BlockShift block_shift)
    : memory_(std::move(memory)), shift_(block_shift) {
  // The nodes are made once, here; later they only move between the map and the spare ones.
  const std::size_t count = memory_.size() >> shift_.value();
  for (std::size_t i = 0; i < count; ++i)
    blocks_.emplace_hint(blocks_.end(), i, Block{memory_.data() + (i << shift_.value())});
  spare_.reserve(count);
  while (!blocks_.empty())
    spare_.push_back(blocks_.extract(std::prev(blocks_.end())));
}

Result<std::unique_ptr<Overlay>> Overlay::create(Bytes memory, BlockShift block_shift) {
  auto made = transport::SharedMemory::create(memory, {"rbt-unflushed", transport::HugePages::never, false});
  if (!made) return failure(std::move(made.error()));
  return std::unique_ptr<Overlay>(new Overlay(std::move(*made), block_shift));
}

bool Overlay::covers(const BlockRange& range) {
  const std::lock_guard lock(mutex_);
  return missing(range) != range.count.value();
}

bool Overlay::begin_read(Reading& reading, const BlockRange& range) {
  const std::lock_guard lock(mutex_);
  if (missing(range) == range.count.value()) return false;
  reading.range = range;
  reading.next = std::exchange(readings_, &reading);
  return true;
}

std::uint64_t Overlay::end_read(Reading& reading, Segments data) {
  const std::lock_guard lock(mutex_);
  Reading** link = &readings_;
  while (*link != &reading)
    link = &(*link)->next;
  *link = reading.next;
  std::uint64_t copied = 0;
  const std::size_t size = shift_.block_size();
  BlockCursor cursor(data, size);
  auto block = blocks_.lower_bound(reading.range.first.value());
  for (std::uint64_t lba = reading.range.first.value(); lba < reading.range.end().value(); ++lba) {
    std::byte* const to = data.empty() ? nullptr : cursor.next();
    if (block == blocks_.end() || block->first != lba) continue;
    if (to != nullptr) std::memcpy(to, block->second.data, size), copied += size;
    block = block->second.dirty || pinned(lba) ? std::next(block) : erase(block);
  }
  return copied;
}

/// How many blocks of the range are not here yet.
std::size_t Overlay::missing(const BlockRange& range) const {
  std::size_t count = range.count.value();
  for (auto block = blocks_.lower_bound(range.first.value());
       block != blocks_.end() && block->first < range.end().value(); ++block)
    --count;
  return count;
}

Overlay::Block& Overlay::place(std::uint64_t lba) {
  if (const auto found = blocks_.find(lba); found != blocks_.end()) return found->second;
  auto node = std::move(spare_.back());
  spare_.pop_back();
  node.key() = lba;
  return blocks_.insert(std::move(node)).position->second;
}

bool Overlay::put(const BlockRange& range, Segments data) {
  const std::lock_guard lock(mutex_);
  if (forgotten_ || missing(range) > spare_.size()) return false;
  ++version_;
  const std::size_t size = shift_.block_size();
  BlockCursor cursor(data, size);
  for (std::uint64_t lba = range.first.value(); lba < range.end().value(); ++lba) {
    Block& block = place(lba);
    block.version = version_;
    block.dirty = true;
    if (data.empty()) {
      std::memset(block.data, 0, size);
    } else {
      std::memcpy(block.data, cursor.next(), size);
    }
  }
  return true;
}

std::optional<BlockRange> Overlay::next_dirty(Lba from, Lba end, Blocks most) {
  const std::lock_guard lock(mutex_);
  auto block = blocks_.lower_bound(from.value());
  while (block != blocks_.end() && !block->second.dirty)
    ++block;
  if (block == blocks_.end() || block->first >= end.value()) return std::nullopt;
  const Lba first(block->first);
  Blocks count(0);
  for (; block != blocks_.end() && block->first < end.value() && block->second.dirty && count < most &&
         Lba(block->first) == first + count;
       ++block)
    count = count + Blocks(1);
  return BlockRange{first, count};
}

std::optional<Overlay::Version> Overlay::copy_out(const BlockRange& run, Segments to) {
  const std::lock_guard lock(mutex_);
  if (forgotten_) return std::nullopt;
  BlockCursor cursor(to, shift_.block_size());
  for (std::uint64_t lba = run.first.value(); lba < run.end().value(); ++lba) {
    const auto block = blocks_.find(lba);
    check(block != blocks_.end(), "only the one who writes out takes a dirty block away");
    std::memcpy(cursor.next(), block->second.data, shift_.block_size());
  }
  return version_;
}

void Overlay::written(const BlockRange& run, Version version) {
  const std::lock_guard lock(mutex_);
  for (auto block = blocks_.lower_bound(run.first.value());
       block != blocks_.end() && block->first < run.end().value();) {
    if (block->second.version <= version) block->second.dirty = false;
    block = block->second.dirty || pinned(block->first) ? std::next(block) : erase(block);
  }
}

void Overlay::zeroed(const BlockRange& range, Version version) {
  const std::lock_guard lock(mutex_);
  for (auto block = blocks_.lower_bound(range.first.value());
       block != blocks_.end() && block->first < range.end().value();) {
    if (block->second.version <= version) {
      std::memset(block->second.data, 0, shift_.block_size());
      block->second.dirty = false;
    }
    block = block->second.dirty || pinned(block->first) ? std::next(block) : erase(block);
  }
}

Overlay::Version Overlay::version() {
  const std::lock_guard lock(mutex_);
  return version_;
}

void Overlay::forget() noexcept {
  const std::lock_guard lock(mutex_);
  forgotten_ = true;
  while (!blocks_.empty())
    erase(blocks_.begin());
}

bool Overlay::forgotten() noexcept {
  const std::lock_guard lock(mutex_);
  return forgotten_;
}

bool Overlay::pinned(std::uint64_t lba) const noexcept {
  for (const Reading* reading = readings_; reading != nullptr; reading = reading->next)
    if (reading->range.first.value() <= lba && lba < reading->range.end().value()) return true;
  return false;
}

Overlay::Blocks_::iterator Overlay::erase(Blocks_::iterator block) {
  const auto next = std::next(block);
  spare_.push_back(blocks_.extract(block));
  return next;
}

}  // namespace rbt::target
