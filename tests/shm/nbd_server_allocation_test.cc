// No heap allocation per NBD request: a counting operator new, and a client in steady state.
#include <catch2/catch.hpp>

#include "tests/shm/nbd_rig.h"
#include "tests/sim/counting_allocator.h"

using namespace rbt;
using namespace rbt::test;
using Type = initiator::nbd::CommandType;

namespace {

/// Sends `words` and reads the replies, with more requests than the server has room for.
bool requests(initiator::Volume& volume, int fd, const Octets& words, std::size_t replies, Instant deadline) {
  std::array<std::byte, 4096> in{};
  std::size_t sent = 0;
  std::size_t got = 0;
  const auto done = [&] {
    if (sent < words.size()) {
      const ssize_t now = ::send(fd, words.data() + sent, words.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (now > 0) sent += static_cast<std::size_t>(now);
    }
    for (ssize_t now = 1; now > 0 && got < replies;) {
      now = ::recv(fd, in.data(), std::min(in.size(), replies - got), MSG_DONTWAIT);
      if (now > 0) got += static_cast<std::size_t>(now);
    }
    return got == replies;
  };
  return volume.run_until(done, deadline);
}

}  // namespace

TEST_CASE("In steady state requests allocate nothing, on neither side") {
  NbdRig rig({.connections_max = 2, .requests = 16}, NbdRig::Gated::no);  // the gate allocates
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  REQUIRE(rig.server->adopt(ends[1]));
  Octets words;
  std::size_t replies = 0;
  const auto add = [&](Type type, std::uint64_t offset, std::uint32_t length) {
    const Octets one = NbdClient::command(type, offset, length);
    words.insert(words.end(), one.begin(), one.end());
    if (type == Type::write) words.resize(words.size() + length, std::byte{7});
    replies += initiator::nbd::Reply::kSize + (type == Type::read ? length : 0);
  };
  for (std::uint64_t i = 0; i < 40; ++i) {
    add(Type::write, i * 64 * kKiB, i % 10 == 0 ? 64 * kKiB : 4096);
    add(Type::read, i * 64 * kKiB, 4096);
    add(Type::trim, i * 64 * kKiB, 512);
    add(Type::write_zeroes, i * 64 * kKiB, 4096);
    if (i % 8 == 0) add(Type::flush, 0, 0);
  }
  for (int i = 0; i < 5; ++i)
    REQUIRE(requests(*rig.volume, ends[0], words, replies, rig.clock.now() + NbdRig::kPatience));
  const std::uint64_t before = allocations();
  CHECK(before > 0);  // they are counted
  bool good = true;
  for (int i = 0; i < 20; ++i)
    good = good && requests(*rig.volume, ends[0], words, replies, rig.clock.now() + NbdRig::kPatience);
  const std::uint64_t after = allocations();
  CHECK(good);
  // std::function of run_until's callers: a few per call, and none per request (there are 165 in each).
  CHECK(after - before <= 20 * 8);
  ::close(ends[0]);
}
