// Layers: what they change, and that they change nothing else.

#include <chrono>
#include <map>

#include "store_rig.h"
#include "target/store/stats_layer.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;
using namespace std::chrono_literals;

namespace {

std::vector<std::byte> filled(std::size_t size, int value) {
  std::vector<std::byte> bytes(size, static_cast<std::byte>(value));
  return bytes;
}

/// How long `operation` takes, by the rig's clock.
Duration time_of(StoreRig& rig, const std::function<StoreStatus()>& operation) {
  const Instant began = rig.clock.now();
  CHECK(operation() == StoreStatus::ok);
  return rig.clock.now() - began;
}

}  // namespace

TEST_CASE("A layer is the store below it: geometry, identity, spec, memory") {
  StoreRig rig;
  const auto* const spec = GENERATE("delay:0,ram:size=1MiB,block=4096", "error:flush,ram:size=1MiB,block=4096",
                                    "stats:delay:read=0,error:flush,ram:size=1MiB,block=4096");
  rig.open(spec);
  const Geometry geometry = rig.store->geometry();
  CHECK(geometry.blocks == Blocks(256));
  CHECK(geometry.block_shift.block_size() == 4096);
  CHECK_FALSE(geometry.write_cache);
  CHECK(rig.store->spec() == spec);
  CHECK(rig.store->identity() != Identity{});
  CHECK(rig.domain.registrations == 2);  // the pool, and the disk
  // No copy: what a read lease shows is where a write lease of the same range has put it.
  Lease write = rig.lease(StoreRig::range(3, 2), Intent::write);
  Lease read = rig.lease(StoreRig::range(3, 2), Intent::read);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  const std::byte* const place = write.segments[0].data;
  CHECK(write.segments[0].lkey == rig.domain.last_key);
  StoreRig::fill(write, filled(8192, 7));
  CHECK(rig.finish([&](auto& request) { return rig.queue->commit(write, Durability::cached, request); }) ==
        StoreStatus::ok);
  rig.queue->release(write);
  REQUIRE(rig.acquire(read) == StoreStatus::ok);
  CHECK(read.segments[0].data == place);
  CHECK(StoreRig::contents(read) == filled(8192, 7));
  rig.queue->release(read);
  rig.close();
}

TEST_CASE("delay lets each kind of operation wait at least as long as it says") {
  StoreRig rig;
  rig.open("delay:0,read=20ms,flush=40ms-60ms,ram:size=1MiB");
  std::vector<std::byte> bytes;
  CHECK(rig.write(0, filled(512, 1)) == StoreStatus::ok);
  CHECK(time_of(rig, [&] { return rig.read(0, 1, bytes); }) >= 20ms);
  CHECK(bytes == filled(512, 1));
  CHECK(time_of(rig, [&] { return rig.flush(); }) >= 40ms);
  CHECK(rig.discard({StoreRig::range(0, 1)}) == StoreStatus::ok);
  rig.close();
}

TEST_CASE("delay waits once for a write, and then does what was asked") {
  StoreRig rig;
  rig.open("delay:15ms,ram:size=1MiB");
  const Duration took = time_of(rig, [&] { return rig.write(1, filled(1024, 5)); });
  CHECK(took >= 15ms);
  CHECK(rig.must_read(0, 4)[512] == std::byte{5});
  CHECK(rig.write_zeroes(StoreRig::range(1, 1)) == StoreStatus::ok);
  CHECK(rig.discard({StoreRig::range(2, 1)}) == StoreStatus::ok);
  CHECK(rig.must_read(0, 4) == filled(2048, 0));
  rig.close();
}

TEST_CASE("Delayed operations wait side by side") {
  StoreRig rig;
  rig.open("delay:200ms,ram:size=1MiB");
  std::vector<Waited> requests(40);
  const Instant began = rig.clock.now();
  for (Waited& request : requests)
    request.began(rig.queue->flush(request));
  rig.run_until([&] { return std::all_of(requests.begin(), requests.end(), [](auto& r) { return r.done(); }); });
  CHECK(rig.clock.now() - began < 4s);  // one after the other: 8 s
  rig.close();
}

