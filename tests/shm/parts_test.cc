// The parts of the shm fabric on their own: rings, keys, mappings, socket files.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <fstream>
#include <map>

#include "common/random.h"
#include "tests/shm/scratch.h"
#include "transport/shm/address.h"
#include "transport/shm/key_table.h"
#include "transport/shm/memory.h"
#include "transport/shm/remote_memory.h"
#include "transport/shm/ring.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using namespace rbt::transport::shm;

namespace {

Descriptor make_memfd(std::size_t size, int seals) {
  Descriptor fd(::memfd_create("parts", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(fd.valid());
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  if (seals != 0) REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

struct RingPair {
  RingPair() {
    Descriptor fd;
    auto created = RingMemory::create(sizes, fd);
    REQUIRE(created.has_value());
    mine = *created;
    auto attached = RingMemory::attach(sizes, fd);
    REQUIRE(attached.has_value());
    theirs = *attached;
  }
  RingMemory::Sizes sizes{64, 128};
  std::shared_ptr<RingMemory> mine;
  std::shared_ptr<RingMemory> theirs;
};

void put(Producer& producer, std::string_view text) {
  REQUIRE(producer.reserve(slots_for(static_cast<std::uint32_t>(text.size()))) == Producer::Room::enough);
  producer.begin(SlotKind::send, static_cast<std::uint32_t>(text.size()), 0);
  producer.append(reinterpret_cast<const std::byte*>(text.data()), text.size());
  producer.publish();
}

std::string get(Consumer& consumer) {
  Consumer::Message message;
  REQUIRE(consumer.peek(message) == Consumer::Peek::message);
  std::string text(message.length, '\0');
  consumer.take(message, reinterpret_cast<std::byte*>(text.data()));
  consumer.publish();
  return text;
}

AnnounceMessage announcement(std::uint32_t key, std::uint64_t length, RemoteAccess access = RemoteAccess::read_write) {
  AnnounceMessage message;
  message.key = key;
  message.access = static_cast<std::uint32_t>(access);
  message.base = 0x10000;
  message.length = length;
  return message;
}

}  // namespace

TEST_CASE("Messages of every length cross a ring for many laps and come out as they went in") {
  RingPair ring;
  Producer producer(*ring.mine, kConnector);
  Consumer consumer(*ring.theirs, kAcceptor, 2000);
  Random random(5);
  for (int i = 0; i < 3000; ++i) {
    std::string text(random.below(2001), 'x');
    random.fill(std::as_writable_bytes(std::span(text)));
    put(producer, text);
    CHECK(get(consumer) == text);
  }
  CHECK_FALSE(consumer.pending());
}

TEST_CASE("A full ring takes nothing until the consumer has given slots back") {
  RingPair ring;
  Producer producer(*ring.mine, kConnector);
  Consumer consumer(*ring.theirs, kAcceptor, 100);
  for (int i = 0; i < 64; ++i)
    put(producer, "one slot");
  CHECK(producer.reserve(1) == Producer::Room::full);
  CHECK(get(consumer) == "one slot");
  CHECK(producer.reserve(1) == Producer::Room::enough);
  CHECK(producer.reserve(2) == Producer::Room::full);
}

TEST_CASE("A consumer that claims more than it was sent, or takes back what it said, is found out") {
  RingPair ring;
  Producer producer(*ring.mine, kConnector);
  auto& consumed = ring.theirs->control(kAcceptor).consumed;
  for (int i = 0; i < 64; ++i)
    put(producer, "one slot");
  SECTION("more than it was sent") {
    consumed.store(65);
  }
  SECTION("far more") {
    consumed.store(0x80000000u);
  }
  SECTION("backwards") {
    consumed.store(10);
    CHECK(producer.reserve(5) == Producer::Room::enough);
    for (int i = 0; i < 10; ++i)
      put(producer, "one slot");
    consumed.store(9);
  }
  CHECK(producer.reserve(1) == Producer::Room::violation);
}

TEST_CASE("A slot head that no honest producer writes is found out") {
  RingPair ring;
  Consumer consumer(*ring.theirs, kAcceptor, 1000);
  auto& head = ring.mine->slots(kConnector)[0].head;
  const auto send = static_cast<std::uint8_t>(SlotKind::send);
  const auto verdict = [&](SlotHead written) {
    head.store(written.pack());
    Consumer::Message message;
    return consumer.peek(message);
  };
  CHECK(verdict({0, 0, 0}) == Consumer::Peek::nothing);
  CHECK(verdict({1, 1000, send}) == Consumer::Peek::message);
  CHECK(verdict({1, 1001, send}) == Consumer::Peek::violation);
  CHECK(verdict({1, 0xffffff, send}) == Consumer::Peek::violation);
  CHECK(verdict({2, 10, send}) == Consumer::Peek::violation);
  CHECK(verdict({0, 10, send}) == Consumer::Peek::violation);
  CHECK(verdict({1, 10, 0}) == Consumer::Peek::violation);
  CHECK(verdict({1, 10, static_cast<std::uint8_t>(SlotKind::continuation)}) == Consumer::Peek::violation);
  CHECK(verdict({1, 10, 77}) == Consumer::Peek::violation);
}

TEST_CASE("A message longer than its ring is found out even if the receive buffer could take it") {
  RingPair ring;
  Consumer consumer(*ring.theirs, kAcceptor, kReceiveSizeMax);
  ring.mine->slots(kConnector)[0].head.store(
      SlotHead{1, 65 * kSlotPayload, static_cast<std::uint8_t>(SlotKind::send)}.pack());
  Consumer::Message message;
  CHECK(consumer.peek(message) == Consumer::Peek::violation);
}

TEST_CASE("Only a sealed memfd of the right size on ordinary pages becomes a ring") {
  const RingMemory::Sizes sizes{64, 64};
  const auto why = [&](const Descriptor& fd) { return RingMemory::attach(sizes, fd).error().message(); };
  CHECK(RingMemory::attach(sizes, make_memfd(sizes.bytes(), F_SEAL_SHRINK | F_SEAL_GROW)).has_value());
  CHECK_THAT(why(make_memfd(sizes.bytes(), 0)), Catch::Contains("not sealed against shrinking"));
  CHECK_THAT(why(make_memfd(sizes.bytes() - 1, F_SEAL_SHRINK)), Catch::Contains("bytes"));
  CHECK_THAT(why(make_memfd(sizes.bytes() + 4096, F_SEAL_SHRINK)), Catch::Contains("bytes"));
  CHECK_THAT(why(Descriptor()), Catch::Contains("not a memfd"));
  ScratchDirectory scratch;
  const Descriptor file(::open(scratch.path("file").c_str(), O_RDWR | O_CREAT, 0600));
  REQUIRE(::ftruncate(file.get(), static_cast<off_t>(sizes.bytes())) == 0);
  CHECK(!RingMemory::attach(sizes, file).has_value());
  for (const RingMemory::Sizes bad : {RingMemory::Sizes{63, 64}, {32, 64}, {64, 0}, {64, 131072}, {~0u, ~0u}})
    CHECK(!RingMemory::attach(bad, make_memfd(sizes.bytes(), F_SEAL_SHRINK)).has_value());
}

TEST_CASE("A key table agrees with a map whatever is done to it") {
  KeyTable<int> table;
  std::map<std::uint32_t, int> model;
  Random random(11);
  for (int i = 0; i < 20000; ++i) {
    const auto key = static_cast<std::uint32_t>(1 + random.below(300)) * 16;  // many of one home
    int* const found = table.find(key);
    CHECK((found != nullptr) == model.contains(key));
    if (found != nullptr) CHECK(*found == model[key]);
    if (random.once_in(2) && found == nullptr) {
      table.insert(key, i);
      model[key] = i;
    } else if (random.once_in(2)) {
      CHECK(table.erase(key) == (model.erase(key) == 1));
    }
    CHECK(table.size() == model.size());
  }
  CHECK(table.find(0) == nullptr);
}

TEST_CASE("A peer's region is reached within its bounds and rights and not a byte beyond") {
  using Use = RemoteMemory::Use;
  using Verdict = RemoteMemory::Found::Verdict;
  RemoteMemory remote{RemoteLimits{}};
  const Descriptor fd = make_memfd(8192, F_SEAL_SHRINK);
  REQUIRE(remote.announce(announcement(1, 5000), fd).has_value());
  REQUIRE(remote.announce(announcement(2, 5000, RemoteAccess::read), fd).has_value());
  REQUIRE(remote.announce(announcement(3, 5000, RemoteAccess::write), fd).has_value());
  const auto verdict = [&](std::uint32_t key, std::uint64_t address, std::uint64_t length, Use use) {
    return remote.find(key, address, length, use).verdict;
  };
  CHECK(verdict(1, 0x10000, 5000, Use::write) == Verdict::granted);
  CHECK(verdict(1, 0x10000 + 4999, 1, Use::read) == Verdict::granted);
  CHECK(verdict(1, 0x10000 + 5000, 1, Use::read) == Verdict::refused);
  CHECK(verdict(1, 0x10000, 5001, Use::read) == Verdict::refused);
  CHECK(verdict(1, 0xffff, 2, Use::read) == Verdict::refused);
  CHECK(verdict(1, ~std::uint64_t{0}, 2, Use::read) == Verdict::refused);
  CHECK(verdict(1, 0x10000 + 1, ~std::uint64_t{0}, Use::read) == Verdict::refused);
  CHECK(verdict(2, 0x10000, 1, Use::read) == Verdict::granted);
  CHECK(verdict(2, 0x10000, 1, Use::write) == Verdict::refused);
  CHECK(verdict(3, 0x10000, 1, Use::read) == Verdict::refused);
  CHECK(verdict(3, 0x10000, 1, Use::write) == Verdict::granted);
  CHECK(verdict(4, 0x10000, 1, Use::read) == Verdict::unknown_key);
  remote.invalidate(1);
  CHECK(verdict(1, 0x10000, 1, Use::read) == Verdict::refused);
  CHECK(remote.revoke(1));
  CHECK_FALSE(remote.revoke(1));
  CHECK(verdict(1, 0x10000, 1, Use::read) == Verdict::unknown_key);
}

TEST_CASE("A malformed announcement is refused and leaves nothing mapped") {
  RemoteMemory remote{RemoteLimits{.mappings_max = 2, .mapped_bytes_max = 3 * 4096}};
  const Descriptor fd = make_memfd(4096, F_SEAL_SHRINK);
  const auto refused = [&](AnnounceMessage message, const Descriptor& with) {
    return !remote.announce(message, with).has_value();
  };
  CHECK(refused(announcement(1, 4096), Descriptor()));
  CHECK(refused(announcement(0, 4096), fd));
  CHECK(refused(announcement(1, 0), fd));
  CHECK(refused(announcement(1, 4097), fd));
  CHECK(refused(announcement(1, ~std::uint64_t{0}), fd));
  CHECK(refused(announcement(1, 4096), make_memfd(4096, 0)));
  CHECK(refused(announcement(1, 4096, RemoteAccess::none), fd));
  CHECK(refused(announcement(1, 4096, static_cast<RemoteAccess>(9)), fd));
  auto wrapping = announcement(1, 4096);
  wrapping.fd_offset = ~std::uint64_t{0} - 10;
  CHECK(refused(wrapping, fd));
  wrapping = announcement(1, 4096);
  wrapping.base = ~std::uint64_t{0} - 10;
  CHECK(refused(wrapping, fd));

  CHECK_FALSE(refused(announcement(1, 4096), fd));
  CHECK(refused(announcement(1, 4096), fd));                                 // the key is in use
  CHECK_FALSE(refused(announcement(2, 4096), fd));                           // the same memfd: no second mapping
  CHECK(refused(announcement(3, 12288), make_memfd(12288, F_SEAL_SHRINK)));  // more address space than allowed
  CHECK_FALSE(refused(announcement(3, 4096), make_memfd(4096, F_SEAL_SHRINK)));
  CHECK(refused(announcement(4, 4096), make_memfd(4096, F_SEAL_SHRINK)));  // more memfds than allowed
  CHECK(remote.revoke(3));
  CHECK_FALSE(refused(announcement(4, 4096), make_memfd(4096, F_SEAL_SHRINK)));
}

TEST_CASE("Memory without a sealed memfd can be registered for local use only, and the error says what to do") {
  Domain domain(Random(1), std::chrono::milliseconds(10));
  std::array<std::byte, 64> plain{};
  CHECK(domain.register_memory({plain.data(), plain.size(), -1, 0}, RemoteAccess::none).has_value());
  const auto why = [&](int fd, std::uint64_t offset) {
    return domain.register_memory({plain.data(), plain.size(), fd, offset}, RemoteAccess::read).error();
  };
  CHECK(why(-1, 0).kind() == ErrorKind::unsupported);
  CHECK_THAT(why(-1, 0).message(), Catch::Contains("memfd"));
  CHECK(why(make_memfd(4096, 0).get(), 0).kind() == ErrorKind::unsupported);
  CHECK(why(make_memfd(4096, F_SEAL_SHRINK).get(), 4090).kind() == ErrorKind::invalid_argument);
  CHECK(!domain.register_memory({plain.data(), 0, -1, 0}, RemoteAccess::none).has_value());
}

TEST_CASE("A dead listener's socket file is replaced and a living one's owner is named") {
  ScratchDirectory scratch;
  const std::string path = scratch.path("target.sock");
  const auto abandon = [&] {  // a socket file whose listener is gone, as kill -9 leaves it
    Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(socket.get(), 1) == 0);
  };
  abandon();
  auto bound = BoundSocket::bind(path, {}, 8);
  REQUIRE(bound.has_value());
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0600);

  auto second = BoundSocket::bind(path, {}, 8);
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().kind() == ErrorKind::in_use);
  CHECK_THAT(second.error().message(), Catch::Contains("pid " + std::to_string(::getpid())));
  { const auto gone = std::move(*bound); }
  CHECK(::stat(path.c_str(), &status) != 0);
}

