// drop-unflushed: what is durable survives, what is not is read until it is lost, and nothing else is said.

#include "store_rig.h"
#include "target/store/delay_layer.h"
#include "target/store/drop_unflushed.h"
#include "target/store/error_layer.h"
#include "tests/sim/kept_store.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;
using rbt::test::KeptStore;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kBlock = 512;

std::vector<std::byte> filled(std::uint64_t blocks, int value) {
  std::vector<std::byte> bytes(blocks * kBlock, static_cast<std::byte>(value));
  return bytes;
}

/// A disk of 16 MiB under the layer; and power cuts.
struct DropRig : StoreRig {
  DropRig() : disk(try_open("ram:size=16MiB").value()) { power_on(); }
  ~DropRig() { close(); }  // before the disk

  void power_on(DropUnflushedOptions options = {Bytes(4 * kMiB)}) {
    auto below = over_disk(std::make_unique<KeptStore>(*disk));
    auto made = DropUnflushed::create(std::move(below), options).value();
    layer = made.get();
    store = std::move(made);
    REQUIRE(store->prepare(domain, 0));
    queue = open_queue();
  }
  void power_cut() {
    layer->crash();
    close();
    power_on();
  }
  [[nodiscard]] int first_byte(std::uint64_t lba) { return static_cast<int>(must_read(lba, 1)[0]); }

  std::unique_ptr<Store> disk;
  std::function<std::unique_ptr<Store>(std::unique_ptr<Store>)> over_disk = [](auto s) { return s; };
  DropUnflushed* layer = nullptr;
};

}  // namespace

TEST_CASE("What was written is read at once, and lost with the power unless it was flushed") {
  DropRig rig;
  CHECK(rig.store->geometry().write_cache);
  CHECK(rig.write(10, filled(4, 1)) == StoreStatus::ok);
  CHECK(rig.must_read(9, 6)[kBlock] == std::byte{1});
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(rig.write(11, filled(1, 2)) == StoreStatus::ok);
  CHECK(rig.first_byte(10) == 1);
  CHECK(rig.first_byte(11) == 2);
  rig.power_cut();
  CHECK(rig.must_read(10, 4) == filled(4, 1));
}

TEST_CASE("FUA makes its own blocks durable and no others") {
  DropRig rig;
  CHECK(rig.write(0, filled(1, 1)) == StoreStatus::ok);
  CHECK(rig.write(1, filled(1, 2), Durability::durable) == StoreStatus::ok);
  CHECK(rig.write_zeroes(StoreRig::range(2, 1), StoreQueue::Deallocate::no, Durability::durable) == StoreStatus::ok);
  rig.power_cut();
  CHECK(rig.first_byte(0) == 0);
  CHECK(rig.first_byte(1) == 2);
}

TEST_CASE("Zeroes over unflushed data are zeroes, however many, and what is flushed stays so") {
  DropRig rig;
  const std::uint64_t blocks = GENERATE(1U, 64U, 8192U);  // 4 MiB: too much for the memory
  CHECK(rig.write(100, filled(8, 1), Durability::durable) == StoreStatus::ok);
  CHECK(rig.write(100, filled(8, 2)) == StoreStatus::ok);
  CHECK(rig.write_zeroes(StoreRig::range(100, blocks)) == StoreStatus::ok);
  CHECK(rig.first_byte(100) == 0);
  if (blocks < 8) CHECK(rig.first_byte(107) == 2);
  CHECK(rig.flush() == StoreStatus::ok);
  rig.power_cut();
  CHECK(rig.first_byte(100) == 0);
}

TEST_CASE("A discard hides unflushed data too") {
  DropRig rig;
  CHECK(rig.write(5, filled(2, 3)) == StoreStatus::ok);
  CHECK(rig.discard({StoreRig::range(0, 6), StoreRig::range(50, 1)}) == StoreStatus::ok);
  CHECK(rig.first_byte(5) == 0);
  CHECK(rig.first_byte(6) == 3);
}

TEST_CASE("A full memory is written down early, and every write goes on") {
  DropRig rig;
  for (int round = 1; round <= 3; ++round)
    for (std::uint64_t lba = 0; lba < 24576; lba += 2048)  // 12 MiB of 4, 1 MiB at a time
      REQUIRE(rig.write(lba, filled(2048, round), lba % 8192 == 0 ? Durability::durable : Durability::cached) ==
              StoreStatus::ok);
  for (std::uint64_t lba = 0; lba < 24576; lba += 512)
    CHECK(rig.first_byte(lba) == 3);
  CHECK(rig.flush() == StoreStatus::ok);
  rig.power_cut();
  for (std::uint64_t lba = 0; lba < 24576; lba += 512)
    CHECK(rig.first_byte(lba) == 3);
}

TEST_CASE("Where nothing is in memory, reads are the store's own leases, and after a flush again") {
  DropRig rig;
  const auto place = [&](std::uint64_t lba) {
    Lease lease = rig.lease(StoreRig::range(lba, 4), Intent::read);
    REQUIRE(rig.acquire(lease) == StoreStatus::ok);
    const std::byte* const data = lease.segments[0].data;
    rig.queue->release(lease);
    return data;
  };
  const std::byte* const own = place(0);
  CHECK(place(4) == own + 4 * kBlock);
  CHECK(rig.write(2, filled(1, 1)) == StoreStatus::ok);
  CHECK(place(0) != own);
  CHECK(place(4) == own + 4 * kBlock);
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(place(0) == own);
}

