// Both ends in one process on threads of their own: what ThreadSanitizer can see of the rings, the doorbells and the
// fence around revoked memory.

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <optional>
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

constexpr std::size_t kStream = std::size_t{1} << 20;

/// Writes to a client's memory, over and over, until it is stopped by a failure. On a thread of its own.
class Streamer final : public CompletionHandler, public ListenerHandler {
 public:
  Streamer(const Clock& clock, Random& random, const std::string& path)
      : reactor_(make_reactor(clock)), fabric_(open_fabric(random)) {
    auto memory = SharedMemory::create(Bytes(kStream), {});
    REQUIRE(memory.has_value());
    source_ = std::move(*memory);
    auto region = fabric_->domain().register_memory(source_.span(), RemoteAccess::none);
    REQUIRE(region.has_value());
    region_ = std::move(*region);
    auto group = fabric_->open_poll_group(*reactor_, {}, *this);
    REQUIRE(group.has_value());
    group_ = std::move(*group);
    auto listener = group_->listen(shm_uri(path), {}, *this);
    REQUIRE(listener.has_value());
    listener_ = std::move(*listener);
    thread_ = std::thread([this] { reactor_->run(); });
  }
  ~Streamer() override {
    reactor_->stop();
    thread_.join();
    listener_.reset();
    for (const auto& session : sessions_)
      if (session->connection != nullptr) session->connection->close();
    while (group_->connections() != 0)
      reactor_->turn();
  }
  void on_request(std::unique_ptr<ConnectionRequest> request) override {
    auto& session = *sessions_.emplace_back(std::make_unique<Session>());
    auto connection = group_->accept(std::move(request), {}, session);
    if (connection) session.connection = *connection;
  }
  void on_listener_failed(const Error&) override {}
  void on_completions(std::span<const Completion> batch) override {
    for (const Completion& completion : batch) {
      auto& session = *static_cast<Session*>(completion.handler);
      if (completion.type == Completion::Type::receive) {
        std::memcpy(&session.where, completion.message.bytes.data(), sizeof session.where);
        group_->release(completion.message.buffer_id);
      } else if (completion.status != CompletionStatus::success) {
        ++failures;
        continue;
      }
      // Another value in every write, so that a late one is seen.
      std::memset(source_.data(), ++value_ | 1, kStream);
      const Segment segment{source_.data(), kStream, region_->lkey()};
      const WorkRequest write{.opcode = Opcode::rdma_write,
                              .rkey = static_cast<std::uint32_t>(session.where[1]),
                              .remote_address = session.where[0],
                              .segments = {&segment, 1}};
      [[maybe_unused]] const PostResult result = session.connection->post({&write, 1});
    }
  }
  std::atomic<int> failures{0};

 private:
  struct Session final : ConnectionHandler {
    void on_established(std::span<const std::byte>) override {}
    void on_disconnected(const Disconnect&) override { connection->close(); }
    void on_closed() override { connection = nullptr; }
    transport::Connection* connection = nullptr;
    std::array<std::uint64_t, 2> where{};
  };
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<shm::Fabric> fabric_;
  SharedMemory source_;
  std::unique_ptr<MemoryRegion> region_;
  std::unique_ptr<PollGroup> group_;
  std::unique_ptr<Listener> listener_;
  std::vector<std::unique_ptr<Session>> sessions_;
  int value_ = 0;
  std::thread thread_;
};

