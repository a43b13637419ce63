// The memory of one NBD connection.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/random.h"
#include "initiator/present/nbd_arena.h"

using namespace rbt;
using initiator::nbd::Arena;
using Piece = std::span<std::byte>;

namespace {

std::unique_ptr<transport::BufferPool> make_pool(std::uint64_t blocks) {
  auto pool = transport::BufferPool::create(Bytes(blocks * Arena::kBlock), transport::RemoteAccess::read_write,
                                            {.name = "rbt-test-arena"});
  REQUIRE(pool);
  return std::move(*pool);
}

}  // namespace

TEST_CASE("Pieces are as large as asked for, begin at pages, and never overlap") {
  const auto pool = make_pool(3);
  {
    Arena arena(*pool, 2);
    REQUIRE(arena.blocks() == 2);
    Random random(5);
    std::vector<std::pair<Piece, std::byte>> held;
    for (int step = 0; step < 20'000; ++step) {
      if (random.below(2) == 0 && !held.empty()) {
        std::swap(held[random.below(held.size())], held.back());
        const auto [piece, mark] = held.back();
        held.pop_back();
        CHECK((piece.front() == mark && piece.back() == mark && piece[piece.size() / 2] == mark));
        arena.free(piece);
        continue;
      }
      const std::size_t size = 1 + random.below(std::size_t{1} << random.below(22));
      const Piece piece = arena.allocate(std::min(size, Arena::kBlock));
      if (piece.empty()) continue;
      CHECK((piece.size() >= size && piece.size() < std::max(2 * size, Arena::kPage + 1)));
      CHECK(reinterpret_cast<std::uintptr_t>(piece.data()) % Arena::kPage == 0);
      const auto mark = static_cast<std::byte>(step);
      std::fill(piece.begin(), piece.end(), mark);
      held.emplace_back(piece, mark);
    }
    for (const auto& [piece, mark] : held)
      arena.free(piece);
    CHECK(arena.allocate(Arena::kBlock).size() == Arena::kBlock);
    CHECK(arena.allocate(Arena::kBlock).size() == Arena::kBlock);
    CHECK(arena.allocate(1).empty());
  }
  CHECK(pool->free_bytes() == pool->size());
}

TEST_CASE("An arena takes what the pool has, and no more") {
  const auto pool = make_pool(2);
  const Arena first(*pool, 1);
  const Arena second(*pool, 5);
  CHECK(first.blocks() == 1);
  CHECK(second.blocks() == 1);
}
