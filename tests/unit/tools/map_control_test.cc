// How a volume's process is spoken to, by those who behave and those who do not.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <thread>

#include "tools/rbt-connect/map/control.h"

using namespace rbt;
using namespace rbt::tools::map;
using namespace std::chrono_literals;

namespace {

/// A server on a thread of its own that echoes; "later" is answered after a second request.
class Served {
 public:
  Served() {
    std::string folder = "/tmp/rbt-control-XXXXXX";
    REQUIRE(::mkdtemp(folder.data()) != nullptr);
    path = std::filesystem::path(folder) / "socket";
    reactor = transport::Reactor::create(clock, null_logger()).value();
    server = ControlServer::listen(*reactor, path, [this](ControlServer::Client client, const Json& request) {
               ++requests;
               if (request.value("command", Json()) == "later") {
                 waiting = client;
                 return std::optional<Json>();
               }
               if (waiting != 0) server->answer(std::exchange(waiting, 0), {{"ok", true}, {"late", true}});
               return std::optional<Json>(Json{{"ok", true}, {"echo", request}});
             }).value();
    thread = std::thread([this] { reactor->run(); });
  }
  ~Served() {
    reactor->stop();
    thread.join();
    server.reset();
    std::error_code error;
    std::filesystem::remove_all(path.parent_path(), error);
  }
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;

  [[nodiscard]] Result<Json> ask(const Json& request, Duration time = 20s) const {
    auto asked = Asked::send(path, request);
    if (!asked) return failure(std::move(asked.error()));
    return asked->answer(clock, clock.now() + time);
  }
  /// Sends bytes and returns all that comes back until the server hangs up.
  [[nodiscard]] std::string raw(const std::string& bytes) const {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.native().size());
    REQUIRE(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    static_cast<void>(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL));
    ::shutdown(fd, bytes.empty() ? SHUT_WR : -1);
    std::string all;
    char piece[4096];
    for (ssize_t size; (size = ::recv(fd, piece, sizeof piece, 0)) > 0;)
      all.append(piece, static_cast<std::size_t>(size));
    ::close(fd);
    return all;
  }

  SystemClock clock;
  std::filesystem::path path;
  std::unique_ptr<transport::Reactor> reactor;
  std::unique_ptr<ControlServer> server;
  ControlServer::Client waiting = 0;  // the reactor's thread
  std::atomic<int> requests{0};
  std::thread thread;
};

}  // namespace

TEST_CASE("A request is answered") {
  const Served served;
  const auto answer = served.ask({{"version", 1}, {"command", "x"}});
  REQUIRE(answer);
  CHECK((*answer)["echo"]["command"] == "x");
}

TEST_CASE("An answer may come later, and others are answered meanwhile") {
  const Served served;
  auto first = Asked::send(served.path, {{"version", 1}, {"command", "later"}});
  REQUIRE(first);
  while (served.requests == 0)
    std::this_thread::yield();
  CHECK(served.ask({{"version", 1}, {"command", "x"}}));
  const auto late = first->answer(served.clock, served.clock.now() + 20s);
  REQUIRE(late);
  CHECK((*late)["late"] == true);
}

TEST_CASE("One who asks and goes is forgotten") {
  const Served served;
  { REQUIRE(Asked::send(served.path, {{"version", 1}, {"command", "later"}})); }
  CHECK(served.ask({{"version", 1}, {"command", "x"}}));
  CHECK(served.ask({{"version", 1}, {"command", "x"}}));
}

TEST_CASE("A request of another version is refused with words") {
  const Served served;
  const auto answer = served.ask({{"version", 2}, {"command", "x"}});
  REQUIRE_FALSE(answer);
  CHECK(answer.error().kind() == ErrorKind::invalid_argument);
  CHECK(served.requests == 0);
}

TEST_CASE("What is no request is answered with an error, or not at all, and the next one is served") {
  const Served served;
  for (const std::string& bytes :
       {std::string("{\n"), std::string("[]\n"), std::string("\n"), std::string("\0\xff\n", 3),
        std::string(200, '[') + "\n", std::string("{\"version\":\"1\"}\n")}) {
    const auto answer = parse_answer(served.raw(bytes));
    REQUIRE_FALSE(answer);
    CHECK(answer.error().kind() == ErrorKind::invalid_argument);
  }
  CHECK(served.raw("").empty());
  CHECK(served.raw(std::string(kRequestMax * 3, 'x')).empty());  // more than a request can be
  CHECK(served.requests == 0);
  CHECK(served.ask({{"version", 1}, {"command", "x"}}));
}

TEST_CASE("More at a time than are served do not keep the next one out for good") {
  const Served served;
  {
    std::vector<Asked> many;
    for (int i = 0; i < 20; ++i)
      if (auto asked = Asked::send(served.path, {{"version", 1}, {"command", "later"}}))
        many.push_back(std::move(*asked));
    REQUIRE(many.size() >= 8);
  }
  for (int i = 0; i < 1000; ++i) {
    if (served.ask({{"version", 1}, {"command", "x"}})) return;
    std::this_thread::sleep_for(1ms);
  }
  FAIL("nobody is served any more");
}

TEST_CASE("Nobody there is not found, nobody answering is a time-out") {
  const Served served;
  const auto none = Asked::send(served.path.string() + "x", Json::object());
  REQUIRE_FALSE(none);
  CHECK(none.error().kind() == ErrorKind::not_found);
  const auto late = served.ask({{"version", 1}, {"command", "later"}}, 10ms);
  REQUIRE_FALSE(late);
  CHECK(late.error().kind() == ErrorKind::timed_out);
  CHECK_FALSE(Asked::send(std::string(200, 'x'), Json::object()));
}

TEST_CASE("An error keeps its kind and its words on the way") {
  for (const auto kind : {ErrorKind::in_use, ErrorKind::unreachable, ErrorKind::permission, ErrorKind::internal}) {
    const auto parsed = parse_answer(answer_of(Error(kind, "so it is")).dump());
    REQUIRE_FALSE(parsed);
    CHECK(parsed.error().kind() == kind);
    CHECK(parsed.error().message() == "so it is");
  }
  CHECK(parse_answer("nonsense").error().kind() == ErrorKind::protocol);
  CHECK(parse_answer("{\"ok\":1}").error().kind() == ErrorKind::protocol);
}
