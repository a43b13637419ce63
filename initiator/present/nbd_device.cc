#include "initiator/present/nbd_device.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <optional>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"
#include "initiator/present/aside.h"
#include "initiator/present/nbd_netlink.h"
#include "initiator/present/nbd_server.h"
#include "initiator/present/nbd_sysfs.h"

namespace rbt::initiator {

namespace {

// The kernel finds requests of a connection that has gone by their time-out only, so this is how long those of a killed process
// wait once a successor is there. With one connection that is all it does, and a slow volume is left alone. With several the
// kernel also gives up the connection of whatever takes longer. docs/block_devices_nbd.md has what was measured.
constexpr std::chrono::milliseconds kLookInterval(2000);  // one connection
constexpr std::chrono::seconds kTimeout(5);               // several
constexpr std::chrono::seconds kDeadConnections(300);
constexpr std::uint32_t kDepthMax = 128;  // the kernel's, per connection
constexpr std::uint32_t kConnectionsMax = 16;
constexpr int kSocketBuffer = 1 << 20;
constexpr Duration kConnectMax = std::chrono::seconds(20);
constexpr Duration kRecoverMax = std::chrono::seconds(10);
constexpr Duration kResizeMax = std::chrono::seconds(30);
constexpr Duration kPause = std::chrono::milliseconds(100);  // between attempts to replace a connection
constexpr Duration kLook = std::chrono::milliseconds(20);    // at what the kernel tells nobody

std::uint32_t connections_of(const DeviceOptions& options) noexcept {
  return std::clamp<std::uint32_t>(options.queues, 1, kConnectionsMax);
}
std::uint32_t depth_of(const DeviceOptions& options) noexcept {
  return std::clamp<std::uint32_t>(options.depth, 1, kDepthMax);
}

/// Our ends, and the kernel's until it has taken them.
struct Pairs {
  std::vector<int> ours;
  std::vector<int> kernels;
  Pairs() = default;
  Pairs(const Pairs&) = delete;
  Pairs& operator=(const Pairs&) = delete;
  ~Pairs() {
    for (const auto* const ends : {&ours, &kernels})
      for (const int fd : *ends)
        ::close(fd);
  }
};

Result<std::shared_ptr<Pairs>> make_pairs(std::uint32_t count) {
  auto pairs = std::make_shared<Pairs>();
  for (std::uint32_t i = 0; i < count; ++i) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
      return errno_failure(errno, "making a pair of sockets for the kernel",
                           "raise the limit of open files (`ulimit -n`)");
    pairs->ours.push_back(ends[0]);
    pairs->kernels.push_back(ends[1]);
    for (const int fd : ends)  // more than the default only with CAP_NET_ADMIN
      if (::setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBuffer, sizeof kSocketBuffer) != 0)
        static_cast<void>(::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof kSocketBuffer));
  }
  return pairs;
}

// The number's next user gets the kernel's defaults again.
void untune(std::uint32_t number) {
  static_cast<void>(nbd::write_attribute(number, "queue/max_sectors_kb", "0"));
  static_cast<void>(nbd::write_attribute(number, "queue/io_timeout", "30000"));
}

class NbdDevice final : public Device {
 public:
  NbdDevice(Volume& volume, transport::Reactor& reactor, const DeviceOptions& options)
      : volume_(volume),
        reactor_(reactor),
        options_(options),
        identifier_(nbd_identifier(volume.disk())),
        replace_timer_(reactor.timers(), [this] { replace(); }),
        look_timer_(reactor.timers(), [this] { look_timer_.arm(reactor_.now() + kLook); }) {}
  ~NbdDevice() override = default;

  Result<void> connect();
  Result<void> recover(std::uint32_t number);

  const std::string& path() const noexcept override { return path_; }
  std::string_view kind() const noexcept override { return "nbd"; }
  std::uint32_t number() const noexcept override { return number_; }
  const DeviceOptions& options() const noexcept override { return options_; }
  const Error* ended() const noexcept override { return ended_ ? &*ended_ : nullptr; }
  Result<void> resize() override;
  Result<void> remove(Instant deadline) override;

