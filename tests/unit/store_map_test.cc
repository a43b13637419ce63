// The map store over memory that nobody can take away, and over what is no memory at all.

#include <linux/memfd.h>
#include <sys/mman.h>

#include "store_files.h"
#include "store_rig.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

constexpr std::uint64_t kSize = kMiB;

/// A memfd of ours, as another program would pass it on.
struct Memfd {
  explicit Memfd(unsigned flags = MFD_ALLOW_SEALING, std::uint64_t size = kSize)
      : fd(::memfd_create("disk", flags | MFD_CLOEXEC)), path("/proc/self/fd/" + std::to_string(fd)) {
    REQUIRE(fd >= 0);
    REQUIRE(::ftruncate(fd, static_cast<::off_t>(size)) == 0);
    void* const address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(address != MAP_FAILED);
    memory = {static_cast<std::byte*>(address), size};
  }
  ~Memfd() {
    ::munmap(memory.data(), memory.size());
    ::close(fd);
  }
  Memfd(const Memfd&) = delete;
  Memfd& operator=(const Memfd&) = delete;
  [[nodiscard]] std::vector<std::byte> contents(std::uint64_t offset, std::size_t length) const {
    return {memory.begin() + static_cast<std::ptrdiff_t>(offset),
            memory.begin() + static_cast<std::ptrdiff_t>(offset + length)};
  }
  int fd;
  std::string path;
  std::span<std::byte> memory;
};

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

/// As over verbs: packets hold a block.
Lease rdma_lease(StoreRig& rig, std::uint64_t lba, std::uint64_t count, Intent intent) {
  Lease made = rig.lease(StoreRig::range(lba, count), intent);
  made.path_mtu = 4096;
  return made;
}

}  // namespace

TEST_CASE("A lease of a memfd is its own pages, for reads and for writes whose packets hold a block") {
  StoreRig rig;
  Memfd memfd;
  rig.open("map:" + memfd.path + ",block=4096");
  Lease write = rdma_lease(rig, 3, 2, Intent::write);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  REQUIRE(write.segments.size() == 1);
  CHECK(write.segments[0].lkey == rig.domain.last_key);
  const auto data = pattern(8192, 1);
  rig.fill(write, data);
  CHECK(memfd.contents(3 * 4096, 8192) == data);  // its owner sees them before anybody commits
  REQUIRE(rig.finish([&](StoreRequest& request) { return rig.queue->commit(write, Durability::durable, request); }) ==
          StoreStatus::ok);
  rig.queue->release(write);
  Lease read = rdma_lease(rig, 4, 1, Intent::read);
  REQUIRE(rig.acquire(read) == StoreStatus::ok);
  CHECK(rig.contents(read) == std::vector<std::byte>(data.begin() + 4096, data.end()));
  rig.queue->release(read);
  CHECK(rig.queue->bytes_copied() == 0);
  CHECK(rig.buffers().free_bytes() == rig.buffers().size());
  CHECK(rig.domain.last_access == transport::RemoteAccess::none);
}

TEST_CASE("A write whose packets are smaller than a block reaches the memfd when it is committed, not before") {
  StoreRig rig;
  Memfd memfd;
  rig.open("map:" + memfd.path + ",block=4096");
  const auto data = pattern(8192, 2);
  Lease write = rdma_lease(rig, 3, 2, Intent::write);
  write.path_mtu = GENERATE(0U, 1024U, 2048U);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  rig.fill(write, data);
  CHECK(all_zero(memfd.contents(3 * 4096, 8192)));
  REQUIRE(rig.finish([&](StoreRequest& request) { return rig.queue->commit(write, Durability::cached, request); }) ==
          StoreStatus::ok);
  CHECK(memfd.contents(3 * 4096, 8192) == data);
  rig.queue->release(write);
}

