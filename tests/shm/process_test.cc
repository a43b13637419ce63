// Two processes: real traffic, and the death of either at any moment.

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "common/log.h"
#include "tests/shm/child.h"
#include "tests/shm/scratch.h"
#include "tests/shm/shm_under_test.h"
#include "tests/shm/workload.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using namespace std::chrono_literals;

namespace {

/// A reactor and a fabric of this process, and a place for a socket.
struct Here {
  Here() {
    auto made = Reactor::create(clock, null_logger());
    REQUIRE(made.has_value());
    reactor = std::move(*made);
    auto opened = shm::Fabric::open({}, random);
    REQUIRE(opened.has_value());
    fabric = std::move(*opened);
  }
  [[nodiscard]] bool until(const std::function<bool()>& done, Duration at_most = 10s) const {
    return reactor->run_until(done, clock.now() + at_most);
  }
  [[nodiscard]] std::string path() const { return scratch.path("target.sock"); }
  [[nodiscard]] std::vector<std::string> peer(const char* role) const { return {SHM_PEER, role, path()}; }

  ScratchDirectory scratch;
  SystemClock clock;
  Random random{2};
  std::unique_ptr<Reactor> reactor;
  std::unique_ptr<shm::Fabric> fabric;
};

void close_and_wait(const Here& here, WorkloadClient& client) {
  client.close();
  REQUIRE(here.until([&] { return client.closed; }));
}

}  // namespace

TEST_CASE("A server in another process moves verified data, also when both go to sleep in between") {
  Here here;
  Child server(here.peer("server"));
  REQUIRE(server.says("ready"));
  WorkloadClient client(*here.fabric, *here.reactor, 1);
  REQUIRE(client.connect(shm_uri(here.path())).has_value());
  CHECK(here.until([&] { return client.completed >= 2000; }));
  const std::uint64_t sleeps = here.reactor->counters().sleeps;
  // A stopped peer: our side has nothing to do but to sleep; the commands must go on when it does.
  server.signal(SIGSTOP);
  CHECK_FALSE(here.until([] { return false; }, 50ms));
  server.signal(SIGCONT);
  const std::uint64_t before = client.completed;
  CHECK(here.until([&] { return client.completed >= before + 1000; }));
  CHECK(here.reactor->counters().sleeps > sleeps);
  CHECK(client.corrupt == 0);
  CHECK_FALSE(client.disconnected.has_value());
  close_and_wait(here, client);
}

TEST_CASE("A killed server is reported within a second at any moment and the next one is served") {
  Here here;
  WorkloadClient client(*here.fabric, *here.reactor, 1);
  std::size_t descriptors = 0, mappings = 0;
  for (int round = 0; round < 50; ++round) {
    CAPTURE(round);
    Child server(here.peer("server"));
    REQUIRE(server.says("ready"));
    REQUIRE(client.connect(shm_uri(here.path())).has_value());
    const std::uint64_t before = client.completed;
    REQUIRE(here.until([&] { return client.completed >= before + 20; }));
    const Instant when = here.clock.now() + std::chrono::microseconds(here.random.below(3000));
    REQUIRE(here.until([&] { return here.clock.now() >= when; }));
    server.signal(SIGKILL);
    const Instant killed = here.clock.now();
    REQUIRE(here.until([&] { return client.disconnected.has_value(); }));
    CHECK(client.disconnected_at - killed < 1s);
    CHECK(*client.disconnected == Disconnect::Reason::lost);
    CHECK_THAT(client.error, Catch::Contains("pid " + std::to_string(server.pid())));
    close_and_wait(here, client);
    server.wait();
    if (round == 0) {
      descriptors = open_descriptors();
      mappings = memfd_mappings();
    }
    CHECK(open_descriptors() == descriptors);
    CHECK(memfd_mappings() == mappings);
  }
  CHECK(client.corrupt == 0);
}