/// Says where it wants the stream, and closes in its destructor.
class StreamClient final : public CompletionHandler, public ConnectionHandler {
 public:
  StreamClient(shm::Fabric& fabric, Reactor& reactor, const Uri& uri) : reactor_(reactor) {
    auto group = fabric.open_poll_group(reactor, {.receive_depth = 8}, *this);
    REQUIRE(group.has_value());
    group_ = std::move(*group);
    auto connection = group_->connect(uri, {}, *this);
    REQUIRE(connection.has_value());
    connection_ = *connection;
  }
  ~StreamClient() override {
    connection_->close();
    while (!closed_)
      reactor_.turn();
  }
  void ask_for_stream(const MemoryRegion& region) {
    std::array<std::uint64_t, 2> where{reinterpret_cast<std::uintptr_t>(region.span().data), region.rkey()};
    const Segment segment{reinterpret_cast<std::byte*>(where.data()), sizeof where, 0};
    const WorkRequest send{.copy_data = true, .segments = {&segment, 1}};
    REQUIRE(connection_->post({&send, 1}) == PostResult::posted);
  }
  void on_established(std::span<const std::byte>) override {}
  void on_disconnected(const Disconnect&) override {}
  void on_closed() override { closed_ = true; }
  void on_completions(std::span<const Completion>) override {}

 private:
  Reactor& reactor_;
  std::unique_ptr<PollGroup> group_;
  transport::Connection* connection_ = nullptr;
  bool closed_ = false;
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
  Streamer streamer(clock, random, scratch.path("target.sock"));
  auto reactor = make_reactor(clock);
  auto fabric = open_fabric(random);
  for (int round = 0; round < 30; ++round) {
    CAPTURE(round);
    auto memory = SharedMemory::create(Bytes(kStream), {});
    REQUIRE(memory.has_value());
    auto region = fabric->domain().register_memory(memory->span(), RemoteAccess::write);
    REQUIRE(region.has_value());
    StreamClient client(*fabric, *reactor, shm_uri(scratch.path("target.sock")));
    const int failures = streamer.failures;
    client.ask_for_stream(**region);
    auto* const last = reinterpret_cast<std::atomic<std::uint64_t>*>(memory->data() + kStream - 8);
    // Nothing wakes the reactor when a peer writes to its memory: look now and then.
    for (int i = 0; i < 500 && last->load() == 0; ++i)
      (void)reactor->run_until([&] { return last->load() != 0; }, clock.now() + 10ms);
    REQUIRE(last->load() != 0);
    const Instant when = clock.now() + std::chrono::microseconds(random.below(1000));
    while (clock.now() < when) {
    }
    region->reset();
    const std::vector<std::byte> before(memory->data(), memory->data() + kStream);
    // The stream ends by an access that fails, and by nothing else.
    for (int i = 0; i < 1000 && streamer.failures == failures; ++i)
      (void)reactor->run_until([&] { return streamer.failures > failures; }, clock.now() + 10ms);
    REQUIRE(streamer.failures > failures);
    CHECK(std::equal(before.begin(), before.end(), memory->data()));
  }
}

TEST_CASE("When on_closed has come not a byte of our memory changes although the peer was writing to it") {
  ScratchDirectory scratch;
  SystemClock clock;
  Random random(6);
  Streamer streamer(clock, random, scratch.path("target.sock"));
  auto reactor = make_reactor(clock);
  auto fabric = open_fabric(random);
  auto memory = SharedMemory::create(Bytes(kStream), {});
  REQUIRE(memory.has_value());
  auto region = fabric->domain().register_memory(memory->span(), RemoteAccess::write);
  REQUIRE(region.has_value());
  auto* const last = reinterpret_cast<std::atomic<std::uint64_t>*>(memory->data() + kStream - 8);
  for (int round = 0; round < 100; ++round) {
    CAPTURE(round);
    last->store(0);
    std::optional<StreamClient> client(std::in_place, *fabric, *reactor, shm_uri(scratch.path("target.sock")));
    client->ask_for_stream(**region);
    for (int i = 0; i < 500 && last->load() == 0; ++i)
      (void)reactor->run_until([&] { return last->load() != 0; }, clock.now() + 10ms);
    REQUIRE(last->load() != 0);
    const Instant when = clock.now() + std::chrono::microseconds(random.below(1000));
    while (clock.now() < when) {
    }
    client.reset();  // close(), and on_closed()
    const std::vector<std::byte> before(memory->data(), memory->data() + kStream);
    const Instant later = clock.now() + 1ms;
    while (clock.now() < later) {
    }
    CHECK(std::equal(before.begin(), before.end(), memory->data()));
  }
}
