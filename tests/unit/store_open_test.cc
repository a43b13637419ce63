// Opening files and block devices: who may, what they are called, what people are told.

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include <array>
#include <cstddef>
#include <thread>

#include "store_files.h"
#include "store_rig.h"
#include "target/store/identity.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

constexpr const char* kUuid = "6c0a1e2b-0f0c-4b0e-9a51-3d5d8a3a9c11";

std::string uuid_text(const Store& store) {
  return uuid_of(store.identity()).to_string();
}

/// Opens and closes it again.
std::string identity_at(StoreRig& rig, const std::string& spec) {
  rig.open(spec);
  const std::string uuid = uuid_text(*rig.store);
  rig.close();
  return uuid;
}

void run(const std::string& command) {
  REQUIRE(std::system(command.c_str()) == 0);
}  // NOLINT: paths of our own

bool keeps_attributes(const TemporaryDirectory& directory) {
  const std::string path = directory.make("probe", 1);
  return ::setxattr(path.c_str(), "user.rbt.probe", "x", 1, 0) == 0;
}

}  // namespace

TEST_CASE("A file has the same identity whenever it is opened, also after it was renamed or grew") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  const std::string first = identity_at(rig, "file:" + path);
  CHECK(identity_at(rig, "file:" + path) == first);
  CHECK(identity_at(rig, "file:" + path + ",readonly,block=4096") == first);
  std::filesystem::resize_file(path, 2 * kMiB);
  if (keeps_attributes(directory)) {
    std::filesystem::rename(path, directory.file("other"));
    CHECK(identity_at(rig, "file:" + directory.file("other")) == first);
    CHECK_FALSE(std::filesystem::exists(path + ".rbt-id"));
  }
}

TEST_CASE("Two files have two identities, and a copy with all attributes is a new disk") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  const std::string first = identity_at(rig, "file:" + path);
  CHECK(identity_at(rig, "file:" + directory.make("other", kMiB)) != first);
  run("cp -a " + path + " " + directory.file("copy"));
  if (std::filesystem::exists(path + ".rbt-id")) run("cp -a " + path + ".rbt-id " + directory.file("copy") + ".rbt-id");
  const std::string copy = identity_at(rig, "file:" + directory.file("copy"));
  CHECK(copy != first);
  CHECK(rig.journal.count("is the identity of another file") == 1);
  CHECK(rig.journal.count("give uuid=" + first) == 1);
  CHECK(identity_at(rig, "file:" + directory.file("copy")) == copy);
  CHECK(identity_at(rig, "file:" + path) == first);
  CHECK(rig.journal.count("is the identity of another file") == 1);
}

TEST_CASE("A file whose identity was copied from another and that may not be changed gets one of its own") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  const std::string first = identity_at(rig, "file:" + path);
  run("cp -a " + path + " " + directory.file("copy"));
  if (std::filesystem::exists(path + ".rbt-id")) run("cp -a " + path + ".rbt-id " + directory.file("copy") + ".rbt-id");
  const std::string copy = identity_at(rig, "file:" + directory.file("copy") + ",readonly");
  CHECK(copy != first);
  CHECK(identity_at(rig, "file:" + directory.file("copy") + ",readonly") == copy);
}

TEST_CASE("A given UUID is the identity, and changes nothing that is kept") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  const std::string kept = identity_at(rig, "file:" + path);
  CHECK(identity_at(rig, "file:" + path + ",uuid=" + kUuid) == kUuid);
  CHECK(identity_at(rig, "file:" + path) == kept);
  CHECK(rig.open_error("file:" + path + ",uuid=12345").find("'12345' is not a UUID") != std::string::npos);
}

TEST_CASE("A UUID that an administrator has put into the attribute is the identity") {
  StoreRig rig;
  TemporaryDirectory directory;
  if (!keeps_attributes(directory)) return;
  const std::string path = directory.make("image", kMiB);
  REQUIRE(::setxattr(path.c_str(), "user.rbt.uuid", kUuid, std::strlen(kUuid), 0) == 0);
  CHECK(identity_at(rig, "file:" + path) == kUuid);
  REQUIRE(::setxattr(path.c_str(), "user.rbt.uuid", "nonsense", 8, 0) == 0);
  CHECK(identity_at(rig, "file:" + path) != kUuid);
  CHECK(rig.journal.count("holds no UUID: 'nonsense'") == 1);
}

TEST_CASE("Where a file system keeps no attributes the identity is kept beside the file") {
  StoreRig rig;
  TemporaryDirectory directory;
  if (!directory.mount("ramfs", "")) {
    WARN("not allowed to mount a ramfs");
    return;
  }
  const std::string path = directory.make("image", kMiB);
  const std::string first = identity_at(rig, "file:" + path);
  CHECK(std::filesystem::exists(path + ".rbt-id"));
  CHECK(identity_at(rig, "file:" + path) == first);
  std::filesystem::create_symlink(path, directory.file("link"));
  CHECK(identity_at(rig, "file:" + directory.file("link")) == first);
}

