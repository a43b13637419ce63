// The map store where a CPU copies and may be killed in the middle: hosts' data comes into the file's pages by way of the
// kernel, once.

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <thread>

#include "store_files.h"
#include "store_rig.h"
#include "tests/sim/tags.h"
#include "transport/coherence/monitor.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;
using transport::coherence::Monitor;

namespace {

constexpr std::uint64_t kBlock = 4096;
constexpr std::uint64_t kSize = kMiB;

/// A host's memory, as a fabric that copies has it mapped. It can become shorter under the mapping.
struct HostMemory {
  HostMemory() : fd(::memfd_create("host", MFD_CLOEXEC)) {
    REQUIRE(fd >= 0);
    REQUIRE(::ftruncate(fd, kSize) == 0);
    void* const address = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(address != MAP_FAILED);
    bytes = {static_cast<std::byte*>(address), kSize};
  }
  ~HostMemory() {
    ::munmap(bytes.data(), bytes.size());
    ::close(fd);
  }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  /// `data` at `offset`.
  std::span<const std::byte> put(std::span<const std::byte> data, std::size_t offset = 0) const {
    std::copy(data.begin(), data.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
    return bytes.subspan(offset, data.size());
  }
  int fd;
  std::span<std::byte> bytes;
};

/// A file on tmpfs, served to hosts over a fabric that uses landings. `room`: the size of a file system of its own.
struct Served {
  explicit Served(const std::string& options = "", const std::string& room = "") : directory("/dev/shm") {
    mounted = room.empty() || directory.mount("tmpfs", ("size=" + room).c_str());
    if (!mounted) return;
    monitor = std::move(Monitor::start(clock, journal).value());
    rig.monitor = monitor.get();
    rig.domain.lands = true;
    rig.open("map:" + directory.make("image", kSize) + ",block=4096" + options);
  }
  ~Served() { rig.close(); }