 private:
  Result<void> prepare(std::uint32_t connections);
  Result<void> adopt(Pairs& pairs);
  void named(std::uint32_t number);
  void tune();
  void learn_io_max();
  void on_end(bool asked);
  void replace();
  void on_replaced(Result<void> replaced);
  [[nodiscard]] bool look_until(const std::function<bool()>& done, Instant deadline);

  Volume& volume_;
  transport::Reactor& reactor_;
  DeviceOptions options_;
  const std::string identifier_;
  std::string path_;
  std::uint32_t number_ = 0;
  bool removing_ = false;
  std::optional<Error> ended_;
  Instant replaced_at_ = Instant::min();
  std::unique_ptr<Aside> aside_;
  std::unique_ptr<NbdServer> server_;
  transport::Timer replace_timer_;
  transport::Timer look_timer_;  // armed: ends the reactor's sleeps
};

// ---- making one

Result<void> NbdDevice::prepare(std::uint32_t connections) {
  options_.queues = connections;
  options_.depth = depth_of(options_);
  options_.read_only = options_.read_only || volume_.disk().read_only;
  auto aside = Aside::create(reactor_);
  if (!aside) return rbt::failure(std::move(aside.error()));
  aside_ = std::move(*aside);
  auto server = NbdServer::create(volume_, reactor_,
                                  {.connections_max = connections,
                                   .requests = connections * options_.depth,
                                   .read_only = options_.read_only,
                                   .on_end = [this](bool asked) { on_end(asked); }});
  if (!server) return rbt::failure(std::move(server.error()));
  server_ = std::move(*server);
  return {};
}

Result<void> NbdDevice::adopt(Pairs& pairs) {
  while (!pairs.ours.empty()) {
    const int fd = pairs.ours.back();
    pairs.ours.pop_back();
    if (auto adopted = server_->adopt(fd); !adopted) return adopted;
  }
  return {};
}

void NbdDevice::named(std::uint32_t number) {
  number_ = number;
  path_ = fmt::format("/dev/nbd{}", number);
}

Result<void> NbdDevice::connect() {
  auto netlink = nbd::Netlink::open();
  if (!netlink) return rbt::failure(std::move(netlink.error()));
  if (auto prepared = prepare(connections_of(options_)); !prepared) return prepared;
  auto pairs = make_pairs(options_.queues);
  if (!pairs) return rbt::failure(std::move(pairs.error()));
  const Namespace& disk = volume_.disk();
  // Here and not aside: the kernel notes this thread as the device's owner. It asks for nothing before it is done.
  auto number = netlink->connect({.size = disk.size(),
                                  .block_size = disk.block_size(),
                                  .flags = server_->flags(),
                                  .timeout = options_.queues == 1 ? std::chrono::seconds(0) : kTimeout,
                                  .dead_connections = kDeadConnections,
                                  .identifier = identifier_,
                                  .sockets = (*pairs)->kernels});
  if (!number) return rbt::failure(std::move(number.error()));
  named(*number);
  if (auto adopted = adopt(**pairs); !adopted) return adopted;
  tune();
  if (look_until([this] { return ::access(path_.c_str(), F_OK) == 0; }, reactor_.now() + kConnectMax)) return {};
  static_cast<void>(remove(reactor_.now() + kConnectMax));
  return rbt::failure(ErrorKind::not_found,
                      fmt::format("the kernel has made {}, but nobody has made its node: mount devtmpfs "
                                  "on /dev, or run udev",
                                  path_));
}

// What netlink has no words for. Waits for requests that udev's programs have begun meanwhile.
void NbdDevice::tune() {
  const std::uint64_t wanted = std::bit_floor(std::clamp<std::uint64_t>(options_.io_max.value(), 4 * kKiB, kMiB));
  const auto tuned = aside_->run(
      volume_, reactor_.now() + kConnectMax, "telling the kernel the size of requests",
      [number = number_, wanted, one = options_.queues == 1]() -> Result<void> {
        static_cast<void>(nbd::write_attribute(number, "queue/max_sectors_kb", fmt::format("{}", wanted / kKiB)));
        if (one)
          static_cast<void>(nbd::write_attribute(number, "queue/io_timeout", fmt::format("{}", kLookInterval.count())));
        return {};
      });
  if (!tuned) reactor_.logger().warning("{}: {}", path_, tuned.error().message());
  learn_io_max();
}

