#include "initiator/present/fuse_device.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "initiator/present/aside.h"
#include "initiator/present/loop_device.h"
#include "initiator/present/nbd_server.h"
#include "initiator/present/nbdfuse.h"

namespace rbt::initiator {

namespace {

constexpr std::uint32_t kConnectionsMax = 16;
constexpr std::uint32_t kDepthMax = 128;
constexpr Duration kStartMax = std::chrono::seconds(20);
constexpr Duration kLook = std::chrono::milliseconds(20);  // at what the kernel tells nobody
constexpr Duration kLeaveMax = std::chrono::seconds(2);    // for nbdfuse, before it is killed

std::uint32_t connections_of(const DeviceOptions& options) noexcept {
  return std::clamp<std::uint32_t>(options.queues, 1, kConnectionsMax);
}
std::uint32_t depth_of(const DeviceOptions& options) noexcept {
  return std::clamp<std::uint32_t>(options.depth, 1, kDepthMax);
}

/// In the order of their making; what makes calls that wait for what is before them has a thread for that.
class FuseDevice final : public Device {
 public:
  FuseDevice(Volume& volume, transport::Reactor& reactor, const DeviceOptions& options)
      : volume_(volume),
        reactor_(reactor),
        options_(options),
        look_timer_(reactor.timers(), [this] { look_timer_.arm(reactor_.now() + kLook); }) {}
  ~FuseDevice() override { take_down(); }

  Result<void> make(const std::string& directory);

  const std::string& path() const noexcept override { return path_; }
  std::string_view kind() const noexcept override { return "fuse"; }
  std::uint32_t number() const noexcept override { return number_; }
  const DeviceOptions& options() const noexcept override { return options_; }
  const Error* ended() const noexcept override { return ended_ ? &*ended_ : nullptr; }
  Result<void> resize() override {
    return rbt::failure(ErrorKind::unsupported, path_ + ": nbdfuse does not change a file's size: unmap and map again");
  }
  Result<void> remove(Instant deadline) override;

 private:
  Result<void> serve();
  Result<void> wait_for_mount(Instant deadline);
  Result<void> attach(Instant deadline);
  void on_child();
  void take_down() noexcept;
  [[nodiscard]] bool look_until(const std::function<bool()>& done, Instant deadline);

