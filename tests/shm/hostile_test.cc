// Peers that break the protocol: each costs its own connection, in a bounded time, and nobody else's; verified traffic of
// another connection goes on meanwhile, and nothing is left behind.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <catch2/catch.hpp>
#include <cstring>

#include "common/log.h"
#include "tests/shm/child.h"
#include "tests/shm/raw_peer.h"
#include "tests/shm/scratch.h"
#include "tests/shm/shm_under_test.h"
#include "tests/shm/workload.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using namespace rbt::transport::shm;
using namespace std::chrono_literals;

namespace {

/// A server under attack, and an honest client whose traffic must not suffer.
class Siege {
 public:
  explicit Siege(const ListenOptions& listening = {}) {
    auto made = Reactor::create(clock, null_logger());
    REQUIRE(made.has_value());
    reactor = std::move(*made);
    auto opened = shm::Fabric::open({}, random);
    auto opened_too = shm::Fabric::open({}, random);
    REQUIRE((opened.has_value() && opened_too.has_value()));
    fabric = std::move(*opened);
    client_fabric = std::move(*opened_too);
    server = std::make_unique<WorkloadServer>(*fabric, *reactor);
    REQUIRE(server->listen(shm_uri(path()), listening).has_value());
    bystander = std::make_unique<WorkloadClient>(*client_fabric, *reactor, 5);
    REQUIRE(bystander->connect(shm_uri(path())).has_value());
    REQUIRE(reactor->run_until([&] { return bystander->completed > 50; }, clock.now() + 10s));
    descriptors = open_descriptors();
    mappings = memfd_mappings();
  }
  ~Siege() {
    // The traffic went on, and goes on; the attackers are gone with all that was theirs.
    const std::uint64_t before = bystander->completed;
    CHECK(reactor->run_until([&] { return bystander->completed > before + 50 && server->group().connections() == 1; },
                             clock.now() + 10s));
    CHECK(bystander->corrupt == 0);
    CHECK(server->corrupt == 0);
    CHECK_FALSE(bystander->disconnected.has_value());
    CHECK(open_descriptors() == descriptors);
    CHECK(memfd_mappings() == mappings);
    bystander->close();
    server->close_all();
    CHECK(
        reactor->run_until([&] { return bystander->closed && server->group().connections() == 0; }, clock.now() + 10s));
  }
  [[nodiscard]] std::string path() const { return scratch.path("target.sock"); }
  [[nodiscard]] RawPeer::Turn turn() {
    return [this] { reactor->turn(); };
  }
  void turns(int count) const {
    for (int i = 0; i < count; ++i)
      reactor->turn();
  }

  ScratchDirectory scratch;
  SystemClock clock;
  Random random{9};
  std::unique_ptr<Reactor> reactor;
  std::unique_ptr<shm::Fabric> fabric;
  std::unique_ptr<shm::Fabric> client_fabric;
  std::unique_ptr<WorkloadServer> server;
  std::unique_ptr<WorkloadClient> bystander;
  std::size_t descriptors = 0;
  std::size_t mappings = 0;
};

AnnounceMessage region_of(std::size_t size, std::uint32_t key) {
  AnnounceMessage message;
  message.key = key;
  message.access = static_cast<std::uint32_t>(RemoteAccess::read_write);
  message.base = 0x1000;
  message.length = size;
  return message;
}

Command command_for(std::uint32_t key, std::uint32_t length, Command::Kind kind = Command::Kind::fetch) {
  Command command;
  command.kind = kind;
  command.address = 0x1000;
  command.rkey = key;
  command.length = length;
  return command;
}

}  // namespace

