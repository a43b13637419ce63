#include "initiator/present/nbd_server.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "initiator/present/nbd_connection.h"
#include "initiator/present/nbd_jobs.h"

namespace rbt::initiator {

namespace {

using nbd::Connection;
constexpr std::uint32_t kConnectionsMax = 64;
constexpr std::uint32_t kRequestsMax = 65536;
constexpr Duration kHandshakeMax = std::chrono::seconds(10);
constexpr Duration kLogInterval = std::chrono::seconds(10);

}  // namespace

// The sockets are watched by an epoll of the server's own, so that what is watched for can change without an allocation.
class NbdServer::Implementation final : private transport::Source {
 public:
  Implementation(Volume& volume, transport::Reactor& reactor, const NbdServerOptions& options)
      : reactor_(reactor),
        options_(options),
        jobs_(nbd::Jobs::create(volume, options.requests, options.connections_max, options.read_only)),
        handshake_timer_(reactor.timers(), [this] { on_handshake_timer(); }),
        log_limit_(kLogInterval) {
    connections_.reserve(options.connections_max);
  }

  ~Implementation() override {
    connections_.clear();
    nbd::Jobs::leave(std::move(jobs_));
    if (epoll_fd_ >= 0) {
      reactor_.remove(*this);
      reactor_.unwatch(epoll_fd_);
      ::close(epoll_fd_);
    }
    if (listen_fd_ >= 0) {
      ::close(listen_fd_);
      ::unlink(path_.c_str());
    }
  }

  Result<void> start() {
    epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd_ < 0) return errno_failure(errno, "epoll_create1", "raise the limit of open files (`ulimit -n`)");
    reactor_.add(*this);
    return reactor_.watch(epoll_fd_, EPOLLIN, [this](std::uint32_t) { on_events(); });
  }

  Result<void> add(int fd, const nbd::Export* about) {
    if (connections_.size() == options_.connections_max) {
      ::close(fd);
      return rbt::failure(ErrorKind::resource,
                          fmt::format("the NBD server has {} connections already", options_.connections_max));
    }
    auto connection = std::make_unique<Connection>(
        fd, *jobs_, std::max<std::uint32_t>(options_.requests / options_.connections_max, 1), about, reactor_.now());
    epoll_event event{};
    event.data.ptr = connection.get();
    event.events = connection->watched = EPOLLIN;
    if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0)
      return errno_failure(errno, "watching the connection of an NBD client");
    connections_.push_back(std::move(connection));
    return {};
  }

  Result<void> listen(const std::string& path);

  [[nodiscard]] nbd::Jobs& jobs() const noexcept { return *jobs_; }
  [[nodiscard]] std::size_t connections() const noexcept { return connections_.size(); }

 private:
  // Source.
  std::size_t poll() override;
  [[nodiscard]] bool arm() override;

  void on_events();
  void on_client();
  void on_handshake_timer();
  void drop_ended();

  transport::Reactor& reactor_;
  const NbdServerOptions options_;
  std::unique_ptr<nbd::Jobs> jobs_;
  std::vector<std::unique_ptr<Connection>> connections_;
  int epoll_fd_ = -1;
  int listen_fd_ = -1;
  std::string path_;
  transport::Timer handshake_timer_;
  RateLimit log_limit_;
};

// What the volume has done meanwhile is answered first: that makes room for what comes.
std::size_t NbdServer::Implementation::poll() {
  std::size_t work = jobs_->retry();
  for (const auto& connection : connections_)
    work += connection->send() + connection->receive() + connection->send();
  drop_ended();
  return work;
}

// Nothing has happened in a whole turn: what there is to do comes through the sockets, or from the volume.
bool NbdServer::Implementation::arm() {
  for (const auto& connection : connections_) {
    epoll_event event{};
    event.data.ptr = connection.get();
    event.events = connection->interest();
    if (event.events == connection->watched) continue;
    if (::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, connection->fd(), &event) == 0) connection->watched = event.events;
  }
  return true;
}

// Everything else is poll()'s, but an end that reading does not find, because nothing is being read.
void NbdServer::Implementation::on_events() {
  std::array<epoll_event, 16> events;  // NOLINT(cppcoreguidelines-pro-type-member-init): written by epoll
  const int count = ::epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    if (event.data.ptr == nullptr) {
      on_client();
    } else if ((event.events & (EPOLLHUP | EPOLLERR)) != 0) {
      auto& connection = *static_cast<Connection*>(event.data.ptr);
      static_cast<void>(connection.receive());  // it may have said good-bye
      connection.hang_up(Connection::End::hung_up);
    }
  }
}