TEST_CASE("While a memfd is served nobody can cut it, lengthen it, punch it or write it, and its mappings stay") {
  StoreRig rig;
  Memfd memfd;
  rig.open("map:" + memfd.path);
  CHECK(::ftruncate(memfd.fd, 4096) != 0);
  CHECK(::ftruncate(memfd.fd, 2 * kSize) != 0);
  CHECK(::fallocate(memfd.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0);
  CHECK(::madvise(memfd.memory.data(), 4096, MADV_REMOVE) != 0);
  CHECK(::pwrite(memfd.fd, "x", 1, 0) < 0);
  CHECK(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.fd, 0) == MAP_FAILED);
  memfd.memory[0] = std::byte{7};
  CHECK(rig.must_read(0, 1)[0] == std::byte{7});
}

TEST_CASE("A memfd that was served can be served again for reading, and says why not for writing") {
  StoreRig rig;
  Memfd memfd;
  const auto data = pattern(4096, 3);
  rig.open("map:" + memfd.path);
  REQUIRE(rig.write(8, data) == StoreStatus::ok);
  rig.close();
  rig.open("map:" + memfd.path + ",readonly");
  CHECK(rig.must_read(8, 8) == data);
  CHECK_FALSE(rig.domain.last_span.writable);
  Lease write = rdma_lease(rig, 0, 1, Intent::write);
  CHECK(rig.acquire(write) == StoreStatus::read_only);
  CHECK(rig.discard({rig.range(0, 1)}) == StoreStatus::read_only);
  rig.close();
  rig.open("map:" + memfd.path);
  CHECK(rig.store->explain().find("sealed against new writers") != std::string::npos);
  CHECK(rig.must_read(8, 8) == data);
}

TEST_CASE("A memfd that may not be sealed is served by way of buffers, and the log says why") {
  StoreRig rig;
  Memfd memfd(0);
  rig.open("map:" + memfd.path);
  CHECK(rig.domain.registrations == 1);  // the buffers, and nothing else
  CHECK(rig.journal.count("MFD_ALLOW_SEALING") == 1);
  const auto data = pattern(8192, 4);
  REQUIRE(rig.write(16, data) == StoreStatus::ok);
  CHECK(memfd.contents(16 * 512, 8192) == data);
  CHECK(rig.must_read(16, 16) == data);
}

TEST_CASE("Discard and write zeroes keep a memfd's pages where they are") {
  StoreRig rig;
  Memfd memfd;
  rig.open("map:" + memfd.path);
  REQUIRE(rig.write(0, pattern(64 * kKiB, 5)) == StoreStatus::ok);
  REQUIRE(rig.write(1024, pattern(64 * kKiB, 6)) == StoreStatus::ok);
  struct stat before {};
  REQUIRE(::fstat(memfd.fd, &before) == 0);
  REQUIRE(rig.discard({rig.range(0, 128), rig.range(5, 0)}) == StoreStatus::ok);
  REQUIRE(rig.write_zeroes(rig.range(1024, 127), StoreQueue::Deallocate::yes, Durability::durable) == StoreStatus::ok);
  CHECK(all_zero(memfd.contents(0, 64 * kKiB)));
  CHECK(all_zero(memfd.contents(1024 * 512, 127 * 512)));
  CHECK_FALSE(all_zero(memfd.contents(1151 * 512, 512)));  // not a block more
  struct stat after {};
  REQUIRE(::fstat(memfd.fd, &after) == 0);
  CHECK(after.st_blocks == before.st_blocks);
}

TEST_CASE("A device that cannot register the memory is served by way of buffers, others in place") {
  StoreRig rig;
  Memfd memfd;
  rig.open("map:" + memfd.path + ",block=4096");
  KeyDomain refusing;
  REQUIRE(rig.buffers().memory().ensure(refusing));
  refusing.refuse = true;
  REQUIRE(rig.store->prepare(refusing, 4096));
  REQUIRE(rig.store->prepare(refusing, 4096));
  CHECK(rig.journal.count("cannot be registered with keys: RLIMIT_MEMLOCK is 64 KiB") == 1);
  const auto data = pattern(4096, 7);
  REQUIRE(rig.write(5, data) == StoreStatus::ok);
  Lease read = rdma_lease(rig, 5, 1, Intent::read);
  read.domain = &refusing;
  REQUIRE(rig.acquire(read) == StoreStatus::ok);
  CHECK(rig.contents(read) == data);
  CHECK(rig.buffers().free_bytes() != rig.buffers().size());
  rig.queue->release(read);
  Lease other = rdma_lease(rig, 5, 1, Intent::read);
  REQUIRE(rig.acquire(other) == StoreStatus::ok);
  CHECK(rig.buffers().free_bytes() == rig.buffers().size());
  rig.queue->release(other);
}

