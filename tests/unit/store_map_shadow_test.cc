// map:…,atomic=shadow: an image whose blocks are never written where they lie.

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <thread>

#include "shadow_images.h"
#include "transport/coherence/monitor.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;
using transport::coherence::Monitor;

namespace {

/// Notes what is asked to last, in order.
struct Notes final : Persister {
  void persist(std::uint64_t offset, std::uint64_t length) noexcept override { seen.emplace_back(offset, length); }
  std::vector<std::pair<std::uint64_t, std::uint64_t>> seen;
};

Lease lease_of(StoreRig& rig, std::uint64_t lba, std::uint64_t count, Intent intent) {
  Lease made = rig.lease(StoreRig::range(lba, count), intent);
  made.path_mtu = 1024;
  return made;
}

StoreStatus commit(StoreRig& rig, Lease& lease) {
  return rig.finish([&](StoreRequest& request) { return rig.queue->commit(lease, Durability::durable, request); });
}

/// An image of 256 blocks of 4096 in a file on tmpfs.
struct File {
  File() : layout(layout_of(256, 64, 4096)) {
    path = "/dev/shm/rbt-shadow-XXXXXX";
    fd = ::mkstemp(path.data());
    REQUIRE(fd >= 0);
    const auto bytes = empty_image(layout);
    REQUIRE(::pwrite(fd, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }
  ~File() { ::unlink(path.c_str()); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[nodiscard]] std::string spec() const { return "map:" + path + ",atomic=shadow"; }
  ShadowLayout layout;
  std::string path;
  int fd = -1;
};

struct Guarded {
  Guarded() {
    auto started = Monitor::start(clock, journal);
    REQUIRE(started);
    monitor = std::move(*started);
    rig.monitor = monitor.get();
    rig.open(file.spec());
  }
  ~Guarded() { rig.close(); }
  [[nodiscard]] bool without_a_copy() {
    Lease read = lease_of(rig, 0, 1, Intent::read);
    REQUIRE(rig.acquire(read) == StoreStatus::ok);
    const bool in_place = rig.buffers().free_bytes() == rig.buffers().size();
    rig.queue->release(read);
    return in_place;
  }
  /// What other threads do wakes no reactor: it looks again every few milliseconds.
  void await(const std::function<bool()>& done) {
    const Instant give_up = rig.clock.now() + std::chrono::seconds(30);
    while (!rig.reactor().run_until(done, rig.clock.now() + std::chrono::milliseconds(5)))
      REQUIRE(rig.clock.now() < give_up);
  }
  /// Somebody else opens the file.
  int open_as_another() {
    std::atomic<int> fd{-1};
    std::thread other([&] { fd = ::open(file.path.c_str(), O_RDWR | O_CLOEXEC); });
    await([&] { return fd.load() >= 0; });
    other.join();
    return fd;
  }
  File file;
  SystemClock clock;  // the monitor's: it outlives the rig
  Journal journal;    // the same, of its threads
  std::unique_ptr<Monitor> monitor;
  StoreRig rig;
};

}  // namespace

TEST_CASE(
    "A write to a shadow image is not there before its commit, readers keep what they have, and nothing is copied") {
  Guarded guarded;
  StoreRig& rig = guarded.rig;
  const auto before = pattern(8192, 1);
  const auto after = pattern(8192, 2);
  Lease first = lease_of(rig, 5, 2, Intent::write);
  REQUIRE(rig.acquire(first) == StoreStatus::ok);
  rig.fill(first, before);
  REQUIRE(commit(rig, first) == StoreStatus::ok);
  rig.queue->release(first);
  Lease reader = lease_of(rig, 5, 2, Intent::read);
  Lease write = lease_of(rig, 5, 2, Intent::write);
  Lease lost = lease_of(rig, 5, 2, Intent::write);
  for (Lease* lease : {&reader, &write, &lost})
    REQUIRE(rig.acquire(*lease) == StoreStatus::ok);
  CHECK(reader.segments[0].lkey != 0);
  rig.fill(write, after);
  rig.fill(lost, pattern(8192, 3));
  CHECK(rig.must_read(5, 2) == before);
  REQUIRE(commit(rig, write) == StoreStatus::ok);
  CHECK(rig.must_read(5, 2) == after);
  CHECK(rig.contents(reader) == before);
  for (Lease* lease : {&reader, &write, &lost})
    rig.queue->release(*lease);
  CHECK(rig.must_read(5, 2) == after);
  CHECK(rig.queue->bytes_copied() == 0);
  rig.close();
  rig.open(guarded.file.spec());
  CHECK(rig.must_read(5, 2) == after);
  CHECK(rig.must_read(7, 249) == std::vector<std::byte>(249 * 4096));
}

TEST_CASE("Data lasts before its entries, and they before the answer") {
  StoreRig rig;
  Notes notes;
  const ShadowLayout layout = layout_of(64, 16);
  const ImageInMemory image(empty_image(layout));
  rig.store = MapStore::create("map:image", {.path = image.path, .atomicity = Atomicity::shadow, .persister = &notes},
                               rig.environment())
                  .value();
  REQUIRE(rig.store->prepare(rig.domain, 1024));
  rig.queue = rig.open_queue();
  REQUIRE(rig.write(3, pattern(1024, 1)) == StoreStatus::ok);
  using Range = std::pair<std::uint64_t, std::uint64_t>;
  CHECK(notes.seen == std::vector<Range>{{layout.place_offset(64), 1024}, {layout.entry_offset(Lba(3)), 16}});
  notes.seen.clear();
  REQUIRE(rig.write_zeroes(StoreRig::range(10, 20)) == StoreStatus::ok);
  CHECK(notes.seen == std::vector<Range>{{layout.entry_offset(Lba(10)), 160}});
}

TEST_CASE("Zeroes are entries: no landing block, no data, and readers keep what they have") {
  Guarded guarded;
  StoreRig& rig = guarded.rig;
  const auto data = pattern(40960, 4);
  REQUIRE(rig.write(10, data) == StoreStatus::ok);
  Lease reader = lease_of(rig, 10, 10, Intent::read);
  REQUIRE(rig.acquire(reader) == StoreStatus::ok);
  std::deque<Lease> writes;  // all there is to land in
  for (std::uint64_t i = 0; i < 64; ++i) {
    writes.push_back(lease_of(rig, 100 + i, 1, Intent::write));
    REQUIRE(rig.acquire(writes.back()) == StoreStatus::ok);
  }
  SECTION("a write of zeroes") {
    REQUIRE(rig.write_zeroes(rig.range(11, 5)) == StoreStatus::ok);
  }
  SECTION("a discard") {
    REQUIRE(rig.discard({rig.range(11, 5)}) == StoreStatus::ok);
  }
  auto expected = data;
  std::fill(expected.begin() + 4096, expected.begin() + 6 * 4096, std::byte{0});
  Lease zeroes = lease_of(rig, 10, 10, Intent::read);
  REQUIRE(rig.acquire(zeroes) == StoreStatus::ok);
  CHECK(zeroes.segments.size() == 3);
  CHECK(rig.contents(zeroes) == expected);
  CHECK(rig.contents(reader) == data);
  for (Lease* lease : {&reader, &zeroes})
    rig.queue->release(*lease);
  for (Lease& lease : writes)
    rig.queue->release(lease);
  const auto again = pattern(4096, 5);
  REQUIRE(rig.write(12, again) == StoreStatus::ok);
  std::copy(again.begin(), again.end(), expected.begin() + 2 * 4096);
  CHECK(rig.must_read(10, 10) == expected);
  rig.close();
  rig.open(guarded.file.spec());
  CHECK(rig.must_read(10, 10) == expected);
}

TEST_CASE("What is written by way of buffers and without them is the same disk, whoever serves it next") {
  const File file;
  SystemClock clock;
  Journal journal;
  auto monitor = Monitor::start(clock, journal).value();
  StoreRig rig;
  Random random(9);
  std::vector<std::byte> model(256 * 4096);
  for (int life = 0; life < 6; ++life) {
    rig.monitor = life % 2 == 0 ? nullptr : monitor.get();
    rig.open(file.spec());
    for (int i = 0; i < 60; ++i) {
      const std::uint64_t lba = random.below(250);
      const auto data = pattern(4096 * (1 + random.below(6)), random());
      const bool zero = random.below(4) == 0;
      if (zero)
        REQUIRE(rig.write_zeroes(rig.range(lba, data.size() / 4096)) == StoreStatus::ok);
      else
        REQUIRE(rig.write(lba, data) == StoreStatus::ok);
      const auto at = model.begin() + static_cast<std::ptrdiff_t>(lba * 4096);
      zero ? static_cast<void>(std::fill_n(at, data.size(), std::byte{0}))
           : static_cast<void>(std::copy(data.begin(), data.end(), at));
    }
    CHECK(rig.must_read(0, 256) == model);
    CHECK((rig.queue->bytes_copied() == 0) == (life % 2 == 1));
    rig.close();
  }
  rig.open(file.spec() + ",readonly");
  CHECK(rig.must_read(0, 256) == model);
  CHECK(rig.write(0, pattern(4096, 1)) == StoreStatus::read_only);
}

TEST_CASE("While somebody else has an image open it is served by way of buffers, and then without a copy again") {
  Guarded guarded;
  StoreRig& rig = guarded.rig;
  REQUIRE(guarded.without_a_copy());
  const auto data = pattern(16384, 6);
  REQUIRE(rig.write(1, data) == StoreStatus::ok);
  const int other = guarded.open_as_another();
  CHECK_FALSE(guarded.without_a_copy());
  CHECK(rig.must_read(1, 4) == data);
  const auto meanwhile = pattern(8192, 7);
  REQUIRE(rig.write(3, meanwhile) == StoreStatus::ok);
  REQUIRE(rig.write_zeroes(rig.range(1, 1)) == StoreStatus::ok);
  ::close(other);
  guarded.await([&] { return guarded.without_a_copy(); });
  CHECK(rig.must_read(1, 1) == std::vector<std::byte>(4096));
  CHECK(rig.must_read(3, 2) == meanwhile);
}

TEST_CASE(
    "Who writes into the table of a served image is noticed when he leaves, and then nothing is answered with "
    "success") {
  Guarded guarded;
  StoreRig& rig = guarded.rig;
  REQUIRE(rig.write(1, pattern(4096, 8)) == StoreStatus::ok);
  const int other = guarded.open_as_another();
  const std::vector<std::byte> zeroes(16);
  REQUIRE(::pwrite(other, zeroes.data(), zeroes.size(), static_cast<off_t>(guarded.file.layout.entry_offset(Lba(0)))) ==
          16);
  ::close(other);
  std::vector<std::byte> bytes;
  guarded.await([&] { return rig.read(7, 1, bytes) == StoreStatus::read_error; });
  CHECK(rig.write(7, pattern(4096, 9)) == StoreStatus::write_error);
  CHECK(rig.discard({rig.range(0, 1)}) == StoreStatus::write_error);
  guarded.await([&] { return rig.journal.count("somebody else has written the entry of block 1; ") == 1; });
}

TEST_CASE("A write that did not end before the fence becomes no block") {
  Guarded guarded;
  StoreRig& rig = guarded.rig;
  const auto before = pattern(4096, 10);
  REQUIRE(rig.write(9, before) == StoreStatus::ok);
  Lease write = lease_of(rig, 9, 1, Intent::write);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  const int other = guarded.open_as_another();  // waited for us as long as he does, half a second
  rig.fill(write, pattern(4096, 11));
  CHECK(commit(rig, write) == StoreStatus::unavailable);
  rig.queue->release(write);
  CHECK(rig.must_read(9, 1) == before);
  ::close(other);
}

TEST_CASE("A shadow image says of itself what holds") {
  Guarded guarded;
  const Geometry geometry = guarded.rig.store->geometry();
  CHECK(geometry.blocks == Blocks(256));
  CHECK(geometry.block_shift.block_size() == 4096);
  CHECK(geometry.atomic_write == Blocks(1));
  CHECK(geometry.atomic_write_failing == Blocks(1));
  CHECK_FALSE(geometry.write_cache);
  CHECK(geometry.transfer_max == Bytes(64 * 4096));
  CHECK(guarded.rig.store->identity() == guarded.file.layout.identity);
  CHECK(guarded.rig.store->explain().find("a shadow image in a file on tmpfs; served without a copy") == 0);
}

TEST_CASE("atomic=in-place writes where the blocks lie, whatever the packets, and says once what that means") {
  StoreRig rig;
  const std::vector<std::byte> disk(kMiB);
  const ImageInMemory memory(disk);
  rig.open("map:" + memory.path + ",block=4096,atomic=in-place");
  REQUIRE(rig.store->prepare(rig.domain, 1024));
  Lease write = lease_of(rig, 3, 1, Intent::write);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  const auto data = pattern(4096, 12);
  rig.fill(write, data);
  CHECK(std::equal(data.begin(), data.end(), memory.memory.begin() + 3 * 4096));
  REQUIRE(commit(rig, write) == StoreStatus::ok);
  rig.queue->release(write);
  CHECK(rig.journal.count("as atomic=in-place demands") == 1);
}