void NbdServer::Implementation::drop_ended() {
  for (std::size_t i = 0; i < connections_.size();) {
    const Connection::End end = connections_[i]->end();
    if (end == Connection::End::none) {
      ++i;
      continue;
    }
    if (end == Connection::End::protocol && log_limit_.allow(reactor_.now()))
      reactor_.logger().warning("an NBD client is hung up on: {}", nbd::name(end));
    std::swap(connections_[i], connections_.back());
    connections_.pop_back();
    if (options_.on_end) options_.on_end(end == Connection::End::disconnect);
  }
}

// ---- clients who come by themselves

Result<void> NbdServer::Implementation::listen(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return rbt::failure(ErrorKind::invalid_argument, fmt::format("'{}': the path of a Unix socket has 1 to {} bytes",
                                                                 path, sizeof address.sun_path - 1));
  std::memcpy(address.sun_path, path.data(), path.size());
  const auto* const name = reinterpret_cast<const sockaddr*>(&address);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno_failure(errno, "making a Unix socket");
  if (::connect(fd, name, sizeof address) == 0) {
    ::close(fd);
    return rbt::failure(ErrorKind::in_use, fmt::format("somebody listens on {} already", path));
  }
  struct stat status {};
  if (errno == ECONNREFUSED && ::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) ::unlink(path.c_str());
  // The mode before the name is there: nobody gets in between.
  if (::fchmod(fd, 0600) != 0 || ::bind(fd, name, sizeof address) != 0 || ::listen(fd, 16) != 0) {
    const int error = errno;
    ::close(fd);
    return errno_failure(error, fmt::format("listening on {}", path));
  }
  listen_fd_ = fd;
  path_ = path;
  epoll_event event{};
  event.events = EPOLLIN;
  if (::chmod(path.c_str(), 0600) != 0 || ::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0)
    return errno_failure(errno, fmt::format("listening on {}", path));
  return {};
}

void NbdServer::Implementation::on_client() {
  const int fd = ::accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  const Namespace& disk = jobs_->volume().disk();
  const nbd::Export about{.size = disk.size().value(),
                          .flags = jobs_->flags(),
                          .block_min = disk.block_size(),
                          .block_preferred = std::max<std::uint32_t>(4096, disk.block_size()),
                          .block_max = nbd::Jobs::kDataMax};
  if (auto added = add(fd, &about); !added) {
    if (log_limit_.allow(reactor_.now())) reactor_.logger().warning("{}", added.error().message());
  } else if (!handshake_timer_.armed()) {
    handshake_timer_.arm(reactor_.now() + kHandshakeMax);
  }
}

void NbdServer::Implementation::on_handshake_timer() {
  bool others = false;
  for (const auto& connection : connections_) {
    if (!connection->shaking_hands()) continue;
    if (reactor_.now() - connection->since() >= kHandshakeMax)
      connection->hang_up(Connection::End::protocol);
    else
      others = true;
  }
  if (others) handshake_timer_.arm(reactor_.now() + kHandshakeMax / 4);
}

// ---- the public face

NbdServer::NbdServer(std::unique_ptr<Implementation> implementation) noexcept
    : implementation_(std::move(implementation)) {}
NbdServer::~NbdServer() = default;

Result<std::unique_ptr<NbdServer>> NbdServer::create(Volume& volume, transport::Reactor& reactor,
                                                     const NbdServerOptions& options) {
  if (options.connections_max < 1 || options.connections_max > kConnectionsMax || options.requests < 1 ||
      options.requests > kRequestsMax)
    return rbt::failure(
        ErrorKind::invalid_argument,
        fmt::format("an NBD server with {} connections and {} requests: 1 to {} and 1 to {} are allowed",
                    options.connections_max, options.requests, kConnectionsMax, kRequestsMax));
  const Bytes needed = buffers_min(options.connections_max);
  const Bytes there = volume.buffers() == nullptr ? Bytes(0) : volume.buffers()->size();
  if (there < needed)
    return rbt::failure(
        ErrorKind::invalid_argument,
        fmt::format("an NBD server for {} connections needs a volume with {} bytes of buffers; it has {}",
                    options.connections_max, needed.value(), there.value()));
  auto implementation = std::make_unique<Implementation>(volume, reactor, options);
  if (auto started = implementation->start(); !started) return rbt::failure(std::move(started.error()));
  return std::unique_ptr<NbdServer>(new NbdServer(std::move(implementation)));
}

Result<void> NbdServer::adopt(int fd) {
  return implementation_->add(fd, nullptr);
}
Result<void> NbdServer::listen(const std::string& path) {
  return implementation_->listen(path);
}
std::uint16_t NbdServer::flags() const noexcept {
  return implementation_->jobs().flags();
}
std::uint32_t NbdServer::connections() const noexcept {
  return static_cast<std::uint32_t>(implementation_->connections());
}
Bytes NbdServer::buffers_in_use() const noexcept {
  return implementation_->jobs().in_use();
}
std::uint64_t NbdServer::requests_begun() const noexcept {
  return implementation_->jobs().begun();
}

}  // namespace rbt::initiator
