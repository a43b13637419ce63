#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <set>
#include <vector>

#include "common/random.h"
#include "transport/memory/buffer_pool.h"
#include "transport/memory/registered_memory.h"
#include "transport/memory/shared_memory.h"

using namespace rbt;
using namespace rbt::transport;

namespace {

struct FakeRegion final : MemoryRegion {
  FakeRegion(const MemorySpan& span, int& live_regions) : MemoryRegion(span, 7, 8), live(live_regions) { ++live; }
  ~FakeRegion() override { --live; }
  int& live;
};
struct FakeDomain final : ProtectionDomain {
  Result<std::unique_ptr<MemoryRegion>> register_memory(const MemorySpan& memory, RemoteAccess) override {
    if (refuse) return failure(ErrorKind::resource, "no");
    return std::make_unique<FakeRegion>(memory, live);
  }
  std::string_view name() const noexcept override { return "fake"; }
  int live = 0;
  bool refuse = false;
};

std::unique_ptr<BufferPool> make_pool(std::uint64_t size) {
  auto pool = BufferPool::create(Bytes(size), RemoteAccess::none, {});
  REQUIRE(pool);
  return std::move(*pool);
}

}  // namespace

TEST_CASE("Shared memory starts as zeroes and cannot be truncated under its users") {
  auto memory = SharedMemory::create(Bytes(10'000), {});
  REQUIRE(memory);
  CHECK(memory->size() == 12'288);
  CHECK(memory->data()[9'999] == std::byte{0});
  CHECK(ftruncate(memory->span().fd, 0) == -1);
  CHECK(errno == EPERM);
}

TEST_CASE("Memory that nobody has is refused with the size that was asked for") {
  auto memory = SharedMemory::create(Bytes(~0ULL), {.name = "test"});
  REQUIRE_FALSE(memory);
  CHECK_THAT(memory.error().message(), Catch::Contains("18446744073709551615") && Catch::Contains("test"));
}

TEST_CASE("Memory is registered once with each domain that asks") {
  auto memory = SharedMemory::create(Bytes(4096), {});
  REQUIRE(memory);
  FakeDomain one, two;
  {
    RegisteredMemory registered(memory->span(), RemoteAccess::none);
    CHECK(registered.in(one) == nullptr);
    REQUIRE(registered.ensure(one));
    REQUIRE(registered.ensure(one));
    REQUIRE(registered.ensure(two));
    CHECK(registered.in(one) != registered.in(two));
    CHECK((one.live == 1 && two.live == 1));
    registered.drop(one);
    CHECK(registered.in(one) == nullptr);
    CHECK((one.live == 0 && two.live == 1));
    one.refuse = true;
    CHECK_FALSE(registered.ensure(one));
    CHECK(registered.in(one) == nullptr);
  }
  CHECK(two.live == 0);
}

TEST_CASE("Fenced memory is registered nowhere until it is restored, then with every domain that has asked") {
  auto memory = SharedMemory::create(Bytes(4096), {});
  REQUIRE(memory);
  FakeDomain one, two;
  RegisteredMemory registered(memory->span(), RemoteAccess::none);
  REQUIRE(registered.ensure(one));
  REQUIRE(registered.keys(one));
  CHECK((registered.keys(one)->lkey == 7 && registered.keys(one)->rkey == 8));
  registered.fence();
  CHECK((one.live == 0 && !registered.keys(one)));
  REQUIRE(registered.ensure(two));
  CHECK((two.live == 0 && !registered.keys(two)));
  two.refuse = true;
  CHECK_FALSE(registered.restore());
  CHECK((one.live == 0 && !registered.keys(one)));
  two.refuse = false;
  REQUIRE(registered.restore());
  CHECK((one.live == 1 && registered.keys(one)));
  CHECK((two.live == 1 && registered.keys(two)));
  REQUIRE(registered.restore());
  CHECK((one.live == 1 && two.live == 1));
}

TEST_CASE("Blocks of a pool never overlap, are aligned to their size, and all come back") {
  auto pool = make_pool(8 << 20);
  Random random(GENERATE(1ULL, 2ULL, 3ULL));
  std::vector<std::span<std::byte>> held;
  std::set<std::byte*> starts;
  for (int step = 0; step < 5000; ++step) {
    if (!held.empty() && random.below(2) == 0) {
      const std::size_t victim = random.below(held.size());
      pool->free(held[victim]);
      held[victim] = held.back();
      held.pop_back();
    } else {
      const std::size_t size = 1 + random.below(random.below(2) == 0 ? 8192 : BufferPool::kBlockMax);
      const auto block = pool->allocate(size);
      if (block.empty()) continue;
      REQUIRE(block.size() >= size);
      REQUIRE(static_cast<std::size_t>(block.data() - pool->memory().memory().data) % block.size() == 0);
      for (const auto& other : held)
        REQUIRE((block.data() + block.size() <= other.data() || other.data() + other.size() <= block.data()));
      held.push_back(block);
    }
  }
  for (const auto& block : held)
    pool->free(block);
  CHECK(pool->free_bytes() == pool->size());
  // whole again: the largest blocks are all there
  int largest = 0;
  while (!pool->allocate(BufferPool::kBlockMax).empty())
    ++largest;
  CHECK(largest == 4);
}

TEST_CASE("Those who wait for a buffer get it in the order of asking, and nobody overtakes them") {
  auto pool = make_pool(2 << 20);
  struct Waiter final : BufferWaiter {
    void on_buffer_available() override {
      got = pool->allocate(want);
      if (got.empty())
        pool->wait(*this);
      else
        order->push_back(id);
    }
    BufferPool* pool = nullptr;
    std::vector<int>* order = nullptr;
    std::size_t want = 0;
    int id = 0;
    std::span<std::byte> got;
  };
  std::vector<int> order;
  const auto a = pool->allocate(1 << 20), b = pool->allocate(1 << 20);
  Waiter big, small;
  big.pool = small.pool = pool.get();
  big.order = small.order = &order;
  big.want = 2 << 20, big.id = 1;
  small.want = 4096, small.id = 2;
  pool->wait(big);
  pool->wait(small);
  pool->free(a);  // room for small, but big came first
  CHECK(order.empty());
  CHECK(pool->allocate(4096).empty());
  pool->free(b);
  CHECK(order == std::vector{1});
  pool->free(big.got);
  CHECK(order == std::vector{1, 2});
  pool->free(small.got);
  CHECK(pool->free_bytes() == pool->size());
}

TEST_CASE("A waiter that gave up is not called") {
  auto pool = make_pool(2 << 20);
  struct Waiter final : BufferWaiter {
    void on_buffer_available() override { ++calls; }
    int calls = 0;
  } a, b;
  const auto all = pool->allocate(2 << 20);
  pool->wait(a);
  pool->wait(b);
  pool->cancel(a);
  pool->cancel(a);
  pool->free(all);
  CHECK((a.calls == 0 && b.calls == 1));
}