TEST_CASE("Garbage in the rings and their words costs the connection it belongs to") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.establish(siege.path()));
  siege.turns(50);
  auto& slot = peer.ring().slots(kConnector)[0];
  SECTION("a message longer than the receive buffer") {
    slot.head.store(SlotHead{1, 4161, 1}.pack());
    CHECK(peer.cut_off());
    CHECK_THAT(peer.farewell, Catch::Contains("protocol violation"));
  }
  SECTION("a sequence number from nowhere") {
    slot.head.store(SlotHead{4711, 64, 1}.pack());
    CHECK(peer.cut_off());
  }
  SECTION("all bits set") {
    slot.head.store(~std::uint64_t{0});
    CHECK(peer.cut_off());
  }
  SECTION("a key that was never ours is invalidated") {
    slot.key.store(12345);
    slot.head.store(SlotHead{1, 64, static_cast<std::uint8_t>(SlotKind::send_with_invalidate)}.pack());
    CHECK(peer.cut_off());
    CHECK_THAT(peer.farewell, Catch::Contains("invalidated a key"));
  }
  SECTION("more responses taken than were ever sent") {
    peer.mine().consumed.store(0x7fffffff);
    const Descriptor memory = sealed_memfd(4096);
    CHECK(peer.say(region_of(4096, 77), memory.get()) == Sent::sent);
    // The word is looked at when it is needed: once the ring seems full.
    for (int i = 0; i < 400; ++i) {
      const Command command = command_for(77, 8);
      std::uint32_t taken = peer.theirs().consumed.load();
      if (static_cast<std::uint32_t>(i) - taken > 100) break;
      peer.put(&command, sizeof command);
      siege.turns(3);
    }
    CHECK(peer.cut_off());
    CHECK_THAT(peer.farewell, Catch::Contains("more messages"));
  }
  SECTION("its memory is closed, says its word") {
    const Descriptor memory = sealed_memfd(4096);
    CHECK(peer.say(region_of(4096, 77), memory.get()) == Sent::sent);
    peer.mine().fence.store(1);
    const Command command = command_for(77, 8);
    peer.put(&command, sizeof command);
    CHECK(peer.cut_off());
  }
  SECTION("revocations are counted that are never said") {
    const Descriptor memory = sealed_memfd(4096);
    CHECK(peer.say(region_of(4096, 77), memory.get()) == Sent::sent);
    peer.mine().fence.store(2 * 1000);
    const Command command = command_for(77, 8);
    peer.put(&command, sizeof command);
    CHECK(peer.cut_off());
    CHECK_THAT(peer.farewell, Catch::Contains("revocation"));
  }
  SECTION("a hole is punched into the ring") {
    const Command command = command_for(1, 0);
    for (int i = 0; i < 300; ++i) {
      peer.put(&command, sizeof command);
      for (int turn = 0; turn < 1000 && peer.theirs().consumed.load() != static_cast<std::uint32_t>(i + 1); ++turn)
        siege.turns(1);
      auto& answer = peer.ring().slots(kAcceptor)[i % 256];
      REQUIRE(answer.head.load() != 0);
      peer.mine().consumed.store(static_cast<std::uint32_t>(i + 1));
    }
    REQUIRE(::fallocate(peer.ring_fd().get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                        static_cast<off_t>(RingMemory::Sizes{256, 256}.bytes())) == 0);
    CHECK(peer.cut_off());
  }
}

TEST_CASE("Random words all over the shared memory, again and again, never leave their connection") {
  Siege siege;
  Random random(17);
  for (int round = 0; round < 60; ++round) {
    RawPeer peer(siege.turn());
    REQUIRE(peer.establish(siege.path()));
    const Descriptor memory = sealed_memfd(8192);
    CHECK(peer.say(region_of(8192, 77), memory.get()) == Sent::sent);
    const std::uint64_t ended = siege.server->ended + siege.server->refused_commands;
    auto* const words = reinterpret_cast<std::atomic<std::uint32_t>*>(&peer.ring().control(0));
    const std::size_t count = RingMemory::Sizes{256, 256}.bytes() / sizeof(std::uint32_t);
    for (int i = 0; i < 4000 && siege.server->ended + siege.server->refused_commands == ended; ++i) {
      const std::size_t at = random.once_in(2) ? random.below(count) : random.below(300);
      const auto value = static_cast<std::uint32_t>(random.once_in(2) ? random() : random.below(4));
      words[at].store(value, std::memory_order_relaxed);
      if (random.once_in(50)) {
        const Command command = command_for(77, static_cast<std::uint32_t>(random.below(9000)));
        peer.ring().slots(kConnector)[random.below(4)].head.store(
            SlotHead{static_cast<std::uint32_t>(1 + random.below(4)), 64, 1}.pack());
        std::memcpy(peer.ring().slots(kConnector)[random.below(4)].payload, &command, sizeof command);
      }
      siege.turns(1);
    }
    peer.hang_up();
    siege.turns(20);
  }
}

