#include "initiator/present/nbd_arena.h"

#include <algorithm>
#include <bit>

#include "common/check.h"

namespace rbt::initiator::nbd {

Arena::Arena(transport::BufferPool& pool, std::size_t blocks) : pool_(&pool) {
  blocks_.reserve(blocks);
  while (blocks_.size() < blocks) {
    const std::span<std::byte> memory = pool.allocate(kBlock);
    if (memory.empty()) break;
    blocks_.push_back({.memory = memory});
  }
}

Arena::~Arena() {
  for (const Block& block : blocks_)
    pool_->free(block.memory);
}

// The first free run of `pages` that is aligned to its size.
std::size_t Arena::find(const Block& block, std::size_t pages) noexcept {
  if (pages >= 64) {
    const std::size_t words = pages / 64;
    for (std::size_t first = 0; first < kWords; first += words)
      if (std::all_of(block.taken.begin() + static_cast<std::ptrdiff_t>(first),
                      block.taken.begin() + static_cast<std::ptrdiff_t>(first + words),
                      [](Word word) { return word == 0; }))
        return first * 64;
    return kNowhere;
  }
  const Word mask = (Word{1} << pages) - 1;
  for (std::size_t i = 0; i < kWords; ++i) {
    if (block.taken[i] == ~Word{0}) continue;
    for (std::size_t shift = 0; shift < 64; shift += pages)
      if ((block.taken[i] & mask << shift) == 0) return i * 64 + shift;
  }
  return kNowhere;
}

void Arena::mark(Block& block, std::size_t page, std::size_t pages, bool taken) noexcept {
  for (std::size_t done = 0; done < pages;) {
    const std::size_t here = std::min<std::size_t>(pages - done, 64);
    const Word mask = here == 64 ? ~Word{0} : ((Word{1} << here) - 1) << (page + done) % 64;
    Word& word = block.taken[(page + done) / 64];
    check((word & mask) == (taken ? 0 : mask), "a piece is taken once and freed once");
    word ^= mask;
    done += here;
  }
}

std::span<std::byte> Arena::allocate(std::size_t size) noexcept {
  const std::size_t piece = std::bit_ceil(std::max(size, kPage));
  for (Block& block : blocks_) {
    const std::size_t page = find(block, piece / kPage);
    if (page == kNowhere) continue;
    mark(block, page, piece / kPage, true);
    return block.memory.subspan(page * kPage, piece);
  }
  return {};
}

void Arena::free(std::span<std::byte> piece) noexcept {
  for (Block& block : blocks_) {
    if (piece.data() < block.memory.data() || piece.data() >= block.memory.data() + block.memory.size()) continue;
    mark(block, static_cast<std::size_t>(piece.data() - block.memory.data()) / kPage, piece.size() / kPage, false);
    return;
  }
  check(false, "a piece goes back where it came from");
}

}  // namespace rbt::initiator::nbd
