// No heap allocation per request of a shared disk: a counting operator new, and several threads in steady state.
#include <array>
#include <atomic>
#include <barrier>
#include <catch2/catch.hpp>
#include <thread>
#include <vector>

#include "initiator/present/shared_disk.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/shm/scratch.h"
#include "tests/sim/counting_allocator.h"
#include "transport/shm/fabric.h"

using namespace rbt;

namespace {

constexpr int kThreads = 4;
constexpr int kRounds = 150;

bool requests(initiator::SharedDisk& disk, std::span<std::byte> data, Bytes offset) {
  bool good = true;
  for (int i = 0; i < kRounds; ++i) {
    const std::size_t size = i % 50 == 0 ? data.size() : 4096;
    good = good && disk.write(data.first(size), offset, nvme::ForceUnitAccess::no).ok();
    good = good && disk.read(data.first(size), offset).ok();
    good = good && disk.flush().ok();
    good = good && disk.discard(offset, Bytes(4096), nvme::ForceUnitAccess::no).ok();
    good = good && disk.write_zeroes(offset, Bytes(4096), nvme::Deallocate::no, nvme::ForceUnitAccess::no).ok();
  }
  return good;
}

}  // namespace

TEST_CASE("In steady state requests of several threads allocate nothing, on neither side") {
  test::ScratchDirectory scratch;
  SystemClock clock;
  Random random(1);
  const auto server = std::move(transport::shm::Fabric::open({}, random).value());
  const auto client = std::move(transport::shm::Fabric::open({}, random).value());
  const std::string socket = scratch.path("socket");
  const auto nqn = nvme::Nqn::parse("nqn.2024-01.io.example:quiet").value();
  auto target = std::move(target::Target::open({.clock = clock, .logger = null_logger(), .random = random}).value());
  REQUIRE(target->add_subsystem(nqn, {.allow_any_host = true}));
  auto store = target::make_store("ram:size=16MiB", {.clock = clock, .random = random, .logger = null_logger()});
  REQUIRE(target->add_namespace(nqn, std::move(store.value())));
  REQUIRE(target->listen(*server, Uri::parse("nvme+shm://?socket=" + socket).value()));
  REQUIRE(target->start());
  const auto disk = std::move(
      initiator::SharedDisk::connect({*client, clock, null_logger(), random},
                                     Uri::parse("nvme+shm:///" + nqn.text() + "/1?socket=" + socket).value(), {})
          .value());

  // The threads warm up, wait for each other, are measured, and wait again: making them allocates, running them must not.
  std::barrier both(kThreads + 1);
  std::atomic<int> bad{0};
  std::array<std::vector<std::byte>, kThreads> memory;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    memory[i].resize(kMiB);
    threads.emplace_back([&, i] {
      const Bytes offset(i * 2 * kMiB);
      if (!requests(*disk, memory[i], offset)) ++bad;
      both.arrive_and_wait();
      both.arrive_and_wait();
      if (!requests(*disk, memory[i], offset)) ++bad;
      both.arrive_and_wait();
    });
  }
  both.arrive_and_wait();
  const std::uint64_t before = test::allocations();
  both.arrive_and_wait();
  both.arrive_and_wait();
  const std::uint64_t after = test::allocations();
  for (auto& thread : threads)
    thread.join();
  CHECK(before > 0);  // they are counted
  CHECK(bad == 0);
  CHECK(after - before <= 5);  // of 6,000 requests; a keep-alive may come between
}