TEST_CASE("A flush that fails says so, and the next one tries again") {
  DropRig rig;
  const StoreOperation failing = GENERATE(StoreOperation::write, StoreOperation::commit, StoreOperation::flush);
  rig.close();
  rig.over_disk = [failing](std::unique_ptr<Store> below) {
    return make_error_layer(std::move(below), {.operations = 1U << static_cast<unsigned>(failing), .nth = 1});
  };
  rig.power_on();
  CHECK(rig.write(3, filled(1, 7)) == StoreStatus::ok);
  CHECK(rig.flush() == StoreStatus::write_error);
  CHECK(rig.first_byte(3) == 7);
  CHECK(rig.flush() == StoreStatus::ok);
  rig.power_cut();
  CHECK(rig.first_byte(3) == 7);
}

TEST_CASE(
    "Whatever fails below, n-th by n-th: an error is told, nothing hangs, what was acknowledged as durable stays") {
  for (std::uint64_t nth = 1;; ++nth) {
    DropRig rig;
    rig.close();
    bool armed = true;
    rig.over_disk = [&](std::unique_ptr<Store> below) {
      return armed ? make_error_layer(std::move(below), {.operations = 0x3f, .nth = nth}) : std::move(below);
    };
    rig.power_on();
    int failed = 0;
    std::array<int, 3> durable{};
    const auto counted = [&](StoreStatus status) { return failed += status == StoreStatus::ok ? 0 : 1, status; };
    for (std::uint64_t i = 0; i < 3; ++i) {
      (void)counted(rig.write(i * 10, filled(2, 10 + static_cast<int>(i))));
      if (counted(rig.write(i * 10 + 5, filled(1, 20), Durability::durable)) == StoreStatus::ok) durable.at(i) = 20;
      std::vector<std::byte> bytes;
      (void)counted(rig.read(i * 10, 6, bytes));
      (void)counted(rig.discard({StoreRig::range(200, 1)}));
      (void)counted(rig.write_zeroes(StoreRig::range(1000, 8192)));
    }
    const bool flushed = counted(rig.flush()) == StoreStatus::ok;
    armed = false;
    rig.power_cut();
    for (std::uint64_t i = 0; i < 3; ++i) {
      if (durable.at(i) != 0) CHECK(rig.first_byte(i * 10 + 5) == durable.at(i));
      if (flushed) CHECK(rig.first_byte(i * 10 + 1) == 10 + static_cast<int>(i));
    }
    CHECK(failed <= 1);
    if (failed == 0) break;
    REQUIRE(nth < 1000);
  }
}

TEST_CASE("After a crash in the middle of a flush, every operation says that the store is not available") {
  DropRig rig;
  rig.close();
  rig.over_disk = [](std::unique_ptr<Store> below) {
    DelayOptions options;
    options.of.fill({5ms, 5ms});
    return make_delay_layer(std::move(below), options);
  };
  rig.power_on();
  for (std::uint64_t lba = 0; lba < 100; lba += 2)  // 50 runs
    CHECK(rig.write(lba, filled(1, 1)) == StoreStatus::ok);
  Waited flush;
  Waited waiting;
  flush.began(rig.queue->flush(flush));
  waiting.began(rig.queue->flush(waiting));
  (void)rig.reactor().run_until([] { return false; }, rig.clock.now() + 60ms);
  CHECK_FALSE(flush.done());
  rig.layer->crash();
  rig.run_until([&] { return flush.done() && waiting.done(); });
  CHECK(flush.status == StoreStatus::unavailable);
  CHECK(waiting.status == StoreStatus::unavailable);
  std::vector<std::byte> bytes;
  CHECK(rig.read(0, 1, bytes) == StoreStatus::unavailable);
  CHECK(rig.write(0, filled(1, 1)) == StoreStatus::unavailable);
  CHECK(rig.flush() == StoreStatus::unavailable);
  CHECK(rig.discard({StoreRig::range(0, 1)}) == StoreStatus::unavailable);
  CHECK(rig.write_zeroes(StoreRig::range(0, 1)) == StoreStatus::unavailable);
  CHECK(rig.write_zeroes(StoreRig::range(0, 8192)) == StoreStatus::unavailable);
  rig.power_cut();
  CHECK(rig.first_byte(0) == 1);   // written down before the crash
  CHECK(rig.first_byte(98) == 0);  // not any more
}

TEST_CASE("More writes and reads at once than there are buffers wait and are all done") {
  DropRig rig;
  struct One {
    Lease lease;
    Waited request;
    bool released = false;
  };
  std::vector<std::unique_ptr<One>> all;
  for (std::uint64_t i = 0; i < 40; i += 2)
    CHECK(rig.write(i * 16, filled(1, 1)) == StoreStatus::ok);
  for (std::uint64_t i = 0; i < 40; ++i) {  // 1 MiB each of 8
    all.push_back(std::make_unique<One>());
    One& one = *all.back();
    one.lease = rig.lease(StoreRig::range(i % 2 == 0 ? 0 : 1000, 2048), i % 2 == 0 ? Intent::read : Intent::write);
    one.request.began(rig.queue->acquire(one.lease, one.request));
  }
  rig.run_until([&] {
    for (auto& one : all)
      if (one->request.done() && !std::exchange(one->released, true)) rig.queue->release(one->lease);
    return std::all_of(all.begin(), all.end(), [](auto& one) { return one->released; });
  });
  CHECK(std::all_of(all.begin(), all.end(), [](auto& one) { return one->request.status == StoreStatus::ok; }));
}