void NbdDevice::learn_io_max() {
  const std::string text = nbd::read_attribute(number_, "queue/max_sectors_kb").value_or("");
  std::uint64_t kib = 0;
  std::from_chars(text.data(), text.data() + text.size(), kib);
  if (kib != 0) options_.io_max = Bytes(std::bit_floor(kib) * kKiB);
}

Result<void> NbdDevice::recover(std::uint32_t number) {
  named(number);
  auto netlink = nbd::Netlink::open();
  if (!netlink) return rbt::failure(std::move(netlink.error()));
  const auto backend = nbd::read_attribute(number, "backend");
  if (!nbd::in_use(number) || !backend)
    return rbt::failure(ErrorKind::not_found,
                        path_ + " is not connected: there is nothing to recover; make a new device");
  if (*backend != identifier_)
    return rbt::failure(ErrorKind::mismatch,
                        fmt::format("{} was made for the disk {}, and this is {}: nothing was changed", path_,
                                    printable(*backend), identifier_));
  if (auto prepared = prepare(std::clamp<std::uint32_t>(nbd::queues(number), 1, kConnectionsMax)); !prepared)
    return prepared;
  const std::string pid = nbd::read_attribute(number, "pid").value_or("?");
  const Instant deadline = reactor_.now() + kRecoverMax;
  replace();
  // What the kernel does not take is closed by it, and replaced again.
  const auto taken = [this] { return !aside_->running() && server_->connections() == options_.queues; };
  const auto settled = [&] { return ended_.has_value() || taken(); };
  while (reactor_.now() < deadline) {
    if (!look_until(settled, deadline) || ended_) break;
    static_cast<void>(look_until([] { return false; }, reactor_.now() + kLook));
    if (!taken()) continue;
    options_.recover.reset();
    learn_io_max();
    return {};
  }
  if (ended_) return rbt::failure(Error(*ended_));
  return rbt::failure(
      ErrorKind::in_use,
      fmt::format("{}: the kernel has live connections to somebody (process {} made them); end that first", path_,
                  pid));
}

// ---- a connection has ended

void NbdDevice::on_end(bool asked) {
  if (removing_ || ended_) return;
  if (asked) {
    ended_ = Error(ErrorKind::disconnected, fmt::format("somebody has disconnected {}", path_));
    return;
  }
  if (!replace_timer_.armed()) replace_timer_.arm(std::max(reactor_.now(), replaced_at_ + kPause));
}

void NbdDevice::replace() {
  if (removing_ || ended_) return;
  if (aside_->running()) return replace_timer_.arm(reactor_.now() + kPause);
  const std::uint32_t there = server_->connections();
  if (there >= options_.queues) return;
  replaced_at_ = reactor_.now();
  auto pairs = make_pairs(options_.queues - there);
  if (!pairs) return on_replaced(rbt::failure(std::move(pairs.error())));
  if (auto adopted = adopt(**pairs); !adopted) return on_replaced(std::move(adopted));
  aside_->start(
      [number = number_, identifier = identifier_, held = *pairs]() -> Result<void> {
        auto netlink = nbd::Netlink::open();
        if (!netlink) return rbt::failure(std::move(netlink.error()));
        return netlink->reconfigure({.number = number, .identifier = identifier, .sockets = held->kernels});
      },
      [this](Result<void> replaced) { on_replaced(std::move(replaced)); });
}

void NbdDevice::on_replaced(Result<void> replaced) {
  if (removing_ || ended_) return;
  if (!replaced) {
    if (!nbd::in_use(number_)) {
      ended_ = Error(ErrorKind::disconnected, fmt::format("{} is gone: somebody has disconnected it", path_));
      return;
    }
    reactor_.logger().warning("{}: {}; trying again", path_, replaced.error().message());
  }
  if (server_->connections() < options_.queues && !replace_timer_.armed())
    replace_timer_.arm(std::max(reactor_.now(), replaced_at_ + kPause));
}

