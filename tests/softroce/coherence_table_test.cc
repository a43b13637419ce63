// The table of what changes pages under a registration (docs/coherence.md), on a device.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "tests/softroce/loopback_domain.h"
#include "tests/softroce/process.h"
#include "tests/unit/coherence_table.h"
#include "transport/memory/registered_memory.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using namespace rbt::transport::coherence;

namespace {

/// Events per row of the table: few in CI, where every machine is emulated; RBT_COHERENCE_ROUNDS says how many otherwise.
int rounds() {
  const char* const wanted = std::getenv("RBT_COHERENCE_ROUNDS");
  return wanted == nullptr ? 10 : std::atoi(wanted);
}

void reserve_huge_pages() {
  std::ofstream("/proc/sys/vm/nr_hugepages") << 8;
}

}  // namespace

TEST_CASE("Without the loop the device goes on with orphaned pages, and completions say success") {
  reserve_huge_pages();
  LoopbackDomain domain;
  for (const PageChange& one : stale_changes())
    claim_stale(one, domain);
}

TEST_CASE("With the loop nobody uses the old pages, old keys are refused, and a later use has the new pages") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  reserve_huge_pages();
  LoopbackDomain domain;
  for (const PageChange& one : stale_changes())
    claim_coherent(one, domain, *monitor, clock, rounds());
}

TEST_CASE("What leaves the pages in place leaves the device with them, with the loop and without") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  reserve_huge_pages();
  LoopbackDomain domain;
  for (const PageChange& one : harmless_changes())
    claim_harmless(one, domain, *monitor, clock);
}

TEST_CASE("Without a lease, whoever truncates a mapped file leaves the device with orphaned pages") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  LoopbackDomain domain;
  claim_stale_file(domain, *monitor);
}

TEST_CASE("With a lease, whoever truncates or opens the file waits for the fence; both come back when it is closed") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  LoopbackDomain domain;
  claim_coherent_file(domain, *monitor, rounds());
}

TEST_CASE("What is done through a descriptor is seen by nobody") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  reserve_huge_pages();
  LoopbackDomain domain;
  for (const PageChange& one : unseen_changes())
    claim_unseen(one, domain, *monitor, clock);
}

// --- The page cache, which can be registered for reading only. rbt never does --------------------------------------------

namespace {

/// A mapped file on ext4.
struct CachedFile {
  CachedFile() {
    shell(
        "mkdir -p /tmp/ext4 && truncate -s 32M /tmp/ext4.image && mkfs.ext4 -q -F /tmp/ext4.image && "
        "mount -o loop /tmp/ext4.image /tmp/ext4 && head -c 65536 /dev/zero | tr '\\0' . >/tmp/ext4/file");
    fd = ::open("/tmp/ext4/file", O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0);
    void* const at = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(at != MAP_FAILED);
    data = static_cast<std::byte*>(at);
  }
  ~CachedFile() {
    ::munmap(data, kSize);
    ::close(fd);
    shell("umount /tmp/ext4 && rm /tmp/ext4.image");
  }
  [[nodiscard]] MemorySpan span() const { return {.data = data, .size = kSize}; }
  void say(const char* text) const { std::memcpy(data, text, 4); }
  int fd = -1;
  std::byte* data = nullptr;
};

/// Past the page cache, which lets go of its pages for it.
void write_directly(const CachedFile& file) {
  alignas(4096) static std::array<char, 4096> block{};
  block.fill('d');
  const int direct = ::open("/tmp/ext4/file", O_WRONLY | O_DIRECT | O_CLOEXEC);
  REQUIRE(::pwrite(direct, block.data(), block.size(), 0) == static_cast<ssize_t>(block.size()));
  ::close(direct);
  REQUIRE(std::memcmp(file.data, "dddd", 4) == 0);
}

}  // namespace

TEST_CASE("A file on ext4 cannot be registered for writing; for reading it can, and is watched like other memory") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  LoopbackDomain domain;
  const CachedFile file;
  RegisteredMemory writable(file.span(), RemoteAccess::read_write);
  CHECK_FALSE(writable.ensure(domain));
  RegisteredMemory memory(file.span(), RemoteAccess::read);
  REQUIRE(memory.ensure(domain));
  file.say("here");
  REQUIRE(domain.read(0, 4) == "here");
  REQUIRE(::madvise(file.data, kSize, MADV_REMOVE) == 0);
  file.say("mine");
  const std::string read = domain.read(0, 4);
  CHECK((read.size() == 4 && read != "mine"));  // stale, and success

  MemoryRegistration registration(memory);
  const auto region = watched(*monitor, registration, file.span(), clock, {});
  REQUIRE(region->restore());
  for (int round = 0; round < rounds(); ++round) {
    INFO("round " << round);
    file.say("here");
    REQUIRE(domain.read(0, 4) == "here");
    REQUIRE(::madvise(file.data, kSize, MADV_REMOVE) == 0);
    CHECK_FALSE(memory.keys(domain));
    REQUIRE(within(std::chrono::seconds(5), [&] { return region->restore().has_value(); }));
    file.say("mine");
    CHECK(domain.read(0, 4) == "mine");
  }
  CHECK(region->counters().last_change == Change::discarded);
  CHECK(region->counters().blocked_max < std::chrono::seconds(1));
}

TEST_CASE(
    "What is done to a file on ext4 by others: direct writes and holes leave the device with stale pages, unseen") {
  LoopbackDomain domain;
  const CachedFile file;
  RegisteredMemory memory(file.span(), RemoteAccess::read);
  const auto stale = [&](const std::function<void()>& change) {
    memory.fence();
    REQUIRE((memory.ensure(domain) && memory.restore()));
    file.say("here");
    REQUIRE(domain.read(0, 4) == "here");
    change();
    file.say("mine");
    const std::string read = domain.read(0, 4);
    REQUIRE(read.size() == 4);
    return read != "mine";
  };
  CHECK(stale([&] { write_directly(file); }));
  CHECK(stale([&] { REQUIRE(::fallocate(file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kSize) == 0); }));
  CHECK(stale([&] { REQUIRE((::ftruncate(file.fd, 0) == 0 && ::ftruncate(file.fd, kSize) == 0)); }));
  CHECK_FALSE(stale([] { shell("printf other 1<>/tmp/ext4/file"); }));
  CHECK_FALSE(stale([&] { REQUIRE(::posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED) == 0); }));
  CHECK_FALSE(stale([] { shell("sync; echo 3 >/proc/sys/vm/drop_caches"); }));
  CHECK_FALSE(stale([] { shell("cp /tmp/ext4/file /tmp/ext4/new && mv /tmp/ext4/new /tmp/ext4/file"); }));
  CHECK_FALSE(stale([] { shell("rm /tmp/ext4/file"); }));
}