  /// As over shm: nothing is cut into packets.
  [[nodiscard]] Lease lend(std::uint64_t lba, std::uint64_t count) {
    Lease lease = rig.lease(StoreRig::range(lba, count), Intent::write);
    REQUIRE(rig.acquire(lease) == StoreStatus::ok);
    return lease;
  }
  /// Whether a lease of that block is on the file itself.
  [[nodiscard]] bool in_place(std::uint64_t lba, Intent intent) {
    Lease lease = rig.lease(StoreRig::range(lba, 1), intent);
    REQUIRE(rig.acquire(lease) == StoreStatus::ok);
    const bool is = in_place();
    rig.queue->release(lease);
    return is;
  }
  [[nodiscard]] bool in_place() { return rig.buffers().free_bytes() == rig.buffers().size(); }
  [[nodiscard]] std::size_t land(const Lease& lease, std::span<const std::byte> data) {
    REQUIRE(rig.domain.last_span.landing != nullptr);
    REQUIRE(lease.segments.size() == 1);
    REQUIRE(lease.segments[0].length == data.size());
    return rig.domain.last_span.landing->land(lease.segments[0].data, data);
  }
  StoreStatus commit(Lease& lease) {
    const auto status =
        rig.finish([&](StoreRequest& request) { return rig.queue->commit(lease, Durability::durable, request); });
    rig.queue->release(lease);
    return status;
  }
  TemporaryDirectory directory;
  bool mounted = false;
  SystemClock clock;  // the monitor's: it outlives the rig
  Journal journal;    // the same, of its threads
  std::unique_ptr<Monitor> monitor;
  StoreRig rig;
};

}  // namespace

TEST_CASE("A write that a CPU copies lands in the file's pages without a buffer, and no copy of the store's") {
  Served served;
  const HostMemory host;
  const auto data = pattern(5 * kBlock, 1);
  Lease lease = served.lend(7, 5);
  CHECK(served.in_place());
  const std::size_t at =
      GENERATE(0U, kBlock, 512U, 4095U);  // the last two: every block lies in two pages of the host's
  CHECK(served.land(lease, host.put(data, at)) == (at % kBlock == 0 ? 1 : 2) * data.size());
  CHECK(served.commit(lease) == StoreStatus::ok);
  CHECK(served.rig.must_read(7, 5) == data);
  CHECK(served.rig.queue->bytes_copied() == 0);
  CHECK(served.rig.must_read(6, 1) == std::vector<std::byte>(kBlock));
  CHECK(served.rig.must_read(12, 1) == std::vector<std::byte>(kBlock));
}

TEST_CASE("A landing works for blocks smaller than a page, and in a sealed memfd") {
  const int fd = ::memfd_create("disk", MFD_ALLOW_SEALING | MFD_CLOEXEC);
  REQUIRE(::ftruncate(fd, kSize) == 0);
  StoreRig rig;
  rig.domain.lands = true;
  rig.open("map:/proc/self/fd/" + std::to_string(fd));
  ::close(fd);
  const HostMemory host;
  const auto data = pattern(11 * 512, 2);
  const std::size_t at = GENERATE(0U, 512U, 3 * 512U, 100U);  // the last one: some blocks lie in two pages
  Lease lease = rig.lease(StoreRig::range(5, 11), Intent::write);
  REQUIRE(rig.acquire(lease) == StoreStatus::ok);
  CHECK(rig.buffers().free_bytes() == rig.buffers().size());
  CHECK(rig.domain.last_span.landing->land(lease.segments[0].data, host.put(data, at)) ==
        (at % 512 == 0 ? 1 : 2) * data.size());
  CHECK(rig.finish([&](StoreRequest& request) { return rig.queue->commit(lease, Durability::cached, request); }) ==
        StoreStatus::ok);
  rig.queue->release(lease);
  CHECK(rig.must_read(5, 11) == data);
}

TEST_CASE("Who needs no landing has none, and what our own CPU writes takes a buffer as ever") {
  SECTION("atomic=in-place copies anyhow") {
    Served served(",atomic=in-place");
    CHECK(served.rig.domain.last_span.landing == nullptr);
  }
  SECTION("a lease for the CPU") {
    Served served;
    Lease lease = served.rig.lease(StoreRig::range(3, 1), Intent::write);
    lease.domain = nullptr;
    REQUIRE(served.rig.acquire(lease) == StoreStatus::ok);
    CHECK_FALSE(served.in_place());
    served.rig.queue->release(lease);
  }
}

TEST_CASE("Host memory that is gone costs its connection and no signal, and leaves blocks whole") {
  Served served;
  const HostMemory host;
  const auto before = pattern(4 * kBlock, 3);
  const auto after = pattern(4 * kBlock, 4);
  REQUIRE(served.rig.write(8, before) == StoreStatus::ok);
  Lease lease = served.lend(8, 4);
  const auto data = host.put(after);
  REQUIRE(::ftruncate(host.fd, 2 * kBlock) == 0);
  CHECK(served.land(lease, data) == 0);
  served.rig.queue->release(lease);  // the connection is over
  const auto now = served.rig.must_read(8, 4);
  for (std::size_t at = 0; at < now.size(); at += kBlock)
    CHECK(std::memcmp(&now[at], at < 2 * kBlock ? &after[at] : &before[at], kBlock) == 0);
  Lease next = served.lend(8, 2);
  CHECK(served.land(next, data.first(2 * kBlock)) == 2 * kBlock);
  CHECK(served.commit(next) == StoreStatus::ok);
}

TEST_CASE("A full file system is no success, also in the middle of a write, and no reason to lose the host") {
  Served served("", "64k");
  if (!served.mounted) {
    WARN("this user may not mount a tmpfs");
    return;
  }
  const HostMemory host;
  const auto data = pattern(32 * kBlock, 5);
  Lease lease = served.lend(0, 32);
  Lease other = served.lend(64, 1);
  CHECK(served.land(lease, host.put(data)) == data.size());  // taken: the connection lives
  CHECK(served.land(other, host.put(pattern(kBlock, 6), kSize / 2)) == kBlock);
  CHECK(served.rig.journal.count("No space left") == 1);  // at most one line a second
  SECTION("whoever commits hears of it, each of his own") {
    CHECK(served.commit(lease) == StoreStatus::no_space);
    CHECK(served.commit(other) == StoreStatus::no_space);
  }
  SECTION("whoever does not leaves nothing to the next one") {
    served.rig.queue->release(lease);
    served.rig.queue->release(other);
  }
  // What was there can be written: it needs no room.
  Lease again = served.lend(0, 4);
  CHECK(served.land(again, host.put(pattern(4 * kBlock, 7))) == 4 * kBlock);
  CHECK(served.commit(again) == StoreStatus::ok);
  CHECK(served.rig.must_read(0, 4) == pattern(4 * kBlock, 7));
  CHECK(served.rig.must_read(4, 4) == std::vector(data.begin() + 4 * kBlock, data.begin() + 8 * kBlock));
}

TEST_CASE("A hole on a full file system is read as zeroes, which take no room, and what is there in place") {
  Served served("", "64k");
  if (!served.mounted) {
    WARN("this user may not mount a tmpfs");
    return;
  }
  const HostMemory host;
  Lease lease = served.lend(0, 32);
  CHECK(served.land(lease, host.put(pattern(32 * kBlock, 5))) == 32 * kBlock);
  CHECK(served.commit(lease) == StoreStatus::no_space);
  CHECK(served.rig.must_read(64, 8) == std::vector<std::byte>(8 * kBlock));
  CHECK(served.in_place(0, Intent::read));
  CHECK_FALSE(served.in_place(64, Intent::read));
}

TEST_CASE("A file is read by way of a buffer where it has holes, and in place as soon as it has none") {
  Served served;
  const std::uint64_t blocks = kSize / kBlock;
  CHECK_FALSE(served.in_place(blocks - 1, Intent::read));
  for (std::uint64_t lba = 0; lba < blocks; lba += 32)
    REQUIRE(served.rig.write(lba, pattern(32 * kBlock, lba)) == StoreStatus::ok);
  CHECK(served.in_place(blocks - 1, Intent::read));
  CHECK(served.in_place(0, Intent::read));
}

TEST_CASE("A file that has grown beyond what is mapped has holes wherever it has, however much of it is there") {
  Served served;
  const std::string path = served.directory.file("image");
  {  // somebody else: waits for the lease
    bool written = false;
    std::thread other([&] {
      const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
      const auto data = pattern(2 * kSize, 3);
      written = ::pwrite(fd, data.data(), data.size(), kSize) == static_cast<ssize_t>(data.size());
      ::close(fd);
    });
    struct stat about {};
    while (::stat(path.c_str(), &about) != 0 || about.st_size != 3 * kSize || !served.in_place(0, Intent::write))
      static_cast<void>(
          served.rig.reactor().run_until([] { return false; }, served.clock.now() + std::chrono::milliseconds(5)));
    other.join();
    CHECK(written);
  }
  CHECK_FALSE(served.in_place(1, Intent::read));
}

namespace {

enum class Way { lands, lands_across_pages, copies };

constexpr std::uint64_t kWritten = 64;  // blocks

/// Another process: writes the same blocks again and again, with one of two tags in turn, and says so.
[[noreturn]] void write_until_killed(const std::string& path, Way way, std::uint64_t tag, int written) {
  SystemClock clock;
  Journal journal;
  const auto monitor = Monitor::start(clock, journal).value();
  StoreRig rig;
  rig.monitor = monitor.get();
  rig.domain.lands = way != Way::copies;
  rig.open("map:" + path + ",block=4096" + (way == Way::copies ? ",atomic=in-place" : ""));
  const HostMemory host;
  std::array<std::span<std::byte>, 2> sources;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    sources[i] = host.bytes.subspan(i * kSize / 2 + (way == Way::lands_across_pages ? 1024 : 0), kWritten * kBlock);
    rbt::test::put_tag(sources[i], tag + i);
  }
  for (std::size_t turn = 0;; ++turn) {
    const std::span<const std::byte> data = sources[turn % 2];
    ::madvise(host.bytes.data(), host.bytes.size(), MADV_DONTNEED);  // another's: the kernel has to look for each page
    Lease lease = rig.lease(StoreRig::range(0, kWritten), Intent::write);
    if (rig.acquire(lease) != StoreStatus::ok) ::_exit(1);
    if (way == Way::copies)
      std::memcpy(lease.segments[0].data, data.data(), data.size());
    else if (rig.domain.last_span.landing->land(lease.segments[0].data, data) == 0)
      ::_exit(2);
    rig.queue->release(lease);
    if (turn < 8 && ::write(written, &turn, 1) != 1) ::_exit(3);
  }
}

/// How many blocks are of two writes after `kills`, or fewer if there are some.
int torn_by_kills(Way way, int kills) {
  const TemporaryDirectory directory("/dev/shm");
  const std::string path = directory.make("image", kSize);
  Random random(static_cast<std::uint64_t>(way));
  int torn = 0;
  for (int kill = 0; kill < kills && torn == 0; ++kill) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) write_until_killed(path, way, 1 + 2 * static_cast<std::uint64_t>(kill), ends[1]);
    ::close(ends[1]);
    char one = 0;
    for (auto left = 1 + random.below(8); left != 0; --left)
      REQUIRE(::read(ends[0], &one, 1) == 1);
    ::usleep(static_cast<useconds_t>(random.below(500)));
    ::kill(child, SIGKILL);
    ::close(ends[0]);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
    std::ifstream image(path, std::ios::binary);
    std::vector<std::byte> block(kBlock);
    for (std::uint64_t lba = 0; lba < kWritten; ++lba) {
      REQUIRE(image.read(reinterpret_cast<char*>(block.data()), kBlock));
      torn += rbt::test::tag_of(block) ? 0 : 1;
    }
  }
  return torn;
}

}  // namespace

TEST_CASE(
    "A process that is killed while data lands leaves every block whole, and one that copies it itself does not") {
  CHECK(torn_by_kills(Way::lands, 15) == 0);
  CHECK(torn_by_kills(Way::lands_across_pages, 15) == 0);
  CHECK(torn_by_kills(Way::copies, 1000) > 0);  // so that this can fail
}