TEST_CASE("A killed client is reported within a second at any moment and the others do not notice") {
  Here here;
  WorkloadServer server(*here.fabric, *here.reactor);
  REQUIRE(server.listen(shm_uri(here.path())).has_value());
  Random random(3);
  auto opened = shm::Fabric::open({}, random);
  REQUIRE(opened.has_value());
  WorkloadClient bystander(**opened, *here.reactor, 7);
  REQUIRE(bystander.connect(shm_uri(here.path())).has_value());
  std::size_t descriptors = 0, mappings = 0;
  for (int round = 0; round < 50; ++round) {
    CAPTURE(round);
    const std::uint64_t ended = server.ended, before = bystander.completed;
    Child client(here.peer("client"));
    REQUIRE(here.until([&] { return server.group().connections() == 2; }));
    const std::uint64_t served = server.served;
    REQUIRE(here.until([&] { return server.served >= served + 20; }));
    const Instant when = here.clock.now() + std::chrono::microseconds(here.random.below(3000));
    REQUIRE(here.until([&] { return here.clock.now() >= when; }));
    client.signal(SIGKILL);
    const Instant killed = here.clock.now();
    REQUIRE(here.until([&] { return server.ended > ended && server.group().connections() == 1; }));
    CHECK(server.last_end - killed < 1s);
    CHECK(*server.last_reason == Disconnect::Reason::lost);
    REQUIRE(here.until([&] { return bystander.completed > before + 10; }));
    client.wait();
    if (round == 0) {
      descriptors = open_descriptors();
      mappings = memfd_mappings();
    }
    // The client's pipe is still open here, as it was in the first round.
    CHECK(open_descriptors() == descriptors);
    CHECK(memfd_mappings() == mappings);
  }
  CHECK(bystander.corrupt == 0);
  CHECK(server.corrupt == 0);
  CHECK_FALSE(bystander.disconnected.has_value());
  close_and_wait(here, bystander);
  server.close_all();
  CHECK(here.until([&] { return server.group().connections() == 0; }));
}

TEST_CASE("A server on a path where another process serves is told which one") {
  Here here;
  Child first(here.peer("server"));
  REQUIRE(first.says("ready"));
  WorkloadServer second(*here.fabric, *here.reactor);
  const auto refused = second.listen(shm_uri(here.path()));
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().kind() == ErrorKind::in_use);
  CHECK_THAT(refused.error().message(), Catch::Contains("pid " + std::to_string(first.pid())));
  first.signal(SIGKILL);
  first.wait();
  CHECK(second.listen(shm_uri(here.path())).has_value());
}

TEST_CASE("Another user is refused and told why") {
  if (::geteuid() != 0) {
    WARN("not root: cannot become another user");
    return;
  }
  Here here;
  WorkloadServer server(*here.fabric, *here.reactor);
  REQUIRE(server.listen(shm_uri(here.path())).has_value());
  // Also where the file system would let him in: the credentials are checked by themselves.
  REQUIRE(::chmod(here.path().c_str(), 0777) == 0);
  REQUIRE(::chmod(here.scratch.path("").c_str(), 0755) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(9);
    SystemClock clock;
    Random random(1);
    auto reactor = Reactor::create(clock, null_logger());
    auto fabric = shm::Fabric::open({}, random);
    WorkloadClient client(**fabric, **reactor, 1);
    if (const auto begun = client.connect(shm_uri(here.path())); !begun) {
      std::fprintf(stderr, "%s\n", begun.error().message().c_str());
      ::_exit(8);
    }
    if (!(*reactor)->run_until([&] { return client.disconnected.has_value(); }, clock.now() + 5s)) ::_exit(7);
    const bool told = client.error.find("uid 65534 may not connect") != std::string::npos;
    ::_exit(*client.disconnected == Disconnect::Reason::refused && told ? 0 : 6);
  }
  int status = -1;
  bool ended = false;  // nothing wakes the reactor when a child ends: look now and then
  for (int i = 0; i < 1000 && !ended; ++i)
    ended = here.until([&] { return ::waitpid(child, &status, WNOHANG) == child; }, 10ms);
  REQUIRE(ended);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(server.group().connections() == 0);
}