TEST_CASE("A read-only file without a record has an identity that follows from where it lies") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  const std::string first = identity_at(rig, "file:" + path + ",readonly");
  CHECK(identity_at(rig, "file:" + path + ",readonly") == first);
  CHECK(identity_at(rig, "file:" + directory.make("other", kMiB) + ",readonly") != first);
  char none[1];
  CHECK(::getxattr(path.c_str(), "user.rbt.uuid", none, 0) < 0);  // nothing was changed
}

TEST_CASE("A file is served once, unless everybody only reads it") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  {
    const auto first = rig.try_open("file:" + path).value();
    const auto second = rig.try_open("file:" + path);
    REQUIRE_FALSE(second);
    CHECK(second.error().kind() == ErrorKind::in_use);
    CHECK(second.error().message().starts_with("store 'file:" + path +
                                               "': it is locked by another program: another rbt-target"));
    CHECK_FALSE(rig.try_open("file:" + path + ",readonly"));
  }
  const auto reader = rig.try_open("file:" + path + ",readonly").value();
  CHECK(rig.try_open("file:" + path + ",readonly"));
  CHECK_FALSE(rig.try_open("file:" + path));
}

TEST_CASE("A file that a killed program has not let go of yet is waited for, as long as nobody alive has it open") {
  // Open in nobody's hands: in flight in a socket, as it is in the ring of a process that is gone.
  struct Releasing final : Logger {
    Releasing() : Logger(LogLevel::warning) {}
    void write(LogLevel, std::string message) override {
      said = std::move(message);
      for (const int end : ends)
        ::close(end);
    }
    std::array<int, 2> ends{};
    std::string said;
  } logger;
  SystemClock clock;
  Random random(1);
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, logger.ends.data()) == 0);
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct flock whole {};
  whole.l_type = F_WRLCK;
  REQUIRE(::fcntl(file, F_OFD_SETLK, &whole) == 0);
  char byte = 0;
  iovec data{&byte, 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof file)> control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof file);
  std::memcpy(CMSG_DATA(header), &file, sizeof file);
  REQUIRE(::sendmsg(logger.ends[0], &message, 0) == 1);
  ::close(file);
  CHECK(make_store("file:" + path + ",direct=off", {clock, random, logger}).has_value());
  CHECK(logger.said.find("no program that can be seen has it open: waiting") != std::string::npos);
}

TEST_CASE("What cannot be served says why and what to do") {
  StoreRig rig;
  TemporaryDirectory directory;
  CHECK(rig.open_error("file:") == "store 'file:': the path of a file or a block device is missing\n  file:\n       ^");
  CHECK(rig.open_error("file:/no/such/file") ==
        "store 'file:/no/such/file': opening it: No such file or directory "
        "(ENOENT); make it, for instance with `truncate -s 10G PATH`");
  CHECK(rig.open_error("file:/tmp").ends_with("it is a directory: a regular file or a block device can be served"));
  CHECK(rig.open_error("file:/dev/null")
            .ends_with("it is neither file nor disk: a regular file or a block device can be served"));
  REQUIRE(::mkfifo(directory.file("fifo").c_str(), 0600) == 0);
  CHECK(rig.open_error("file:" + directory.file("fifo")).find("neither file nor disk") != std::string::npos);
  CHECK(rig.open_error("file:" + directory.make("empty", 0))
            .ends_with("it is empty: give it a size, for instance with `truncate -s 10G PATH`"));
  CHECK(
      rig.open_error("file:" + directory.make("odd", 1000))
          .ends_with(
              "its 1000 bytes are not whole blocks of 512: truncate -s 1024 makes it longer without losing anything"));
  CHECK(rig.open_error("file:" + directory.make("odd4", 4608) + ",block=4k")
            .ends_with(
                "its 4608 bytes are not whole blocks of 4096: block=512 serves it as it is, truncate -s 8192 makes "
                "it longer without losing anything"));
  CHECK(rig.open_error("file:" + directory.file("odd") + ",readonly=1").find("'readonly' stands alone") !=
        std::string::npos);
}

TEST_CASE("A comma in the path of a real file works") {
  StoreRig rig;
  TemporaryDirectory directory;
  static_cast<void>(directory.make("a,b", kMiB));
  rig.open("file:" + directory.file("a\\,b") + ",block=4096");
  CHECK(rig.store->geometry().blocks == Blocks(256));
}

TEST_CASE("A write cache is admitted, because a file has one until it is flushed") {
  StoreRig rig;
  TemporaryDirectory directory;
  CHECK(rig.try_open("file:" + directory.make("image", kMiB)).value()->geometry().write_cache);
}

