#include "tools/rbt-connect/map/control.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "transport/reactor/timer.h"

namespace rbt::tools::map {

namespace {

constexpr std::size_t kConnectionsMax = 8;
constexpr Duration kPatience = std::chrono::seconds(5);  // with a client that does not send, or does not read

Result<sockaddr_un> address_of(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string& text = path.native();
  if (text.size() >= sizeof address.sun_path)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}: a socket's path has at most {} bytes", text, sizeof address.sun_path - 1));
  std::memcpy(address.sun_path, text.data(), text.size());
  return address;
}

bool may_ask(int fd) noexcept {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == 0 || peer.uid == ::geteuid());
}

std::string line_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

Json answer_of(const Error& error) {
  return {{"ok", false}, {"kind", name(error.kind())}, {"message", error.message()}};
}

Result<Json> parse_answer(std::string_view line) {
  Json json = Json::parse(line, nullptr, false);
  const Json ok = json.is_object() ? json.value("ok", Json()) : Json();
  if (!ok.is_boolean()) return failure(ErrorKind::protocol, "the volume's process answers what is no answer");
  if (ok) return json;
  const Json message = json.value("message", Json());
  ErrorKind kind = ErrorKind::io;
  for (int each = 0; each <= static_cast<int>(ErrorKind::internal); ++each)
    if (json.value("kind", Json()) == name(static_cast<ErrorKind>(each))) kind = static_cast<ErrorKind>(each);
  return failure(kind, message.is_string() ? message.get<std::string>() : "the volume's process failed to do it");
}

// ---- the process's side

