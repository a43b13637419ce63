// The NBD server of a volume, from the point of view of clients: polite, hostile, and ones that lose their connection.
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>

#include "common/random.h"
#include "initiator/present/nbd_jobs.h"
#include "tests/shm/nbd_rig.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::initiator::nbd;
using Catch::Matchers::Contains;
using initiator::NbdServer;
using Type = CommandType;

namespace {

constexpr std::uint64_t kSize = 16 * kMiB;

Octets octets(std::size_t size, std::uint64_t seed) {
  Octets out(size);
  Random(seed).fill(out);
  return out;
}

int connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

/// Fixed newstyle without zeroes, EXPORT_NAME "": what it is told.
Octets shake_hands(NbdClient& client) {
  REQUIRE(client.receive(18).size() == 18);
  Octets words(4 + 16);
  const std::span<std::byte> at(words);
  put_be(at, std::uint32_t{3});
  put_be(at.subspan(4), std::uint64_t{0x49484156454F5054});
  put_be(at.subspan(12), std::uint32_t{1});
  REQUIRE(client.send(words));
  return client.receive(10);
}

}  // namespace

TEST_CASE("What is written over one connection is read over another, as it was zeroed, trimmed and flushed") {
  NbdRig rig;
  NbdClient one(rig);
  NbdClient other(rig);
  const Octets data = octets(1280 * kKiB, 1);
  CHECK(one.write(kMiB, data) == 0);
  CHECK(one.write(0, octets(512, 2), kCommandFua) == 0);
  CHECK(other.read(kMiB, 1280 * kKiB) == data);
  CHECK(other.read(0, 512) == octets(512, 2));
  CHECK(other.ask(Type::flush, 0, 0) == 0);
  CHECK(one.ask(Type::write_zeroes, kMiB, 512 * kKiB, kCommandNoHole | kCommandFua) == 0);
  CHECK(one.ask(Type::trim, kMiB + 512 * kKiB + 1, 256 * kKiB, kCommandFua) == 0);
  CHECK(one.ask(Type::trim, 5, 100) == 0);  // no whole block: nothing is done
  CHECK(other.read(kMiB, 512 * kKiB) == Octets(512 * kKiB));
  CHECK(other.read(kSize - 512, 512).size() == 512);
  CHECK((rig.server->flags() & ~(kHasFlags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes | kCanMultiConn)) ==
        0);
}

TEST_CASE("What cannot be done is refused, and the connection goes on") {
  NbdRig rig;
  NbdClient client(rig);
  struct Wrong {
    Type type;
    std::uint64_t offset;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint32_t error;
  };
  const Wrong wrong = GENERATE(
      Wrong{Type::read, 0, 0, 0, kErrorInvalid}, Wrong{Type::read, 0, 0xFFFFFFFF, 0, kErrorInvalid},
      Wrong{Type::read, 0, 2 * kMiB + 512, 0, kErrorInvalid}, Wrong{Type::read, kSize, 512, 0, kErrorInvalid},
      Wrong{Type::read, kSize - 512, 1024, 0, kErrorInvalid},
      Wrong{Type::read, ~std::uint64_t{0} - 511, 512, 0, kErrorInvalid},
      Wrong{Type::read, ~std::uint64_t{0}, 1, 0, kErrorInvalid}, Wrong{Type::read, 1, 512, 0, kErrorInvalid},
      Wrong{Type::read, 0, 511, 0, kErrorInvalid}, Wrong{Type::read, 0, 512, 1U << 2, kErrorInvalid},
      Wrong{Type::trim, kSize, 512, 0, kErrorInvalid}, Wrong{Type::trim, 0, 0, 0, kErrorInvalid},
      Wrong{Type::write_zeroes, kSize, 512, 0, kErrorNoSpace},
      Wrong{Type::write_zeroes, 0, 0xFFFFFFFF, 0, kErrorNoSpace}, Wrong{Type::write_zeroes, 7, 512, 0, kErrorInvalid},
      Wrong{Type::write_zeroes, 0, 512, 1U << 4, kErrorInvalid}, Wrong{Type::flush, 0, 0, 1U << 9, kErrorInvalid},
      Wrong{Type{5}, 0, 512, 0, kErrorInvalid}, Wrong{Type{7}, 0, 512, 0, kErrorInvalid},
      Wrong{Type{0xFFFF}, 0, 512, 0, kErrorInvalid});
  CAPTURE(static_cast<int>(wrong.type), wrong.offset, wrong.length, wrong.flags);
  CHECK(client.ask(wrong.type, wrong.offset, wrong.length, wrong.flags) == wrong.error);
  CHECK(client.read(0, 512) == Octets(512));
  CHECK(rig.server->requests_begun() == 1);
}

