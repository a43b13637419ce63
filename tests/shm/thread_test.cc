// Both ends in one process on threads of their own: what ThreadSanitizer can see of the rings, the doorbells and the
// fence around revoked memory.

#include <atomic>
#include <catch2/catch.hpp>
#include <thread>

#include "common/log.h"
#include "tests/shm/scratch.h"
#include "tests/shm/shm_under_test.h"
#include "tests/shm/workload.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using namespace std::chrono_literals;

namespace {

std::unique_ptr<Reactor> make_reactor(const Clock& clock) {
  auto reactor = Reactor::create(clock, null_logger());
  REQUIRE(reactor.has_value());
  return std::move(*reactor);
}

std::unique_ptr<shm::Fabric> open_fabric(Random& random) {
  auto fabric = shm::Fabric::open({}, random);
  REQUIRE(fabric.has_value());
  return std::move(*fabric);
}

/// A server that runs on a thread of its own until it is destroyed.
class ServerThread {
 public:
  ServerThread(const Clock& clock, Random& random, const std::string& path)
      : reactor_(make_reactor(clock)), fabric_(open_fabric(random)), server_(*fabric_, *reactor_), clock_(clock) {
    REQUIRE(server_.listen(shm_uri(path)).has_value());
    thread_ = std::thread([this] { reactor_->run(); });
  }
  ~ServerThread() {
    reactor_->stop();
    thread_.join();
    server_.close_all();
    // The reactor was stopped for good: turned by hand.
    const Instant deadline = clock_.now() + 10s;
    while (server_.group().connections() != 0 && clock_.now() < deadline)
      reactor_->turn();
    CHECK(server_.group().connections() == 0);
    CHECK(server_.corrupt == 0);
  }

 private:
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<shm::Fabric> fabric_;
  WorkloadServer server_;
  const Clock& clock_;
  std::thread thread_;
};

}  // namespace

TEST_CASE("Two threads exchange verified data while a third registers and deregisters memory") {
  ScratchDirectory scratch;
  SystemClock clock;
  Random random(4);
  ServerThread server(clock, random, scratch.path("target.sock"));
  auto reactor = make_reactor(clock);
  auto fabric = open_fabric(random);
  WorkloadClient client(*fabric, *reactor, 1);
  REQUIRE(client.connect(shm_uri(scratch.path("target.sock"))).has_value());
  std::atomic<bool> stop{false};
  std::atomic<int> registered{0};
  std::thread registrar([&] {
    for (int i = 0; i < 400 && !stop; ++i) {
      auto memory = SharedMemory::create(Bytes(65536), {});
      if (!memory) return;
      auto region = fabric->domain().register_memory(memory->span(), RemoteAccess::read_write);
      if (region) ++registered;
    }
  });
  CHECK(reactor->run_until([&] { return client.completed >= 5000; }, clock.now() + 30s));
  stop = true;
  registrar.join();
  CHECK(registered > 0);
  CHECK(client.corrupt == 0);
  CHECK_FALSE(client.disconnected.has_value());
  client.close();
  CHECK(reactor->run_until([&] { return client.closed; }, clock.now() + 10s));
}

TEST_CASE("When a region's destructor has returned not a byte of it changes although the peer was writing to it") {
  ScratchDirectory scratch;
  SystemClock clock;
  Random random(5);
  int interrupted = 0;
  for (int round = 0; round < 20; ++round) {
    ServerThread server(clock, random, scratch.path("target.sock"));
    auto reactor = make_reactor(clock);
    auto fabric = open_fabric(random);
    auto client = std::make_unique<WorkloadClient>(*fabric, *reactor, 1);
    REQUIRE(client->connect(shm_uri(scratch.path("target.sock"))).has_value());
    REQUIRE(reactor->run_until([&] { return client->completed >= 50; }, clock.now() + 10s));
    // Eight commands are in flight and the server is writing; the memory is taken away under it.
    const auto memory = client->take_memory_away();
    std::vector<std::byte> before(memory.data(), memory.data() + memory.size());
    // Unless all of them had been answered already, the server's next access fails and ends the connection.
    if (reactor->run_until([&] { return client->disconnected.has_value(); }, clock.now() + 20ms)) ++interrupted;
    CHECK(std::equal(before.begin(), before.end(), memory.data()));
    client->close();
    CHECK(reactor->run_until([&] { return client->closed; }, clock.now() + 10s));
  }
  CHECK(interrupted > 0);
}

TEST_CASE("When on_closed has come not a byte of our memory changes although the peer was writing to it") {
  ScratchDirectory scratch;
  SystemClock clock;
  Random random(6);
  ServerThread server(clock, random, scratch.path("target.sock"));
  auto reactor = make_reactor(clock);
  auto fabric = open_fabric(random);
  WorkloadClient client(*fabric, *reactor, 1);
  for (int round = 0; round < 50; ++round) {
    REQUIRE(client.connect(shm_uri(scratch.path("target.sock"))).has_value());
    const std::uint64_t before_count = client.completed;
    REQUIRE(reactor->run_until([&] { return client.completed >= before_count + 20; }, clock.now() + 10s));
    client.close();
    REQUIRE(reactor->run_until([&] { return client.closed; }, clock.now() + 10s));
    const auto memory = client.memory();
    const std::vector<std::byte> before(memory.begin(), memory.end());
    (void)reactor->run_until([] { return false; }, clock.now() + 2ms);
    CHECK(std::equal(before.begin(), before.end(), memory.begin()));
  }
}
