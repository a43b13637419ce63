// The verbs fabric on a device, both ends in this process: what the contract of all fabrics does not say.

#include <arpa/inet.h>
#include <rdma/rdma_cma.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/sim/fabric_rig.h"
#include "tests/softroce/process.h"
#include "tests/softroce/verbs_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using Catch::Matchers::Contains;

namespace {

std::size_t open_descriptors() {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

std::size_t resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("RssAnon:")) return std::stoul(line.substr(8));
  return 0;
}

// What the kernel has of this device: "pd 2 cq 2 qp 4 cm_id 3 mr 2 …".
std::string kernel_resources() {
  return shell("rdma resource show rxe1");
}

std::size_t completion_queues() {
  const std::string resources = kernel_resources();
  return std::stoul(resources.substr(resources.find(" cq ") + 4));
}

std::string error_of_listening(Side& side, const std::string& host, std::uint16_t port = 4420) {
  auto listening = side.group->listen(rdma_uri(host, port), {}, side);
  return listening ? "no error" : listening.error().message();
}

}  // namespace

TEST_CASE("A device that allows one outstanding read works, and so do two connections on it") {
  VerbsUnderTest fabric({.read_depth_max = 1});
  Rig rig(fabric);
  for (int round = 0; round < 2; ++round) {
    const auto pair = rig.connect({.incoming_reads = 16}, {.outgoing_reads = 16});
    CHECK(pair.server.connection->limits().read_depth == 1);
    CHECK(pair.client.connection->limits().read_depth == 1);
    constexpr std::size_t kSize = 10'000, kReads = 20;
    Buffer far(pair.client.connection->domain(), kSize * kReads, RemoteAccess::read);
    Buffer near(pair.server.connection->domain(), kSize * kReads, RemoteAccess::none);
    const Bytes8 data = pattern(kSize * kReads, 1);
    far.fill(data);
    std::vector<Segment> segments;
    std::vector<WorkRequest> reads;
    for (std::size_t i = 0; i < kReads; ++i)
      segments.push_back(near.segment(i * kSize, kSize));
    for (std::size_t i = 0; i < kReads; ++i)
      reads.push_back({.opcode = Opcode::rdma_read,
                       .rkey = far.rkey(),
                       .remote_address = far.address() + i * kSize,
                       .segments = {&segments[i], 1}});
    REQUIRE(pair.server.connection->post(reads) == PostResult::posted);
    rig.expect([&] { return pair.server.completed() == kReads; }, "all reads complete");
    CHECK(near.bytes(0, data.size()) == data);
  }
}

TEST_CASE("Thousands of writes that nobody asked to hear of never wedge the send queue") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const auto pair = rig.connect({.send_depth = 16});
  Buffer source(pair.client.connection->domain(), 4096, RemoteAccess::none);
  Buffer target(pair.server.connection->domain(), 4096, RemoteAccess::write);
  const Segment segment = source.segment(0, 64);
  const WorkRequest write{.opcode = Opcode::rdma_write,
                          .signaled = false,
                          .rkey = target.rkey(),
                          .remote_address = target.address(),
                          .segments = {&segment, 1}};
  const std::vector<WorkRequest> batch(11, write);
  for (int round = 0; round < 500; ++round)
    rig.expect([&] { return pair.client.connection->post(batch) == PostResult::posted; }, "there is room again");
  rig.run_a_while();
  CHECK(pair.client.done.empty());
  rig.expect_working(pair);
}

TEST_CASE("Connections whose completions do not fit one completion queue get another") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  std::vector<Rig::Pair> pairs;
  pairs.push_back(rig.connect());
  const std::size_t few = completion_queues();
  for (int i = 0; i < 10; ++i)  // 10 times 4128 entries on either side; rxe's queues end at 32767
    pairs.push_back(rig.connect({.send_depth = 4096}, {.send_depth = 4096}));
  CHECK(completion_queues() == few + 2);  // one on either side
  for (const auto& pair : pairs)
    rig.expect_working(pair);
}