bool NbdDevice::look_until(const std::function<bool()>& done, Instant deadline) {
  look_timer_.arm(reactor_.now() + kLook);
  const bool found = volume_.run_until(done, deadline);
  look_timer_.cancel();
  return found;
}

// ---- changing and ending it

Result<void> NbdDevice::resize() {
  if (!look_until([this] { return !aside_->running(); }, reactor_.now() + kResizeMax))
    return rbt::failure(ErrorKind::timed_out, path_ + ": the kernel is busy replacing connections");
  return aside_->run(volume_, reactor_.now() + kResizeMax, "resizing",
                     [number = number_, identifier = identifier_, size = volume_.disk().size()]() -> Result<void> {
                       auto netlink = nbd::Netlink::open();
                       if (!netlink) return rbt::failure(std::move(netlink.error()));
                       return netlink->reconfigure({.number = number, .size = size, .identifier = identifier});
                     });
}

// With requests under way the sockets go first: the kernel would wait for us to read what it has to say. Their requests then
// wait for a successor, and fail when the device is disconnected.
Result<void> NbdDevice::remove(Instant deadline) {
  removing_ = true;
  replace_timer_.cancel();
  if (volume_.in_flight() != 0) server_.reset();
  if (!look_until([this] { return !aside_->running(); }, deadline))
    return rbt::failure(ErrorKind::timed_out, path_ + ": the kernel is busy replacing connections: try again");
  auto gone = aside_->run(volume_, deadline, "disconnecting", [number = number_]() -> Result<void> {
    auto netlink = nbd::Netlink::open();
    if (!netlink) return rbt::failure(std::move(netlink.error()));
    if (auto done = netlink->disconnect(number); !done) return done;
    if (!nbd::in_use(number)) untune(number);
    return {};
  });
  server_.reset();
  if (!gone) return rbt::failure(std::move(gone.error()).within(path_));
  if (look_until([this] { return !nbd::in_use(number_); }, deadline)) return {};
  return rbt::failure(
      ErrorKind::in_use,
      path_ + ": disconnected, but somebody has it open: it goes when that is closed (`lsof`, `findmnt`)");
}

}  // namespace

// ---- the public face

Bytes nbd_buffers(const DeviceOptions& options) noexcept {
  const std::uint64_t each = std::min<std::uint64_t>(options.io_max.value(), 64 * kKiB) * depth_of(options);
  return Bytes(connections_of(options) * std::max<std::uint64_t>(each, 2 * kMiB));
}

std::uint32_t nbd_requests(const DeviceOptions& options) noexcept {
  return connections_of(options) * depth_of(options);
}

Result<std::unique_ptr<Device>> present_nbd(Volume& volume, transport::Reactor& reactor, const DeviceOptions& options) {
  auto device = std::make_unique<NbdDevice>(volume, reactor, options);
  auto made = options.recover ? device->recover(*options.recover) : device->connect();
  if (!made) return rbt::failure(std::move(made.error()));
  return device;
}

std::string nbd_identifier(const Namespace& disk) {
  std::string known = identity(disk);
  return known.empty() ? "unknown" : known;  // the kernel keeps none that is empty
}

Result<void> remove_nbd(std::uint32_t number, const Clock& clock, Instant deadline) {
  auto netlink = nbd::Netlink::open();
  if (!netlink) return rbt::failure(std::move(netlink.error()));
  if (!nbd::in_use(number)) return {};
  if (auto done = netlink->disconnect(number); !done) return done;
  while (nbd::in_use(number)) {
    if (clock.now() >= deadline)
      return rbt::failure(ErrorKind::in_use,
                          fmt::format("/dev/nbd{}: disconnected, but somebody has it open: it goes when that is closed "
                                      "(`lsof`, `findmnt`)",
                                      number));
    static_cast<void>(::poll(nullptr, 0, 20));
  }
  untune(number);
  return {};
}

}  // namespace rbt::initiator