  Volume& volume_;
  transport::Reactor& reactor_;
  DeviceOptions options_;
  std::string path_;
  std::uint32_t number_ = 0;
  bool removing_ = false;
  std::optional<Error> ended_;
  transport::Timer look_timer_;  // armed: ends the reactor's sleeps
  std::unique_ptr<Aside> aside_;
  std::unique_ptr<FuseDirectory> directory_;
  std::unique_ptr<NbdServer> server_;
  std::unique_ptr<NbdFuse> child_;
  std::shared_ptr<LoopDevice> loop_;  // also a thread's that still waits in it
};

// ---- making one

Result<void> FuseDevice::make(const std::string& directory) {
  const Instant deadline = reactor_.now() + kStartMax;
  auto aside = Aside::create(reactor_);
  if (!aside) return rbt::failure(std::move(aside.error()));
  aside_ = std::move(*aside);
  auto own = FuseDirectory::create(directory);
  if (!own) return rbt::failure(std::move(own.error()));
  directory_ = std::move(*own);
  if (auto serving = serve(); !serving) return serving;
  auto child = NbdFuse::start(*directory_, options_.queues, options_.read_only);
  if (!child) return rbt::failure(std::move(child.error()));
  child_ = std::move(*child);
  auto watched = reactor_.watch(child_->descriptor(), EPOLLIN, [this](std::uint32_t) { on_child(); });
  if (!watched) return watched;
  if (auto mounted = wait_for_mount(deadline); !mounted) return mounted;
  return attach(deadline);
}

Result<void> FuseDevice::serve() {
  options_.queues = connections_of(options_);
  options_.depth = depth_of(options_);
  options_.read_only = options_.read_only || volume_.disk().read_only;
  // One more: nbdfuse asks what there is before it makes them all.
  auto server = NbdServer::create(
      volume_, reactor_,
      {.connections_max = options_.queues + 1, .requests = fuse_requests(options_), .read_only = options_.read_only});
  if (!server) return rbt::failure(std::move(server.error()));
  server_ = std::move(*server);
  return server_->listen(directory_->socket());
}

// The mount point is another file system then. Asked without a word to that one, which waits for us.
Result<void> FuseDevice::wait_for_mount(Instant deadline) {
  const auto device_of = [](const std::string& path) {
    struct statx now {};
    const bool seen = ::statx(AT_FDCWD, path.c_str(), AT_STATX_DONT_SYNC, STATX_TYPE, &now) == 0;
    return seen ? makedev(now.stx_dev_major, now.stx_dev_minor) : dev_t{0};
  };
  const dev_t own = device_of(directory_->path());
  const auto mounted = [&] {
    const dev_t now = device_of(directory_->mount_point());
    return now != 0 && now != own;
  };
  const bool there = look_until([&] { return ended_.has_value() || mounted(); }, deadline);
  if (ended_) return rbt::failure(Error(*ended_));
  if (!there) return rbt::failure(ErrorKind::timed_out, "nbdfuse has not mounted its file in time");
  return {};
}

Result<void> FuseDevice::attach(Instant deadline) {
  const auto made = std::make_shared<std::shared_ptr<LoopDevice>>();
  auto attached = aside_->run(volume_, deadline, "attaching a loop device",
                              [made, file = directory_->file(), block_size = volume_.disk().block_size(),
                               read_only = options_.read_only]() -> Result<void> {
                                auto loop = LoopDevice::attach(file, block_size, read_only);
                                if (!loop) return rbt::failure(std::move(loop.error()));
                                *made = std::move(*loop);
                                return {};
                              });
  if (!attached) return attached;
  loop_ = std::move(*made);
  number_ = loop_->number();
  path_ = loop_->path();
  return {};
}

void FuseDevice::on_child() {
  const Error* const why = child_->ended();
  if (why == nullptr) return;
  reactor_.unwatch(child_->descriptor());
  if (!removing_) ended_ = Error(*why).within(path_.empty() ? "making a file of the volume" : path_);
}

bool FuseDevice::look_until(const std::function<bool()>& done, Instant deadline) {
  look_timer_.arm(reactor_.now() + kLook);
  const bool found = volume_.run_until(done, deadline);
  look_timer_.cancel();
  return found;
}

// ---- ending it

// As far as it goes without waiting for anybody.
void FuseDevice::take_down() noexcept {
  server_.reset();  // requests fail
  loop_.reset();
  if (child_) reactor_.unwatch(child_->descriptor());
  if (child_) child_->terminate();
  directory_.reset();  // lets the file system go, and with it the child
  child_.reset();
}

Result<void> FuseDevice::remove(Instant deadline) {
  removing_ = true;
  if (loop_) {
    auto detached = aside_->run(volume_, deadline, "detaching " + path_, [loop = loop_]() -> Result<void> {
      loop->detach();
      return {};
    });
    if (!detached) {
      take_down();
      return detached;
    }
  }
  const bool busy = loop_ && !look_until([this] { return !loop_->attached(); }, deadline);
  if (child_ && !busy) {
    // It unmounts, and leaves.
    child_->terminate();
    static_cast<void>(
        look_until([this] { return child_->ended() != nullptr; }, std::min(deadline, reactor_.now() + kLeaveMax)));
  }
  take_down();
  if (!busy) return {};
  return rbt::failure(ErrorKind::in_use,
                      path_ +
                          ": its file is gone, but somebody has it open: every request fails, and it goes "
                          "when that is closed (`lsof`, `findmnt`)");
}

/// Nobody answers on the socket. The probe is an NBD client that hangs up.
bool is_left(const std::string& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, socket.data(), socket.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  const bool refused = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
                       (errno == ECONNREFUSED || errno == ENOENT);
  ::close(fd);
  return refused;
}

}  // namespace

// ---- the public face

Bytes fuse_buffers(const DeviceOptions& options) noexcept {
  return NbdServer::buffers_min(connections_of(options) + 1);
}

std::uint32_t fuse_requests(const DeviceOptions& options) noexcept {
  return (connections_of(options) + 1) * depth_of(options);
}

Result<std::unique_ptr<Device>> present_fuse(Volume& volume, transport::Reactor& reactor, const DeviceOptions& options,
                                             const std::string& directory) {
  if (options.recover)
    return rbt::failure(
        ErrorKind::unsupported,
        fmt::format("/dev/loop{} cannot be recovered: a FUSE file ends with the process behind it, and its "
                    "requests with it; close it, and make a new device",
                    *options.recover));
  auto device = std::make_unique<FuseDevice>(volume, reactor, options);
  if (auto made = device->make(directory); !made) return rbt::failure(std::move(made.error()));
  return device;
}

std::uint32_t clean_fuse(const std::string& directory) {
  DIR* const parent = ::opendir(directory.c_str());
  if (parent == nullptr) return 0;
  std::uint32_t count = 0;
  while (const dirent* const entry = ::readdir(parent)) {
    const std::string_view name(entry->d_name);
    if (!name.starts_with("fuse-")) continue;
    const std::string path = fmt::format("{}/{}", directory, name);
    if (!is_left(path + "/socket")) continue;
    ::umount2((path + "/mount").c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
    ::unlink((path + "/socket").c_str());
    ::rmdir((path + "/mount").c_str());
    if (::rmdir(path.c_str()) == 0) ++count;
  }
  ::closedir(parent);
  return count;
}

}  // namespace rbt::initiator