TEST_CASE("A path that cannot be listened on is refused with the reason") {
  ScratchDirectory scratch;
  std::ofstream(scratch.path("file")) << "precious";
  const auto why = [&](const std::string& path) { return BoundSocket::bind(path, {}, 8).error(); };
  CHECK_THAT(why(scratch.path("file")).message(), Catch::Contains("is no socket"));
  CHECK(std::ifstream(scratch.path("file")).get() == 'p');
  CHECK(why(scratch.path("no/such/place")).kind() == ErrorKind::not_found);

  Uri uri;
  uri.scheme = Uri::Scheme::shm;
  uri.options["socket"] = "/" + std::string(108, 'x');
  CHECK_THAT(socket_path(uri, PathUse::listen).error().message(), Catch::Contains("at most 107"));
  uri.scheme = Uri::Scheme::rdma;
  CHECK(!socket_path(uri, PathUse::listen).has_value());
}

TEST_CASE("The default socket lies in a directory that is ours alone, or nowhere") {
  ScratchDirectory scratch;
  ::setenv("XDG_RUNTIME_DIR", scratch.path("").c_str(), 1);
  Uri uri;
  uri.scheme = Uri::Scheme::shm;
  CHECK(socket_path(uri, PathUse::connect).error().kind() == ErrorKind::not_found);
  const auto path = socket_path(uri, PathUse::listen);
  REQUIRE(path.has_value());
  CHECK_THAT(*path, Catch::EndsWith("/rbt/target.sock"));
  REQUIRE(::chmod(scratch.path("rbt").c_str(), 0755) == 0);
  CHECK(socket_path(uri, PathUse::listen).error().kind() == ErrorKind::permission);
  REQUIRE(::rmdir(scratch.path("rbt").c_str()) == 0);
  REQUIRE(::symlink("/tmp", scratch.path("rbt").c_str()) == 0);
  CHECK(socket_path(uri, PathUse::connect).error().kind() == ErrorKind::permission);
  ::unsetenv("XDG_RUNTIME_DIR");
}