TEST_CASE("Readers of a memfd wait for the writer of their blocks, in place and by way of a buffer") {
  StoreRig rig;
  Memfd memfd;
  rig.open("map:" + memfd.path + ",block=4096");
  KeyDomain refusing;
  REQUIRE(rig.buffers().memory().ensure(refusing));
  refusing.refuse = true;
  REQUIRE(rig.store->prepare(refusing, 4096));
  Lease write = rdma_lease(rig, 5, 2, Intent::write);
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  Lease in_place = rdma_lease(rig, 6, 1, Intent::read);
  Lease buffered = rdma_lease(rig, 6, 1, Intent::read);
  buffered.domain = &refusing;
  Waited first;
  Waited second;
  first.began(rig.queue->acquire(in_place, first));
  second.began(rig.queue->acquire(buffered, second));
  CHECK_FALSE(first.done());
  CHECK_FALSE(second.done());
  const auto data = pattern(8192, 8);
  rig.fill(write, data);
  REQUIRE(rig.finish([&](StoreRequest& request) { return rig.queue->commit(write, Durability::cached, request); }) ==
          StoreStatus::ok);
  rig.queue->release(write);
  rig.run_until([&] { return first.done() && second.done(); });
  CHECK(rig.contents(in_place) == std::vector<std::byte>(data.begin() + 4096, data.end()));
  CHECK(rig.contents(in_place) == rig.contents(buffered));
  rig.queue->release(in_place);
  rig.queue->release(buffered);
}

TEST_CASE("A plain file is served as file: does, and the log says once why not better") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  rig.open("map:" + path + ",block=4096");
  CHECK(rig.domain.registrations == 1);
  CHECK(rig.journal.count("belong to the page cache") == 1);
  CHECK(rig.store->explain().find("served as file: does") != std::string::npos);
  const auto data = pattern(8192, 9);
  REQUIRE(rig.write(4, data, Durability::durable) == StoreStatus::ok);
  CHECK(rig.must_read(4, 2) == data);
  REQUIRE(rig.flush() == StoreStatus::ok);
  const Geometry map = rig.store->geometry();
  const Identity identity = rig.store->identity();
  rig.close();
  rig.open("file:" + path + ",block=4096");
  CHECK(rig.must_read(4, 2) == data);
  CHECK(rig.store->identity() == identity);
  CHECK(rig.store->geometry().write_cache == map.write_cache);
  CHECK(rig.store->geometry().discard == map.discard);
}

TEST_CASE("What cannot be served is refused with the reason, in the words of map:") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", 1000);
  CHECK(rig.open_error("map:" + path).starts_with("store 'map:" + path + "': its 1000 bytes are not whole blocks"));
  CHECK(rig.open_error("map:" + directory.file("none")).starts_with("store 'map:" + directory.file("none")));
  CHECK(rig.open_error("map:/dev/null").find("none of persistent memory (/dev/daxN.N)") != std::string::npos);
  CHECK(rig.open_error("map:" + path + ",direct=on").find("'direct' is no option of map") != std::string::npos);
  CHECK(rig.open_error("map:").find("the path of a memfd, a file or a devdax device is missing") != std::string::npos);
  Memfd memfd;
  rig.open("map:" + memfd.path);
  CHECK(rig.open_error("map:" + memfd.path).find("it is locked by another program") != std::string::npos);
}

TEST_CASE("A memfd keeps its identity as long as it lives") {
  StoreRig rig;
  Memfd memfd;
  rig.open("map:" + memfd.path + ",readonly");
  rig.close();
  rig.open("map:" + memfd.path);
  const Identity first = rig.store->identity();
  rig.close();
  rig.open("map:" + memfd.path + ",readonly");
  CHECK(rig.store->identity() == first);
  rig.close();
  Memfd other;
  rig.open("map:" + other.path);
  CHECK(rig.store->identity() != first);
}