TEST_CASE("The data of a write that is refused is skipped, not taken for requests") {
  NbdRig rig;
  NbdClient client(rig);
  CHECK(client.write(kSize - 512, octets(1024, 3)) == kErrorNoSpace);
  CHECK(client.write(0, octets(3 * kMiB, 4)) == kErrorInvalid);
  CHECK(client.write(3, octets(100, 5)) == kErrorInvalid);
  CHECK(client.write(0, octets(512, 5), 1U << 7) == kErrorInvalid);
  CHECK(client.write(0, Octets(), 0) == kErrorInvalid);
  CHECK(client.read(0, 4096) == Octets(4096));
}

TEST_CASE("A device that is read-only says so, and is") {
  NbdRig rig({.connections_max = 2, .read_only = true});
  NbdClient client(rig);
  CHECK((rig.server->flags() & (kReadOnly | kSendTrim | kSendWriteZeroes)) == kReadOnly);
  CHECK(client.write(0, octets(512, 1)) == kErrorPermission);
  CHECK(client.ask(Type::trim, 0, 512) == kErrorPermission);
  CHECK(client.ask(Type::write_zeroes, 0, 512) == kErrorPermission);
  CHECK(client.read(0, 512) == Octets(512));
}

TEST_CASE("Who does not speak NBD loses the connection; others notice nothing") {
  NbdRig rig;
  NbdClient good(rig);
  NbdClient bad(rig);
  Octets words = NbdClient::command(Type::read, 0, 512);
  if (GENERATE(true, false))
    words[0] = std::byte{0};  // the magic number
  else
    words = NbdClient::command(Type::write, 0, kPayloadMax + 1);
  CHECK(bad.send(words));
  CHECK(bad.hung_up());
  CHECK(good.read(0, 512) == Octets(512));
  CHECK(rig.ended == 1);
  CHECK(rig.ended_asked == 0);
}