TEST_CASE("A block device is served whole, and to nobody else") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string backing = directory.make("backing", 16 * kMiB);
  LoopDevice loop(backing);
  if (loop.path.empty()) {
    WARN("no loop device to be had");
    return;
  }
  const std::string spec = "file:" + loop.path;
  rig.open(spec);
  CHECK(rig.store->geometry().blocks == Blocks(16 * kMiB / 512));
  const std::string identity = uuid_text(*rig.store);
  const auto data = pattern(kMiB, 3);
  REQUIRE(rig.write(2048, data) == StoreStatus::ok);
  REQUIRE(rig.write(4096, data, Durability::durable) == StoreStatus::ok);
  CHECK(rig.must_read(2048, 2048) == data);
  CHECK(rig.flush() == StoreStatus::ok);
  const auto refused = rig.try_open(spec);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().kind() == ErrorKind::in_use);
  CHECK(refused.error().message().find("another program has it to itself: another rbt-target") != std::string::npos);
  const auto allocated = allocated_bytes(backing);
  REQUIRE(rig.discard({rig.range(2048, 2048)}) == StoreStatus::ok);
  if (rig.store->geometry().discard == Ability::native) CHECK(allocated_bytes(backing) < allocated);
  REQUIRE(rig.write_zeroes(rig.range(4096, 2048)) == StoreStatus::ok);
  for (const std::byte b : rig.must_read(4096, 2048))
    REQUIRE(b == std::byte{0});
  rig.close();
  CHECK(identity_at(rig, spec) == identity);
}

TEST_CASE("A block device that shrinks fails what lies behind its end as out of range, and one that grows is larger") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string backing = directory.make("backing", 16 * kMiB);
  LoopDevice loop(backing);
  if (loop.path.empty()) {
    WARN("no loop device to be had");
    return;
  }
  rig.open("file:" + loop.path);
  rig.queue.reset();
  CountingObserver observer;
  rig.store->observe(&observer);
  rig.queue = rig.open_queue();
  std::filesystem::resize_file(backing, 8 * kMiB);
  loop.take_new_size();
  std::vector<std::byte> bytes;
  CHECK(rig.read(20000, 8, bytes) == StoreStatus::out_of_range);
  CHECK(rig.write(20000, pattern(4096, 1)) == StoreStatus::out_of_range);
  CHECK(observer.calls == 1);
  CHECK(rig.store->geometry().blocks == Blocks(16384));
  std::filesystem::resize_file(backing, 32 * kMiB);
  loop.take_new_size();
  rig.run_until([&] { return observer.calls == 2; });
  CHECK(rig.write(60000, pattern(4096, 1)) == StoreStatus::ok);
}

TEST_CASE("A mounted block device is refused, and the message says where it is mounted") {
  StoreRig rig;
  TemporaryDirectory directory;
  LoopDevice loop(directory.make("backing", 16 * kMiB));
  if (loop.path.empty()) {
    WARN("no loop device to be had");
    return;
  }
  run("mkfs.ext4 -q " + loop.path);
  const std::string place = directory.file("mnt");
  REQUIRE(::mkdir(place.c_str(), 0700) == 0);
  REQUIRE(::mount(loop.path.c_str(), place.c_str(), "ext4", 0, "") == 0);
  const auto refused = rig.try_open("file:" + loop.path);
  ::umount2(place.c_str(), 0);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message() == "store 'file:" + loop.path +
                                         "': opening it: Device or resource busy (EBUSY); it is "
                                         "mounted on " +
                                         place + ": take it out of there first");
}

TEST_CASE("Where io_uring is refused threads read and write, and the log says what would change that") {
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  // A filter like a container's. It is this thread's own, and that of threads it starts.
  std::string failed;
  Journal journal;
  std::thread([&] {
    const std::array<sock_filter, 4> program{{
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, __NR_io_uring_setup},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    }};
    const sock_fprog filter{program.size(), const_cast<sock_filter*>(program.data())};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
      failed = "no seccomp filter";
      return;
    }
    SystemClock clock;
    Random random(1);
    auto store = make_store("file:" + path, {clock, random, journal}).value();
    auto reactor = transport::Reactor::create(clock, journal).value();
    auto buffers = transport::BufferPool::create(Bytes(2 * kMiB), transport::RemoteAccess::none, {}).value();
    auto queue = store->open_queue({*reactor, *buffers}).value();
    Lease lease;
    lease.range = StoreRig::range(0, 8);
    Waited request;
    request.began(queue->acquire(lease, request));
    if (!reactor->run_until([&] { return request.done(); }, clock.now() + std::chrono::seconds(30)))
      failed = "no answer";
    queue->release(lease);
  }).join();
  CHECK(failed.empty());
  CHECK(journal.count("setting up io_uring: Operation not permitted (EPERM); see kernel.io_uring_disabled") == 1);
}
