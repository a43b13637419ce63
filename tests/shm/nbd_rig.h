#pragma once
// A target, a volume on it and an NBD server on that, all in one thread on one reactor; and clients that say what they like.

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "initiator/present/nbd_protocol.h"
#include "initiator/present/nbd_server.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/shm/scratch.h"
#include "tests/sim/gated_store.h"
#include "transport/shm/fabric.h"

namespace rbt::test {

using Octets = std::vector<std::byte>;

class NbdRig {
 public:
  enum class Gated : std::uint8_t { yes, no };
  explicit NbdRig(const initiator::NbdServerOptions& options = {.connections_max = 4}, Gated gated = Gated::yes) {
    fabric_ = std::move(transport::shm::Fabric::open({}, random_).value());
    client_fabric_ = std::move(transport::shm::Fabric::open({}, random_).value());
    reactor = std::move(transport::Reactor::create(clock, null_logger()).value());
    const auto nqn = nvme::Nqn::parse("nqn.2024-01.io.example:nbd").value();
    target_ =
        std::move(target::Target::open(
                      {.clock = clock, .logger = null_logger(), .random = random_, .given_reactors = {reactor.get()}})
                      .value());
    REQUIRE(target_->add_subsystem(nqn, {.allow_any_host = true}));
    gate.open = true;
    auto store = target::make_store("ram:size=16MiB", {.clock = clock, .random = random_, .logger = null_logger()});
    REQUIRE(store);
    if (gated == Gated::yes) *store = make_gated_store(std::move(*store), gate);
    REQUIRE(target_->add_namespace(nqn, std::move(*store)));
    const std::string socket = scratch.path("rbt");
    REQUIRE(target_->listen(*fabric_, Uri::parse("nvme+shm://?socket=" + socket).value()));
    REQUIRE(target_->start());
    const Uri uri = Uri::parse("nvme+shm:///" + nqn.text() + "/1?socket=" + socket).value();
    initiator::VolumeOptions volume_options;
    volume_options.queue.buffers = initiator::NbdServer::buffers_min(options.connections_max);
    auto opened =
        initiator::Volume::open({*client_fabric_, clock, null_logger(), random_}, {&uri, 1}, *reactor, volume_options);
    if (!opened) FAIL(opened.error().message());
    volume = std::move(*opened);
    initiator::NbdServerOptions mine = options;
    mine.on_end = [this](bool asked) {
      ++ended;
      ended_asked += asked ? 1U : 0U;
    };
    auto made = initiator::NbdServer::create(*volume, *reactor, mine);
    if (!made) FAIL(made.error().message());
    server = std::move(*made);
  }
  ~NbdRig() {
    gate.open = true;
    gate.let_all_through();
    server.reset();
    volume.reset();
    target_->stop();
    CHECK(reactor->run_until([this] { return target_->drained(); }, clock.now() + kPatience));
  }
  NbdRig(const NbdRig&) = delete;
  NbdRig& operator=(const NbdRig&) = delete;

  [[nodiscard]] bool eventually(const std::function<bool()>& done) {
    const Instant end = clock.now() + kPatience;
    while (!done() && clock.now() < end)
      static_cast<void>(volume->run_until(done, clock.now() + std::chrono::milliseconds(1)));
    return done();
  }
  /// Long enough for whatever is on its way to arrive.
  void settle() {
    static_cast<void>(volume->run_until([] { return false; }, clock.now() + std::chrono::milliseconds(30)));
  }
  [[nodiscard]] std::uint64_t in_use() const { return server->buffers_in_use().value(); }
  [[nodiscard]] bool pool_is_whole() const { return volume->buffers()->free_bytes() == volume->buffers()->size(); }

  static constexpr Duration kPatience = std::chrono::seconds(60);
  SystemClock clock;
  ScratchDirectory scratch;
  Gate gate;
  std::unique_ptr<transport::Reactor> reactor;
  std::unique_ptr<initiator::Volume> volume;
  std::unique_ptr<initiator::NbdServer> server;
  std::size_t ended = 0, ended_asked = 0;