TEST_CASE("A send queue that no completion queue of the device could serve is refused with the numbers") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  End end;
  std::string why;
  auto connection = rig.client.group->connect(fabric.address(), {.send_depth = 40'000}, end);
  REQUIRE(connection.has_value());
  rig.expect([&] { return end.disconnected.has_value(); }, "it fails");
  CHECK(*end.disconnected == Disconnect::Reason::local);
  (*connection)->close();
  rig.expect([&] { return end.closed; }, "it closes");

  End passive;
  rig.client.connect(fabric.address());
  rig.expect([&] { return !rig.server.requests.empty(); }, "a connect arrives");
  auto request = std::move(rig.server.requests.front());
  rig.server.requests.clear();
  auto accepted = rig.server.group->accept(std::move(request), {.send_depth = 40'000}, passive);
  REQUIRE_FALSE(accepted.has_value());
  CHECK(accepted.error().kind() == ErrorKind::resource);
  CHECK_THAT(accepted.error().message(), Contains("32767") && Contains("40032"));
}

TEST_CASE("200 rounds of connecting and disconnecting leave nothing behind") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const auto round = [&](bool by_client) {
    const auto pair = rig.connect();
    rig.expect_working(pair);
    (by_client ? pair.client : pair.server).connection->close();
    rig.expect([&] { return (by_client ? pair.server : pair.client).disconnected.has_value(); }, "the peer hears it");
    (by_client ? pair.server : pair.client).connection->close();
    rig.expect([&] { return pair.client.closed && pair.server.closed; }, "both are closed");
    rig.server.ends.clear();
    rig.client.ends.clear();
  };
  for (int i = 0; i < 50; ++i)
    round(i % 2 == 0);
  // Identifiers linger until the peer's machine has acknowledged the end: a moment.
  std::string kernel;
  rig.expect([&] { return Contains("cm_id 1 ").match(kernel = kernel_resources()); }, "only the listener is left");
  const std::size_t descriptors = open_descriptors(), resident = resident_kib();
  for (int i = 0; i < 200; ++i)
    round(i % 2 == 0);
  std::string after;
  rig.expect([&] { return (after = kernel_resources()) == kernel; }, "the kernel has what it had");
  CHECK(after == kernel);
  CHECK(open_descriptors() == descriptors);
  CHECK(resident_kib() <= resident + 128);
}

TEST_CASE("A peer that asks for a connection and then stays silent is dropped") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  rig.server.listen(fabric.address(), {.half_open = std::chrono::milliseconds(500)});
  // A peer with half the protocol: sends a request, never says ready-to-use.
  rdma_event_channel* const channel = rdma_create_event_channel();
  REQUIRE(channel != nullptr);
  REQUIRE(::fcntl(channel->fd, F_SETFL, O_NONBLOCK) == 0);
  rdma_cm_id* id = nullptr;
  REQUIRE(rdma_create_id(channel, &id, nullptr, RDMA_PS_TCP) == 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(4420);
  REQUIRE(::inet_pton(AF_INET, rig_address().c_str(), &to.sin_addr) == 1);
  const auto event = [&](rdma_cm_event_type wanted) {
    rig.expect(
        [&] {
          rdma_cm_event* got = nullptr;
          if (rdma_get_cm_event(channel, &got) != 0) return false;
          const rdma_cm_event_type type = got->event;
          rdma_ack_cm_event(got);
          return type == wanted;
        },
        rdma_event_str(wanted));
  };
  REQUIRE(rdma_resolve_addr(id, nullptr, reinterpret_cast<sockaddr*>(&to), 1000) == 0);
  event(RDMA_CM_EVENT_ADDR_RESOLVED);
  REQUIRE(rdma_resolve_route(id, 1000) == 0);
  event(RDMA_CM_EVENT_ROUTE_RESOLVED);
  rdma_conn_param parameters{};
  parameters.qp_num = 0x1234;
  REQUIRE(rdma_connect(id, &parameters) == 0);
  rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
  const Instant before = fabric.clock().now();
  End& server = rig.server.accept();
  rig.expect([&] { return server.disconnected.has_value(); }, "the server gives it up");
  const auto waited = fabric.clock().now() - before;
  CHECK_FALSE(server.established);
  CHECK(waited >= std::chrono::milliseconds(450));
  CHECK(waited < std::chrono::seconds(3));
  server.connection->close();
  rig.expect([&] { return server.closed; }, "it closes");
  rdma_destroy_id(id);
  rdma_destroy_event_channel(channel);
  rig.expect_working(rig.connect());
}

TEST_CASE("A connect that nobody answers ends after its own time, not the connection manager's") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  rig.server.listen(fabric.address());  // hears it, never accepts
  const Instant before = fabric.clock().now();
  End& client = rig.client.connect(fabric.address(), {.timeout = std::chrono::milliseconds(700)});
  rig.expect([&] { return client.disconnected.has_value(); }, "it is given up");
  CHECK(*client.disconnected == Disconnect::Reason::unreachable);
  CHECK(fabric.clock().now() - before >= std::chrono::milliseconds(650));
  CHECK(fabric.clock().now() - before < std::chrono::seconds(4));
}

TEST_CASE("Where an address is not on an RDMA device, listening says which are") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  CHECK_THAT(error_of_listening(rig.server, "127.0.0.1"), Contains("127.0.0.1:4420") && Contains("loopback"));
  CHECK_THAT(error_of_listening(rig.server, "203.0.113.7"), Contains("not on an RDMA device") && Contains("10.99.0.1"));
}