TEST_CASE("A write that ends before its data does writes nothing, and leaves nothing behind") {
  NbdRig rig;
  NbdClient good(rig);
  {
    NbdClient bad(rig);
    Octets words = NbdClient::command(Type::write, 0, kMiB);
    words.resize(words.size() + GENERATE(0U, 1U, 100'000U, 1048575U), std::byte{1});
    CHECK(bad.send(words));
    rig.settle();
    CHECK(rig.in_use() == kMiB);
  }
  CHECK(rig.eventually([&] { return rig.ended == 1; }));
  CHECK(rig.in_use() == 0);
  CHECK(good.read(0, 512) == Octets(512));
  CHECK(rig.server->requests_begun() == 1);
}

TEST_CASE("Requests of a client that has hung up end with the volume, and everything comes back") {
  NbdRig rig;
  rig.gate.open = false;
  {
    NbdClient client(rig);
    for (std::uint64_t i = 0; i < 8; ++i) {
      CHECK(client.send_write(i * 4096, octets(4096, i)));
      CHECK(client.send(NbdClient::command(Type::read, kMiB + i * 4096, 4096)));
    }
    CHECK(rig.eventually([&] { return rig.gate.waiting() == 16; }));
  }
  CHECK(rig.eventually([&] { return rig.ended == 1; }));
  CHECK(rig.in_use() == 16 * 4096);
  rig.gate.open = true;
  rig.gate.let_all_through();
  CHECK(rig.eventually([&] { return rig.in_use() == 0; }));
  NbdClient next(rig);
  CHECK(next.read(7 * 4096, 4096) == octets(4096, 7));
}

TEST_CASE("A client that disconnects with requests under way gets their replies, then the end") {
  NbdRig rig;
  NbdClient client(rig);
  rig.gate.open = false;
  for (std::uint64_t i = 1; i <= 4; ++i)
    CHECK(client.send_write(i * 4096, octets(4096, i), 0, i));
  CHECK(client.send(NbdClient::command(Type::disconnect, 0, 0)));
  CHECK(client.send(NbdClient::command(Type::read, 0, 512)));  // nobody looks at it
  CHECK(rig.eventually([&] { return rig.gate.waiting() == 4; }));
  rig.settle();
  CHECK(rig.ended == 0);
  rig.gate.open = true;
  rig.gate.let_all_through();
  std::uint64_t cookies = 0;
  for (int i = 0; i < 4; ++i) {
    const auto [cookie, error] = client.reply();
    CHECK(error == 0);
    cookies += cookie;
  }
  CHECK(cookies == 10);
  CHECK(client.hung_up());
  CHECK(rig.ended_asked == 1);
}

TEST_CASE("Replies come in the order of completion") {
  NbdRig rig;
  NbdClient client(rig);
  rig.gate.open = false;
  CHECK(client.send(NbdClient::command(Type::read, 0, 512, 0, 1)));
  CHECK(rig.eventually([&] { return rig.gate.waiting() == 1; }));
  CHECK(client.send(NbdClient::command(Type::read, 0, 0, 0, 2)));  // refused at once
  CHECK(client.reply() == std::pair(std::uint64_t{2}, kErrorInvalid));
  rig.gate.let_one_through();
  CHECK(client.reply() == std::pair(std::uint64_t{1}, std::uint32_t{0}));
  CHECK(client.receive(512).size() == 512);
}

// ---- requests that are sent again over another connection

TEST_CASE("A write that comes once more over another connection waits for the first one") {
  NbdRig rig;
  NbdClient lost(rig);
  NbdClient kept(rig);
  rig.gate.open = false;
  CHECK(lost.send_write(0, octets(4096, 1)));
  CHECK(rig.eventually([&] { return rig.gate.waiting() == 1; }));
  lost.shut_down();
  CHECK(kept.send_write(0, octets(4096, 1), 0, 7));
  rig.settle();
  CHECK(rig.gate.waiting() == 1);
  // A write goes through the gate more than once.
  CHECK(rig.eventually([&] {
    if (rig.server->requests_begun() == 1 && rig.gate.waiting() != 0) rig.gate.let_one_through();
    return rig.server->requests_begun() == 2;
  }));
  CHECK_FALSE(kept.anything_came());  // what the first one did is not its answer
  CHECK(kept.send_write(8192, octets(4096, 2), 0, 8));
  CHECK(rig.eventually([&] { return rig.server->requests_begun() == 3; }));  // other blocks
  rig.gate.open = true;
  rig.gate.let_all_through();
  CHECK(kept.reply().second == 0);
  CHECK(kept.reply().second == 0);
}

TEST_CASE("Nothing is begun any more for a connection that has been shut down: what waited for another request") {
  NbdRig rig;
  NbdClient lost(rig);
  NbdClient kept(rig);
  rig.gate.open = false;
  CHECK(kept.send_write(0, octets(4096, 1)));
  CHECK(rig.eventually([&] { return rig.gate.waiting() == 1; }));
  CHECK(lost.send_write(0, octets(4096, 2)));
  rig.settle();
  lost.shut_down();
  rig.gate.open = true;
  rig.gate.let_all_through();
  CHECK(kept.reply().second == 0);
  CHECK(rig.eventually([&] { return rig.ended == 1; }));
  CHECK(rig.server->requests_begun() == 1);
  CHECK(kept.read(0, 4096) == octets(4096, 1));
}

TEST_CASE("Nothing is begun any more for a connection that has been shut down: what nobody had read") {
  NbdRig rig;
  NbdClient lost(rig);
  NbdClient kept(rig);
  Octets words = NbdClient::command(Type::write, 0, 4096);
  words.resize(words.size() + 4096, std::byte{2});
  lost.send_unseen(words);
  lost.shut_down();
  CHECK(rig.eventually([&] { return rig.ended == 1; }));
  CHECK(rig.server->requests_begun() == 0);
  CHECK(kept.read(0, 4096) == Octets(4096));
}

TEST_CASE("What was still in its socket when a connection was shut down is not begun either") {
  NbdRig rig({.connections_max = 2, .requests = 2});  // one at a time per connection: the rest stays in the socket
  NbdClient lost(rig);
  NbdClient kept(rig);
  rig.gate.open = false;
  CHECK(lost.send_write(64 * kKiB, octets(4096, 1)));
  CHECK(rig.eventually([&] { return rig.gate.waiting() == 1; }));
  CHECK(lost.send_write(0, octets(4096, 2)));
  rig.settle();
  lost.shut_down();
  CHECK(kept.send_write(0, octets(4096, 3)));  // what its client thinks that it sent again, and more since
  rig.gate.open = true;
  rig.gate.let_all_through();
  CHECK(kept.reply().second == 0);
  CHECK(rig.eventually([&] { return rig.ended == 1; }));
  CHECK(rig.server->requests_begun() == 2);
  CHECK(kept.read(0, 4096) == octets(4096, 3));
}

// ---- shares

TEST_CASE("A client that does not read its replies keeps nobody else waiting") {
  NbdRig rig;
  NbdClient greedy(rig);
  NbdClient other(rig);
  Octets words;
  for (int i = 0; i < 300; ++i) {
    const Octets one = NbdClient::command(Type::read, 0, kMiB);
    words.insert(words.end(), one.begin(), one.end());
  }
  CHECK(greedy.send(words));
  rig.settle();
  for (int i = 0; i < 20; ++i)
    CHECK(other.read(0, 2 * kMiB).size() == 2 * kMiB);
  for (int i = 0; i < 300; ++i) {
    CHECK(greedy.reply().second == 0);
    CHECK(greedy.receive(kMiB).size() == kMiB);
  }
}

TEST_CASE("What one client holds, wherever it lies, is not in the way of another's largest requests") {
  NbdRig rig;
  NbdClient greedy(rig);
  NbdClient other(rig);
  // Many small replies that nobody reads, while the other one moves large ones.
  for (int round = 0; round < 60; ++round) {
    CHECK(greedy.send(NbdClient::command(Type::read, 0, 64 * kKiB)));
    CHECK(other.read(0, 2 * kMiB).size() == 2 * kMiB);
    CHECK(other.write(static_cast<std::uint64_t>(round) * 4096, octets(4096, 1)) == 0);
  }
}

TEST_CASE("Who stops in the middle of its data keeps nobody else waiting") {
  NbdRig rig;
  std::vector<std::unique_ptr<NbdClient>> stalled;
  for (int i = 0; i < 3; ++i) {
    stalled.push_back(std::make_unique<NbdClient>(rig));
    CHECK(stalled.back()->send(NbdClient::command(Type::write, 0, 2 * kMiB)));
  }
  NbdClient other(rig);
  CHECK(other.write(0, octets(2 * kMiB, 9)) == 0);
  CHECK(other.read(0, 2 * kMiB) == octets(2 * kMiB, 9));
}

TEST_CASE("More requests than there is room for are all answered, and right") {
  NbdRig rig({.connections_max = 2, .requests = 6});
  NbdClient client(rig);
  Octets words;
  for (std::uint64_t i = 0; i < 200; ++i) {
    Octets one = NbdClient::command(Type::write, i * 8192, 8192, 0, i);
    const Octets data = octets(8192, i);
    one.insert(one.end(), data.begin(), data.end());
    words.insert(words.end(), one.begin(), one.end());
  }
  CHECK(client.send(words));
  std::uint64_t cookies = 0;
  for (int i = 0; i < 200; ++i)
    cookies += client.reply().first;
  CHECK(cookies == 199 * 200 / 2);
  for (std::uint64_t i = 0; i < 200; i += 13)
    CHECK(client.read(i * 8192, 8192) == octets(8192, i));
}

// ---- the socket

TEST_CASE("The socket is its owner's, replaces one that nobody listens on, and goes with the server") {
  NbdRig rig;
  const std::string path = rig.scratch.path("nbd");
  {
    NbdRig dead;  // leaves a socket behind
    CHECK(dead.server->listen(path));
    ::rename(path.c_str(), (path + "x").c_str());
  }
  ::rename((path + "x").c_str(), path.c_str());
  REQUIRE(rig.server->listen(path));
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  NbdRig late;
  const auto refused = late.server->listen(path);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().kind() == ErrorKind::in_use);
  CHECK_THAT(late.server->listen(std::string(200, 'x')).error().message(), Contains("1 to 107 bytes"));

  NbdClient client(rig, connect_to(path));
  const Octets about = shake_hands(client);
  REQUIRE(about.size() == 10);
  CHECK(get_be<std::uint64_t>(about) == kSize);
  CHECK(get_be<std::uint16_t>(std::span(about).subspan(8)) == rig.server->flags());
  CHECK(client.write(0, octets(512, 1)) == 0);
  CHECK(client.read(0, 512) == octets(512, 1));
  rig.server.reset();
  CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST_CASE("There are no more clients than connections_max; the next is hung up on, and finds room later") {
  NbdRig rig({.connections_max = 2});
  const std::string path = rig.scratch.path("nbd");
  REQUIRE(rig.server->listen(path));
  NbdClient one(rig, connect_to(path));
  NbdClient two(rig, connect_to(path));
  CHECK(shake_hands(one).size() == 10);
  CHECK(shake_hands(two).size() == 10);
  {
    NbdClient three(rig, connect_to(path));
    CHECK(three.hung_up());
  }
  two.close();
  CHECK(rig.eventually([&] { return rig.server->connections() == 1; }));
  NbdClient three(rig, connect_to(path));
  CHECK(shake_hands(three).size() == 10);
  CHECK(three.read(0, 512) == Octets(512));
}

TEST_CASE("A server that goes with requests under way leaves volume and memory in order") {
  NbdRig rig;
  NbdClient client(rig);
  rig.gate.open = false;
  CHECK(client.send_write(0, octets(4096, 1)));
  CHECK(client.send(NbdClient::command(Type::read, kMiB, 4096)));
  CHECK(rig.eventually([&] { return rig.gate.waiting() == 2; }));
  rig.server.reset();
  CHECK(client.hung_up());
  if (GENERATE(true, false)) {
    rig.gate.open = true;
    rig.gate.let_all_through();
    CHECK(rig.eventually([&] { return rig.pool_is_whole(); }));
  } else {
    CHECK_FALSE(rig.pool_is_whole());
    rig.volume->close();
    CHECK(rig.pool_is_whole());
  }
}

TEST_CASE("When the volume has failed requests get EIO, and the connection stays") {
  NbdRig rig;
  NbdClient client(rig);
  rig.volume->close();
  CHECK(client.ask(Type::read, 0, 512) == kErrorIo);
  CHECK(client.write(0, octets(512, 1)) == kErrorIo);
  CHECK(client.ask(Type::flush, 0, 0) == kErrorIo);
  CHECK(rig.ended == 0);
}

TEST_CASE("Numbers that cannot work are refused when the server is made") {
  NbdRig rig;
  const auto error = [&](const initiator::NbdServerOptions& options) {
    return NbdServer::create(*rig.volume, *rig.reactor, options).error().message();
  };
  CHECK_THAT(error({.connections_max = 0}), Contains("1 to 64"));
  CHECK_THAT(error({.connections_max = 65}), Contains("1 to 64"));
  CHECK_THAT(error({.requests = 0}), Contains("1 to 65536"));
  CHECK_THAT(error({.connections_max = 5}), Contains("buffers"));
}

TEST_CASE("Whatever bytes come, others are served, and everything comes back") {
  NbdRig rig;
  NbdClient good(rig);
  Random random(11);
  for (int round = 0; round < 300; ++round) {
    REQUIRE(rig.eventually([&] { return rig.server->connections() < 4; }));
    NbdClient bad(rig);
    Octets words;
    for (std::uint64_t i = 1 + random.below(8); i > 0; --i) {
      const Type type{static_cast<std::uint16_t>(random.below(8))};
      Octets one = NbdClient::command(
          type, random.below(3) == 0 ? ~random.below(kSize) : 512 * random.below(kSize / 512),
          static_cast<std::uint32_t>(random.below(2) == 0 ? random.below(1ULL << 32) : 512 * random.below(64)),
          static_cast<std::uint16_t>(random.below(4) == 0 ? random.below(65536) : random.below(2)));
      if (random.below(8) == 0) one[random.below(one.size())] = static_cast<std::byte>(random.below(256));
      words.insert(words.end(), one.begin(), one.end());
      words.resize(words.size() + 512 * random.below(32), std::byte{0x55});
    }
    static_cast<void>(bad.send(words));
    if (random.below(2) == 0) bad.shut_down();
    if (round % 10 == 0) CHECK(good.read(0, 4096).size() == 4096);
  }
  CHECK(rig.eventually([&] { return rig.server->connections() == 1 && rig.in_use() == 0; }));
}