struct ControlServer::Connection {
  Connection(ControlServer& s, int descriptor, Client c)
      : server(s), fd(descriptor), client(c), timer(s.reactor_.timers(), [this] { server.drop(*this); }) {}
  ~Connection() { ::close(fd); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  ControlServer& server;
  int fd;
  Client client;
  transport::Timer timer;
  std::string request{};
  bool asked = false;    // the request is complete
  std::string answer{};  // what is still to be sent
  bool over = false;     // taken out at the next chance: not from within its own handlers
};

ControlServer::ControlServer(transport::Reactor& reactor, Handler handler)
    : reactor_(reactor), handler_(std::move(handler)) {}

Result<std::unique_ptr<ControlServer>> ControlServer::listen(transport::Reactor& reactor,
                                                             const std::filesystem::path& path, Handler handler) {
  auto address = address_of(path);
  if (!address) return failure(std::move(address.error()));
  std::unique_ptr<ControlServer> server(new ControlServer(reactor, std::move(handler)));
  server->fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (server->fd_ < 0) return errno_failure(errno, "making a control socket");
  ::unlink(path.c_str());
  if (::bind(server->fd_, reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(server->fd_, kConnectionsMax) != 0)
    return errno_failure(errno, fmt::format("listening on {}", path.string()));
  auto watched = reactor.watch(server->fd_, EPOLLIN, [raw = server.get()](std::uint32_t) { raw->accept_all(); });
  if (!watched) return failure(std::move(watched.error()));
  return server;
}

ControlServer::~ControlServer() {
  for (const auto& connection : connections_)
    if (!connection->over) reactor_.unwatch(connection->fd);
  if (fd_ < 0) return;
  reactor_.unwatch(fd_);
  ::close(fd_);
}

void ControlServer::accept_all() {
  std::erase_if(connections_, [](const auto& each) { return each->over; });
  while (true) {
    const int fd = ::accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    if (connections_.size() == kConnectionsMax) {
      ::close(fd);
      continue;
    }
    auto& connection = *connections_.emplace_back(std::make_unique<Connection>(*this, fd, next_++));
    connection.timer.arm(reactor_.clock().now() + kPatience);
    auto watched = reactor_.watch(fd, EPOLLIN, [this, &connection](std::uint32_t) { handle(connection); });
    if (!watched) {
      connection.over = true;
    } else if (!may_ask(fd)) {
      connection.asked = true;
      answer(connection.client, answer_of(Error(ErrorKind::permission, "only root and the volume's own user may ask")));
    }
  }
}

void ControlServer::drop(Connection& connection) {
  if (connection.over) return;
  connection.over = true;
  connection.timer.cancel();
  reactor_.unwatch(connection.fd);
  ::shutdown(connection.fd, SHUT_RDWR);
}

void ControlServer::handle(Connection& connection) {
  if (connection.over) return;
  if (!connection.answer.empty()) return send(connection);
  read(connection);
}

void ControlServer::read(Connection& connection) {
  std::array<char, kRequestMax> piece{};
  const ssize_t size = ::recv(connection.fd, piece.data(), piece.size(), 0);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  // Nothing comes behind the request: whoever closes before the answer does not want it.
  if (size <= 0 || connection.asked) return drop(connection);
  connection.request.append(piece.data(), static_cast<std::size_t>(size));
  const auto end = connection.request.find('\n');
  if (end == std::string::npos) {
    if (connection.request.size() > kRequestMax) drop(connection);
    return;
  }
  connection.asked = true;
  const Json request = Json::parse(connection.request.substr(0, end), nullptr, false);
  if (!request.is_object() || request.value("version", Json()) != 1)
    return answer(connection.client,
                  answer_of(Error(ErrorKind::invalid_argument,
                                  "the request is not a JSON object of version 1: rbt-connect and the volume's process "
                                  "are of different releases")));
  connection.timer.cancel();  // an orderly end may take its time
  if (auto json = handler_(connection.client, request)) answer(connection.client, *json);
}

void ControlServer::answer(Client client, const Json& json) {
  const auto at = std::find_if(connections_.begin(), connections_.end(),
                               [&](const auto& each) { return each->client == client && !each->over; });
  if (at == connections_.end()) return;
  Connection& connection = **at;
  connection.answer = line_of(json);
  connection.timer.arm(reactor_.clock().now() + kPatience);
  send(connection);
}

void ControlServer::send(Connection& connection) {
  const ssize_t sent = ::send(connection.fd, connection.answer.data(), connection.answer.size(), MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) return drop(connection);
  connection.answer.erase(0, static_cast<std::size_t>(std::max<ssize_t>(sent, 0)));
  if (connection.answer.empty()) return drop(connection);
  reactor_.unwatch(connection.fd);
  auto watched = reactor_.watch(connection.fd, EPOLLOUT, [this, &connection](std::uint32_t) { handle(connection); });
  if (!watched) drop(connection);
}

void ControlServer::finish(Instant deadline) {
  static_cast<void>(reactor_.run_until(
      [this] {
        return std::all_of(connections_.begin(), connections_.end(),
                           [](const auto& each) { return each->over || each->answer.empty(); });
      },
      deadline));
}

// ---- the other side

Asked::~Asked() {
  if (fd_ >= 0) ::close(fd_);
}

Result<Asked> Asked::send(const std::filesystem::path& path, const Json& request) {
  auto address = address_of(path);
  if (!address) return failure(std::move(address.error()));
  Asked asked(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (asked.fd_ < 0) return errno_failure(errno, "making a socket");
  if (::connect(asked.fd_, reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0)
    return errno_failure(errno == ECONNREFUSED ? ENOENT : errno, fmt::format("connecting to {}", path.string()),
                         errno == EACCES ? "run it as root" : "");
  const std::string line = line_of(request);
  if (::send(asked.fd_, line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size()))
    return errno_failure(errno, fmt::format("sending to {}", path.string()));
  return asked;
}

Result<Json> Asked::answer(const Clock& clock, Instant deadline) {
  std::string text;
  while (text.find('\n') == std::string::npos) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - clock.now()).count();
    pollfd poll{.fd = fd_, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&poll, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, 1 << 30)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) return failure(ErrorKind::timed_out, "the volume's process does not answer");
    std::array<char, 4096> piece{};
    const ssize_t size = ::recv(fd_, piece.data(), piece.size(), 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (size <= 0) return failure(ErrorKind::disconnected, "the volume's process ended without an answer");
    text.append(piece.data(), static_cast<std::size_t>(size));
    if (text.size() > kAnswerMax) return failure(ErrorKind::protocol, "the volume's process answers too much");
  }
  return parse_answer(text);
}

}  // namespace rbt::tools::map