TEST_CASE("Connecting to a loopback address, or where no route leads, says so") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const auto error_of = [&](const std::string& host) -> std::string {
    struct Listening final : ConnectionHandler {
      void on_established(std::span<const std::byte>) override { text = "established"; }
      void on_disconnected(const Disconnect& disconnect) override { text = disconnect.error.message(); }
      void on_closed() override { closed = true; }
      std::string text;
      bool closed = false;
    } handler;
    auto connection = rig.client.group->connect(rdma_uri(host, 4420), {.timeout = std::chrono::seconds(3)}, handler);
    if (!connection) return connection.error().message();
    rig.expect([&] { return !handler.text.empty(); }, "it fails");
    (*connection)->close();
    rig.expect([&] { return handler.closed; }, "it closes");
    return handler.text;
  };
  CHECK_THAT(error_of("127.0.0.1"), Contains("127.0.0.1:4420") && Contains("loopback"));
  CHECK_THAT(error_of("203.0.113.7"), Contains("203.0.113.7:4420") && Contains("no route"));
  CHECK_THAT(error_of(rig_address()), Contains("nobody listens"));
  CHECK_THAT(error_of("no-such-host.invalid"), Contains("looking up host \"no-such-host.invalid\""));
}

TEST_CASE("IPv6 works as IPv4 does") {
  shell("ip -6 address replace fd00:99::1/64 dev dummy0 nodad");
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const Uri address = rdma_uri("fd00:99::1", 4420);
  rig.expect(
      [&] {
        auto listening = rig.server.group->listen(address, {}, rig.server);
        if (listening) rig.server.listener = std::move(*listening);
        return listening.has_value();
      },
      "the device has the address");
  CHECK(rig.server.listener->address() == "[fd00:99::1]:4420");
  End& client = rig.client.connect(address);
  rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
  CHECK_THAT(rig.server.requests.front()->peer(), Contains("[fd00:99::1]:"));
  End& server = rig.server.accept();
  rig.expect([&] { return client.established && server.established; }, "both ends are established");
  rig.expect_working({client, server});
}

TEST_CASE("A listener on every address and any port says which port it got, and works") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  rig.server.listen(rdma_uri("0.0.0.0", 0));
  const std::string address = rig.server.listener->address();
  const auto port = std::stoul(address.substr(address.rfind(':') + 1));
  CHECK(port != 0);
  End& client = rig.client.connect(rdma_uri(rig_address(), static_cast<std::uint16_t>(port)));
  rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
  End& server = rig.server.accept();
  rig.expect([&] { return client.established && server.established; }, "both ends are established");
  rig.expect_working({client, server});
}

TEST_CASE("Memory that cannot be registered for writing is unsupported") {
  VerbsUnderTest fabric;
  Rig rig(fabric);
  const auto pair = rig.connect();
  void* const read_only = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(read_only != MAP_FAILED);
  auto region =
      pair.client.connection->domain().register_memory({static_cast<std::byte*>(read_only), 4096}, RemoteAccess::read);
  ::munmap(read_only, 4096);
  REQUIRE_FALSE(region.has_value());
  CHECK(region.error().kind() == ErrorKind::unsupported);
  CHECK_THAT(region.error().message(), Contains("4 KiB on rxe1") && Contains("EFAULT"));
}

TEST_CASE("A user with too little locked memory hears how much is missing") {
  // In a process of its own: limits and user do not come back.
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit low{std::size_t{64} * 1024, std::size_t{64} * 1024};
    if (::setrlimit(RLIMIT_MEMLOCK, &low) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
    auto fabric = verbs::Fabric::open(null_logger());
    if (!fabric) ::_exit(3);
    const SystemClock clock;
    auto reactor = Reactor::create(clock, null_logger());
    struct Nothing final : CompletionHandler, ListenerHandler {
      void on_completions(std::span<const Completion>) override {}
      void on_request(std::unique_ptr<ConnectionRequest>) override {}
      void on_listener_failed(const Error&) override {}
    } nothing;
    struct Ended final : ConnectionHandler {
      void on_established(std::span<const std::byte>) override {}
      void on_disconnected(const Disconnect& disconnect) override { text = disconnect.error.message(); }
      void on_closed() override {}
      std::string text;
    } ended;
    auto group = (*fabric)->open_poll_group(**reactor, {.receive_depth = 1024, .receive_size = 4160}, nothing);
    if (!group) ::_exit(4);
    auto listening = (*group)->listen(rdma_uri(std::getenv("RBT_RIG_ADDR"), 4420), {}, nothing);
    if (!listening) ::_exit(5);
    auto connection = (*group)->connect(rdma_uri(std::getenv("RBT_RIG_ADDR"), 4420), {}, ended);
    if (!connection) ::_exit(6);
    if (!(*reactor)->run_until([&] { return !ended.text.empty(); }, clock.now() + std::chrono::seconds(5))) ::_exit(7);
    for (const char* part :
         {"RLIMIT_MEMLOCK is 64 KiB", "1024 receive buffers", "ulimit -l", "LimitMEMLOCK=", "4160 KiB"})
      if (ended.text.find(part) == std::string::npos) {
        std::fprintf(stderr, "no \"%s\" in: %s\n", part, ended.text.c_str());
        ::_exit(8);
      }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
