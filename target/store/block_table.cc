#include "target/store/block_table.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "common/check.h"

namespace rbt::target {

namespace {

constexpr std::uint32_t kRetired = 1;
constexpr std::uint32_t kReader = 2;
// In a table's entry.
constexpr std::uint32_t kZero = std::uint32_t{1} << 31;

}  // namespace

void BlockTable::Release::operator()(void* memory) const noexcept {
  std::free(memory);  // NOLINT(cppcoreguidelines-no-malloc): see numbers()
}

// calloc and not new: pages that are zeroes already need not be touched, and those of blocks never written never are.
BlockTable::Numbers BlockTable::numbers(std::uint64_t count) {
  Numbers made(static_cast<std::uint32_t*>(std::calloc(count, sizeof(std::uint32_t))));
  check(made != nullptr, "there is address space for a block table");
  return made;
}

BlockTable::BlockTable(Blocks blocks, Blocks spare)
    : blocks_(blocks.value()),
      spare_(spare.value()),
      table_(numbers(blocks_)),
      users_(numbers(blocks_ + spare_)),
      moved_(std::make_unique<std::atomic<bool>[]>(blocks_ / kRegion + 1)),
      ring_(std::make_unique<Place[]>(spare_)),
      ring_count_(spare_) {
  check(blocks_ + spare_ <= kPlacesMax, "places have numbers of 31 bits");
  for (std::uint64_t i = 0; i < spare_; ++i)
    ring_[i] = static_cast<Place>(blocks_ + i);
}

void BlockTable::restore(Lba lba, Place place, bool zeroes) noexcept {
  check(lba.value() < blocks_ && place < blocks_ + spare_, "a block lies at a place that there is");
  entry(lba).store((place ^ static_cast<Place>(lba.value())) | (zeroes ? kZero : 0), std::memory_order_relaxed);
  touch(lba);
}

std::optional<Lba> BlockTable::restored() {
  std::vector<bool> used(blocks_ + spare_);
  for (std::uint64_t lba = 0; lba < blocks_; ++lba) {
    const Place place = look(Lba(lba)).place;
    if (used[place]) return Lba(lba);
    used[place] = true;
  }
  // As many are left as were spare at the beginning.
  std::uint64_t count = 0;
  for (std::uint64_t place = 0; place < blocks_ + spare_; ++place)
    if (!used[place]) ring_[count++] = static_cast<Place>(place);
  check(count == spare_, "each block has one place");
  return std::nullopt;
}

BlockTable::Entry BlockTable::look(Lba lba) const noexcept {
  const std::uint32_t value = entry(lba).load(std::memory_order_relaxed);
  return {(value & ~kZero) ^ static_cast<Place>(lba.value()), (value & kZero) != 0};
}

void BlockTable::touch(Lba lba) noexcept {
  auto& moved = moved_[lba.value() / kRegion];
  if (!moved.load(std::memory_order_relaxed)) moved.store(true, std::memory_order_relaxed);
}

// A reader announces itself, then looks again; a writer exchanges the entry, then looks for readers. All of it is
// sequentially consistent, so that one of them sees the other. A reader that came too late has counted itself at a place
// that may be anything by now, free or another block, and takes that back.
BlockTable::Place BlockTable::pin(Lba lba) noexcept {
  const auto own = static_cast<Place>(lba.value());
  const auto where = entry(lba);
  Place place = where.load(std::memory_order_seq_cst) ^ own;
  while (true) {
    if ((place & kZero) != 0) return kZeroes;
    users(place).fetch_add(kReader, std::memory_order_seq_cst);
    const Place now = where.load(std::memory_order_seq_cst) ^ own;
    if (now == place) return place;
    Freed freed(*this);
    unpin(place, freed);
    place = now;
  }
}

void BlockTable::unpin(Place place, Freed& freed) noexcept {
  if (place == kZeroes) return;
  const auto count = users(place);
  std::uint32_t left = count.fetch_sub(kReader, std::memory_order_acq_rel) - kReader;
  if (left == kRetired && count.compare_exchange_strong(left, 0, std::memory_order_acq_rel)) freed.add(place);
}

void BlockTable::commit(Lba lba, Place place, Freed& freed) noexcept {
  const auto own = static_cast<Place>(lba.value());
  touch(lba);
  const Place old = (entry(lba).exchange(place ^ own, std::memory_order_seq_cst) & ~kZero) ^ own;
  const auto count = users(old);
  std::uint32_t readers = count.fetch_or(kRetired, std::memory_order_seq_cst) | kRetired;
  if (readers == kRetired && count.compare_exchange_strong(readers, 0, std::memory_order_acq_rel)) freed.add(old);
}

void BlockTable::zero(Lba lba) noexcept {
  touch(lba);
  entry(lba).fetch_or(kZero, std::memory_order_seq_cst);
}

Lba BlockTable::first_moved(Lba first, Lba end) const noexcept {
  for (std::uint64_t lba = first.value(); lba < end.value(); ++lba) {
    if (!moved_[lba / kRegion].load(std::memory_order_relaxed)) {
      lba |= kRegion - 1;
    } else if (entry(Lba(lba)).load(std::memory_order_relaxed) != 0) {
      return Lba(lba);
    }
  }
  return end;
}

// ---- Free places ----

void BlockTable::Freed::give() noexcept {
  if (count_ > 0) table_.free_places({places_.data(), count_});
  count_ = 0;
}

void BlockTable::free_places(std::span<const Place> places) noexcept {
  const std::lock_guard lock(mutex_);
  check(ring_count_ + places.size() <= spare_, "a place becomes free once");
  for (const Place place : places) {
    ring_[(ring_first_ + ring_count_) % spare_] = place;
    ++ring_count_;
  }
  while (!waiting_.empty() && waiting_.front().count <= ring_count_ - reserved_) {
    Wait& wait = waiting_.pop();
    reserved_ += wait.count;
    wait.hand_over->give(wait);
  }
}

void BlockTable::pop(std::span<Place> places) noexcept {
  for (Place& place : places) {
    place = ring_[ring_first_];
    if (++ring_first_ == spare_) ring_first_ = 0;
  }
  ring_count_ -= places.size();
}

bool BlockTable::take(std::span<Place> places) noexcept {
  const std::lock_guard lock(mutex_);
  if (!waiting_.empty() || places.size() > ring_count_ - reserved_) return false;
  pop(places);
  return true;
}

bool BlockTable::take_or_wait(std::span<Place> places, Wait& wait, HandOver& hand_over) noexcept {
  check(places.size() <= spare_, "nobody waits for more places than there are");
  const std::lock_guard lock(mutex_);
  if (waiting_.empty() && places.size() <= ring_count_ - reserved_) {
    pop(places);
    return true;
  }
  wait.count = static_cast<std::uint32_t>(places.size());
  wait.hand_over = &hand_over;
  waiting_.push(wait);
  waits_.fetch_add(1, std::memory_order_relaxed);
  return false;
}

void BlockTable::take_reserved(std::span<Place> places) noexcept {
  const std::lock_guard lock(mutex_);
  check(places.size() <= reserved_, "what was reserved is taken once");
  reserved_ -= places.size();
  pop(places);
}

std::uint64_t BlockTable::free() noexcept {
  const std::lock_guard lock(mutex_);
  return ring_count_;
}

}  // namespace rbt::target