TEST_CASE("A peer that says it copies for ever holds nobody up beyond a bound") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.establish(siege.path()));
  siege.turns(50);
  peer.mine().copying.store(1);
  SECTION("a region is given back") {
    auto memory = SharedMemory::create(Bytes(4096), {});
    REQUIRE(memory.has_value());
    auto region = siege.fabric->domain().register_memory(memory->span(), RemoteAccess::read_write);
    REQUIRE(region.has_value());
    const Instant start = siege.clock.now();
    region->reset();
    const Duration took = siege.clock.now() - start;
    CHECK(took >= 400ms);  // it did wait for a copy that might have been real
    CHECK(took < 2s);
    CHECK(peer.cut_off());
  }
  SECTION("the connection is closed") {
    const Command nonsense = command_for(1, 0xffffffff);
    const Instant start = siege.clock.now();
    peer.put(&nonsense, sizeof nonsense);  // the server closes it
    REQUIRE(
        siege.reactor->run_until([&] { return siege.server->group().connections() == 1; }, siege.clock.now() + 10s));
    CHECK(siege.clock.now() - start >= 1s);
    CHECK(siege.clock.now() - start < 5s);
  }
}

TEST_CASE("A peer's memory cannot be made to vanish under a transfer") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.establish(siege.path()));
  CHECK(::ftruncate(peer.ring_fd().get(), 0) == -1);
  const Descriptor memory = sealed_memfd(65536);
  CHECK(peer.say(region_of(65536, 77), memory.get()) == Sent::sent);
  CHECK(::ftruncate(memory.get(), 0) == -1);
  // Holes are no end: they read as zeroes and fill up again.
  for (std::uint32_t i = 0; i < 100; ++i) {
    const Command command = command_for(77, kWorkloadSlot, i % 2 ? Command::Kind::fetch : Command::Kind::store);
    peer.put(&command, sizeof command);
    REQUIRE(::fallocate(memory.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 65536) == 0);
    siege.turns(10);
    peer.mine().consumed.store(peer.theirs().consumed.load());
  }
  siege.server->corrupt = 0;  // this peer's data is its own affair
  peer.hang_up();
}