 private:
  Random random_{1};
  std::unique_ptr<transport::shm::Fabric> fabric_;
  std::unique_ptr<transport::shm::Fabric> client_fabric_;
  std::unique_ptr<target::Target> target_;
};

/// The other end of a socket pair; nothing of libnbd in it.
class NbdClient {
 public:
  using Type = initiator::nbd::CommandType;
  static constexpr std::uint32_t kHungUp = ~std::uint32_t{0};

  explicit NbdClient(NbdRig& rig) : rig_(rig) {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    fd_ = ends[0];
    REQUIRE(rig.server->adopt(ends[1]));
  }
  NbdClient(NbdRig& rig, int fd) : rig_(rig), fd_(fd) {}
  ~NbdClient() { close(); }
  NbdClient(const NbdClient&) = delete;
  NbdClient& operator=(const NbdClient&) = delete;

  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  /// As the kernel does with a connection that it gives up.
  void shut_down() const { ::shutdown(fd_, SHUT_RDWR); }

  static Octets command(Type type, std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0,
                        std::uint64_t cookie = 1) {
    using namespace initiator::nbd;
    Octets out(Command::kSize);
    const std::span<std::byte> at(out);
    put_be(at, Command::kMagic);
    put_be(at.subspan(4), flags);
    put_be(at.subspan(6), static_cast<std::uint16_t>(type));
    put_be(at.subspan(8), cookie);
    put_be(at.subspan(16), offset);
    put_be(at.subspan(24), length);
    return out;
  }
  /// Sends all of it, while the server reads. False: hung up on.
  bool send(const Octets& bytes) {
    std::size_t sent = 0;
    return rig_.eventually([&] {
      while (sent < bytes.size()) {
        const ssize_t now = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (now < 0) return errno != EAGAIN;
        sent += static_cast<std::size_t>(now);
      }
      return true;
    }) && sent == bytes.size();
  }
  /// The server has no turn meanwhile.
  void send_unseen(const Octets& bytes) const {
    REQUIRE(::send(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  }
  bool send_write(std::uint64_t offset, const Octets& data, std::uint16_t flags = 0, std::uint64_t cookie = 1) {
    Octets all = command(Type::write, offset, static_cast<std::uint32_t>(data.size()), flags, cookie);
    all.insert(all.end(), data.begin(), data.end());
    return send(all);
  }
  /// As much as was wanted, or less: hung up on.
  Octets receive(std::size_t size) {
    Octets out(size);
    std::size_t got = 0;
    const bool ended = rig_.eventually([&] {
      while (got < size) {
        const ssize_t now = ::recv(fd_, out.data() + got, size - got, MSG_DONTWAIT);
        if (now == 0) return true;
        if (now < 0) return errno != EAGAIN;
        got += static_cast<std::size_t>(now);
      }
      return true;
    });
    REQUIRE(ended);
    out.resize(got);
    return out;
  }
  /// Cookie and error of the next reply.
  std::pair<std::uint64_t, std::uint32_t> reply() {
    using namespace initiator::nbd;
    const Octets header = receive(Reply::kSize);
    if (header.size() < Reply::kSize) return {0, kHungUp};
    const std::span<const std::byte> at(header);
    REQUIRE(get_be<std::uint32_t>(at) == Reply::kMagic);
    return {get_be<std::uint64_t>(at.subspan(8)), get_be<std::uint32_t>(at.subspan(4))};
  }
  std::uint32_t ask(Type type, std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0) {
    return send(command(type, offset, length, flags)) ? reply().second : kHungUp;
  }
  std::uint32_t write(std::uint64_t offset, const Octets& data, std::uint16_t flags = 0) {
    return send_write(offset, data, flags) ? reply().second : kHungUp;
  }
  Octets read(std::uint64_t offset, std::uint32_t length) {
    return ask(Type::read, offset, length) == 0 ? receive(length) : Octets{};
  }
  [[nodiscard]] bool hung_up() { return receive(1).empty(); }
  [[nodiscard]] bool anything_came() const {
    pollfd look{fd_, POLLIN, 0};
    return ::poll(&look, 1, 0) != 0;
  }

 private:
  NbdRig& rig_;
  int fd_ = -1;
};

}  // namespace rbt::test