TEST_CASE("error fails the operations named, with the status named, and carries out the others") {
  StoreRig rig;
  rig.open("error:write+flush,lba=4-5,status=no_space,ram:size=1MiB");
  std::vector<std::byte> bytes;
  CHECK(rig.write(0, filled(2048, 1)) == StoreStatus::ok);
  CHECK(rig.write(3, filled(1024, 2)) == StoreStatus::no_space);
  CHECK(rig.write(5, filled(512, 2)) == StoreStatus::no_space);
  CHECK(rig.write(6, filled(512, 3)) == StoreStatus::ok);
  CHECK(rig.read(4, 2, bytes) == StoreStatus::ok);
  CHECK(bytes == filled(1024, 0));
  CHECK(rig.flush() == StoreStatus::ok);  // it touches no block
  CHECK(rig.must_read(3, 1) == filled(512, 1));
  rig.close();
}

TEST_CASE("error fails reads as unreadable and the rest as unwritable unless it is told otherwise") {
  StoreRig rig;
  rig.open("error:every=1,ram:size=1MiB");
  std::vector<std::byte> bytes;
  CHECK(rig.read(0, 1, bytes) == StoreStatus::read_error);
  CHECK(rig.write(0, filled(512, 1)) == StoreStatus::write_error);
  CHECK(rig.flush() == StoreStatus::write_error);
  CHECK(rig.discard({StoreRig::range(0, 1)}) == StoreStatus::write_error);
  CHECK(rig.write_zeroes(StoreRig::range(0, 1)) == StoreStatus::write_error);
  rig.close();
}

TEST_CASE("error can fail a write after its data has arrived") {
  StoreRig rig;
  rig.open("error:commit,nth=2,ram:size=1MiB");
  CHECK(rig.write(0, filled(512, 1)) == StoreStatus::ok);
  CHECK(rig.write(0, filled(512, 2)) == StoreStatus::write_error);
  CHECK(rig.write(0, filled(512, 3)) == StoreStatus::ok);
  rig.close();
}

TEST_CASE("error counts: the n-th alone, every n-th, or by chance and the same again with the same seed") {
  StoreRig rig;
  const auto failures = [&](const std::string& how, int operations) {
    rig.open("error:flush," + how + ",ram:size=1MiB");
    std::vector<int> failed;
    for (int i = 1; i <= operations; ++i)
      if (rig.flush() != StoreStatus::ok) failed.push_back(i);
    rig.close();
    return failed;
  };
  CHECK(failures("nth=3", 12) == std::vector{3});
  CHECK(failures("every=4", 12) == std::vector{4, 8, 12});
  CHECK(failures("probability=1", 3) == std::vector{1, 2, 3});
  const auto some = failures("probability=0.1,seed=5", 1000);
  CHECK(some.size() > 60);
  CHECK(some.size() < 140);
  CHECK(failures("probability=0.1,seed=5", 1000) == some);
  CHECK(failures("probability=0.1,seed=6", 1000) != some);
}

TEST_CASE("stats counts operations, bytes, failures and time, and says so at the end") {
  StoreRig rig;
  rig.open("stats:error:read,nth=2,delay:0,flush=20ms,ram:size=1MiB");
  std::vector<std::byte> bytes;
  CHECK(rig.store->counts().empty());
  CHECK(rig.write(0, filled(4096, 1)) == StoreStatus::ok);
  CHECK(rig.read(0, 8, bytes) == StoreStatus::ok);
  CHECK(rig.read(0, 8, bytes) == StoreStatus::read_error);
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(rig.discard({StoreRig::range(0, 2), StoreRig::range(4, 2)}) == StoreStatus::ok);
  const auto lines = rig.store->counts();
  REQUIRE(lines.size() == 5);
  CHECK(lines[0].starts_with("read: 1 done, 1 failed, 4 KiB; mean "));
  CHECK(lines[1].starts_with("write: 1 done, 0 failed, 4 KiB; mean "));
  CHECK(lines[2].starts_with("commit: 1 done, 0 failed, 4 KiB; mean "));
  CHECK(lines[3].starts_with("flush: 1 done, 0 failed, 0 B; mean "));
  CHECK(lines[4].starts_with("discard: 1 done, 0 failed, 2 KiB; mean "));
  rig.close();
  CHECK(rig.journal.count("flush: 1 done, 0 failed") == 1);
}

TEST_CASE("A class of latencies holds what lies between the one before and its own longest") {
  for (std::int64_t ns = 0; ns < 100000; ns += ns / 50 + 1) {
    const std::size_t index = LatencyClasses::index_of(Duration(ns));
    CHECK(Duration(ns) <= LatencyClasses::most(index));
    if (index > 0) CHECK(Duration(ns) > LatencyClasses::most(index - 1));
  }
  CHECK(LatencyClasses::index_of(24h) == LatencyClasses::kClasses - 1);
}