TEST_CASE("Memory that could shrink, or is no memory, is not mapped") {
  Siege siege;
  RawPeer peer(siege.turn());
  SECTION("in an announcement") {
    REQUIRE(peer.establish(siege.path()));
    SECTION("unsealed") {
      const Descriptor memory = unsealed_memfd(4096);
      CHECK(peer.say(region_of(4096, 77), memory.get()) == Sent::sent);
      CHECK(peer.cut_off());
      CHECK_THAT(peer.farewell, Catch::Contains("not sealed"));
    }
    SECTION("an ordinary file") {
      const Descriptor file(::open(siege.scratch.path("file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
      REQUIRE(::ftruncate(file.get(), 4096) == 0);
      CHECK(peer.say(region_of(4096, 77), file.get()) == Sent::sent);
      CHECK(peer.cut_off());
    }
    SECTION("a socket") {
      CHECK(peer.say(region_of(4096, 77), peer.socket()) == Sent::sent);
      CHECK(peer.cut_off());
      CHECK_THAT(peer.farewell, Catch::Contains("not a memfd"));
    }
    SECTION("nothing at all") {
      CHECK(peer.say(region_of(4096, 77)) == Sent::sent);
      CHECK(peer.cut_off());
    }
    SECTION("longer than it is") {
      const Descriptor memory = sealed_memfd(4096);
      CHECK(peer.say(region_of(4097, 77), memory.get()) == Sent::sent);
      CHECK(peer.cut_off());
    }
  }
  SECTION("as a ring") {
    REQUIRE(peer.connect(siege.path()));
    const std::size_t size = RingMemory::Sizes{256, 256}.bytes();
    const Descriptor ring = GENERATE(0, 1, 2) == 0 ? unsealed_memfd(size) : sealed_memfd(size - 4096);
    CHECK(peer.say(peer.honest_hello(), ring.get()) == Sent::sent);
    Packet packet;
    REQUIRE(peer.await(MessageType::refuse, packet));
    CHECK(packet.as<RefuseMessage>()->reason == Refusal::malformed);
  }
  peer.hang_up();
}

TEST_CASE("Hellos that cannot be are refused") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.connect(siege.path()));
  HelloMessage hello = peer.honest_hello();
  const Descriptor ring = sealed_memfd(RingMemory::Sizes{256, 256}.bytes());
  int fd = ring.get();
  SECTION("no ring") {
    fd = -1;
  }
  SECTION("odd ring size") {
    hello.slots_to_acceptor = 255;
  }
  SECTION("huge rings") {
    hello.slots_to_acceptor = hello.slots_to_connector = 0x80000000u;
  }
  SECTION("private data beyond its field") {
    hello.private_size = 0xffffffffu;
  }
  SECTION("no receive size") {
    hello.receive_size = 0;
  }
  SECTION("another version") {
    hello.head.version = 2;
  }
  SECTION("another magic") {
    hello.head.magic = 1;
  }
  CHECK(peer.say(hello, fd) == Sent::sent);
  Packet packet;
  CHECK(peer.await(MessageType::refuse, packet));
  peer.hang_up();
}

TEST_CASE("Floods on the socket end the connection or do nothing") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.establish(siege.path()));
  siege.turns(20);
  SECTION("two descriptors in a packet") {
    CHECK(peer.say_with_descriptors(2));
    CHECK(peer.cut_off());
  }
  SECTION("as many descriptors as the kernel takes") {
    CHECK(peer.say_with_descriptors(253));
    CHECK(peer.cut_off());
  }
  SECTION("one descriptor with every doorbell") {
    for (int i = 0; i < 3000; ++i) {
      [[maybe_unused]] const bool sent = peer.say_with_descriptors(1);  // full is fine
      if (i % 20 == 0) siege.turns(1);
    }
    peer.hang_up();
  }
  SECTION("more regions than the limit, all in one memfd") {
    const Descriptor memory = sealed_memfd(4096);
    for (std::uint32_t key = 1; key < 3000; ++key) {
      const Sent sent = peer.say(region_of(4096, key), memory.get());
      if (sent == Sent::gone) break;
      if (sent == Sent::full) {
        siege.turns(5);
        --key;
      }
    }
    CHECK(peer.cut_off());
    CHECK_THAT(peer.farewell, Catch::Contains("the limit"));
  }
  SECTION("more memfds than the limit") {
    for (std::uint32_t key = 1; key < 600; ++key) {
      const Descriptor memory = sealed_memfd(4096);
      if (peer.say(region_of(4096, key), memory.get()) == Sent::gone) break;
      siege.turns(5);
    }
    CHECK(peer.cut_off());
    CHECK_THAT(peer.farewell, Catch::Contains("256 are allowed"));
  }
  SECTION("a memfd larger than our address space is wide") {
    const Descriptor memory = sealed_memfd(std::size_t{1} << 46);
    CHECK(peer.say(region_of(4096, 5), memory.get()) == Sent::sent);
    CHECK(peer.cut_off());
  }
  SECTION("noise") {
    std::array<std::byte, 300> noise{};
    siege.random.fill(noise);
    CHECK(peer.say_bytes(noise.data(), 1 + siege.random.below(noise.size() - 1)) == Sent::sent);
    CHECK(peer.cut_off());
  }
  SECTION("a handshake in the middle") {
    CHECK(peer.say(peer.honest_hello(), peer.ring_fd().get()) == Sent::sent);
    CHECK(peer.cut_off());
  }
  SECTION("a revocation of nothing") {
    CHECK(peer.say(RevokeMessage{}) == Sent::sent);
    CHECK(peer.cut_off());
  }
  SECTION("a farewell that is longer than its field") {
    GoodbyeMessage goodbye;
    goodbye.text_size = 100000;
    CHECK(peer.say(goodbye) == Sent::sent);
    CHECK(peer.cut_off());
  }
  SECTION("a farewell full of escapes is printed harmlessly") {
    GoodbyeMessage goodbye;
    goodbye.text_size = put_bytes(goodbye.text, "\x1b[2J\x07", 5);
    CHECK(peer.say(goodbye) == Sent::sent);
    CHECK(peer.cut_off());
    CHECK(siege.server->last_error.find('\x1b') == std::string::npos);
    CHECK_THAT(siege.server->last_error, Catch::Contains("\\x1b"));
  }
}

TEST_CASE("A peer that never reads its socket is told of no more regions and loses its connection") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.establish(siege.path()));
  siege.turns(20);
  auto memory = SharedMemory::create(Bytes(4096), {});
  REQUIRE(memory.has_value());
  for (int i = 0; i < 5000 && siege.server->ended == 0; ++i) {
    auto region = siege.fabric->domain().register_memory(memory->span(), RemoteAccess::read);
    REQUIRE(region.has_value());
    region->reset();
    siege.turns(1);
  }
  CHECK(siege.server->ended == 1);
  peer.hang_up();
}

TEST_CASE("A peer that takes no responses stops its own connection and no other") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.establish(siege.path()));
  const Descriptor memory = sealed_memfd(4096);
  CHECK(peer.say(region_of(4096, 77), memory.get()) == Sent::sent);
  std::uint32_t sent = 0;
  for (int i = 0; i < 2000; ++i) {
    if (sent - peer.theirs().consumed.load() < 100) {
      const Command command = command_for(77, 8);
      peer.put(&command, sizeof command);
      ++sent;
    }
    siege.turns(1);
  }
  CHECK(peer.cut_off());  // the server notices more commands than are allowed at a time
  CHECK(siege.server->refused_commands == 1);
}

TEST_CASE("Silent guests are dropped in time and do not keep others out") {
  Siege siege({.backlog = 4, .half_open = 1s});
  std::vector<std::unique_ptr<RawPeer>> silent;
  for (int i = 0; i < 8; ++i) {
    silent.push_back(std::make_unique<RawPeer>(siege.turn()));
    REQUIRE(silent.back()->connect(siege.path()));
    (void)siege.reactor->run_until([] { return false; }, siege.clock.now() + 2ms);
  }
  // Four wait, four were refused at once.
  Packet packet;
  CHECK(silent[7]->await(MessageType::refuse, packet));
  CHECK(packet.as<RefuseMessage>()->reason == Refusal::busy);
  for (const auto& guest : silent)
    CHECK(guest->cut_off());
  RawPeer late(siege.turn());
  CHECK(late.establish(siege.path()));
  late.hang_up();
  silent.clear();
}

TEST_CASE("A peer that connects, says hello and is never ready is dropped") {
  Siege siege;
  RawPeer peer(siege.turn());
  REQUIRE(peer.connect(siege.path()));
  const Descriptor ring = sealed_memfd(RingMemory::Sizes{256, 256}.bytes());
  CHECK(peer.say(peer.honest_hello(), ring.get()) == Sent::sent);
  Packet packet;
  REQUIRE(peer.await(MessageType::accept, packet));
  CHECK(peer.cut_off());  // after AcceptOptions::timeout
  CHECK(siege.server->last_reason == Disconnect::Reason::unreachable);
  peer.hang_up();
}
