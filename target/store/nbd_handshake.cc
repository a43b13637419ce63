#include "target/store/nbd_handshake.h"

#include <fmt/format.h>
#include <libnbd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <string_view>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "common/quiet_thread.h"

namespace rbt::target {

namespace {

// What a server takes that does not say (NBD protocol, "Block size constraints").
constexpr std::uint64_t kBlockMaxUnsaid = 32 * kMiB;
// A server that is gone without a word (power, cable) is noticed after this long: probes, and unacknowledged data.
constexpr int kProbeAfterSeconds = 5;
constexpr int kSilenceMilliseconds = 15'000;

/// The last failure of libnbd on this thread.
tl::unexpected<Error> nbd_failure(std::string_view remedy = {}) {
  const char* const text = ::nbd_get_error();
  const int error = ::nbd_get_errno();
  // Its messages name the call and end in strerror(): the kind is all that errno still has to tell.
  const ErrorKind kind = Error::from_errno(error != 0 ? error : EPROTO, "").kind();
  return failure(kind, fmt::format("{}{}{}", printable(text != nullptr ? text : "libnbd failed and does not say why"),
                                   remedy.empty() ? "" : "; ", remedy));
}

std::string_view connect_remedy(int error) noexcept {
  switch (error) {
    case ENOENT:
    case ECONNREFUSED: return "is the server running, and this its address?";
    case EACCES:
    case EPERM: return "let this user connect";
    case EINVAL:
    case ENOTSUP: return "see nbd_connect_uri(3) for what a URI can say";
    default: return "`nbdinfo URI` asks the same server";
  }
}

/// Small requests are not held back, and silence ends.
void tune_socket(int fd) noexcept {
  const int on = 1;  // not TCP: refused, and not needed
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &kProbeAfterSeconds, sizeof kProbeAfterSeconds);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &kProbeAfterSeconds, sizeof kProbeAfterSeconds);
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kSilenceMilliseconds, sizeof kSilenceMilliseconds);
}

Result<NbdExport> describe(nbd_handle* handle) {
  NbdExport about;
  const std::int64_t size = ::nbd_get_size(handle);
  if (size < 0) return nbd_failure();
  about.size = static_cast<std::uint64_t>(size);
  about.read_only = ::nbd_is_read_only(handle) > 0;
  about.can_flush = ::nbd_can_flush(handle) > 0;
  about.can_fua = ::nbd_can_fua(handle) > 0;
  about.can_trim = ::nbd_can_trim(handle) > 0;
  about.can_zero = ::nbd_can_zero(handle) > 0;
  about.can_multi_conn = ::nbd_can_multi_conn(handle) > 0;
  about.structured_replies = ::nbd_get_structured_replies_negotiated(handle) > 0;
  const auto block = [&](int which, std::uint64_t unsaid) {
    const std::int64_t said = ::nbd_get_block_size(handle, which);
    return said > 0 ? static_cast<std::uint64_t>(said) : unsaid;
  };
  about.block_min = block(LIBNBD_SIZE_MINIMUM, 1);
  about.block_preferred = block(LIBNBD_SIZE_PREFERRED, 4096);
  about.block_max = std::max(block(LIBNBD_SIZE_MAXIMUM, kBlockMaxUnsaid), about.block_min);
  return about;
}

/// 0 when something has happened on the connection; an errno: ECANCELED, ETIMEDOUT.
int wait_for(nbd_handle* handle, int stop_fd, Duration left) {
  const unsigned direction = ::nbd_aio_get_direction(handle);
  pollfd connection{::nbd_aio_get_fd(handle), 0, 0};
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) connection.events |= POLLIN;
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) connection.events |= POLLOUT;
  std::array<pollfd, 2> waits{connection, pollfd{stop_fd, POLLIN, 0}};
  const auto left_ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  const int ready = ::poll(waits.data(), waits.size(), static_cast<int>(std::max<decltype(left_ms)>(left_ms, 0)));
  if (ready < 0) return errno == EINTR ? 0 : errno;
  if (ready == 0) return ETIMEDOUT;
  if (waits[1].revents != 0) return ECANCELED;
  const bool readable = (waits[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0;
  if (readable && (direction & LIBNBD_AIO_DIRECTION_READ) != 0) {
    ::nbd_aio_notify_read(handle);  // what fails shows in the state
  } else if (waits[0].revents != 0) {
    ::nbd_aio_notify_write(handle);
  }
  return 0;
}

}  // namespace

void NbdCloser::operator()(nbd_handle* handle) const noexcept {
  ::nbd_close(handle);
}

Result<NbdConnected> nbd_connect(const std::string& uri, Duration patience, int stop_fd) {
  NbdConnected connected{NbdHandle(::nbd_create()), {}};
  nbd_handle* const handle = connected.handle.get();
  if (handle == nullptr) return nbd_failure();
  // The operator wrote the URI: it may name files with keys. Buffers are ours alone and filled or not looked at. What is
  // sent is checked by the queue, and the server checks it too.
  if (::nbd_set_uri_allow_local_file(handle, true) != 0 || ::nbd_set_pread_initialize(handle, false) != 0)
    return nbd_failure();
  const SystemClock clock;
  const Instant deadline = clock.now() + patience;
  if (::nbd_aio_connect_uri(handle, uri.c_str()) != 0) return nbd_failure(connect_remedy(::nbd_get_errno()));
  while (::nbd_aio_is_ready(handle) == 0) {
    if (::nbd_aio_is_dead(handle) != 0 || ::nbd_aio_is_closed(handle) != 0)
      return nbd_failure(connect_remedy(::nbd_get_errno()));
    const int error = wait_for(handle, stop_fd, deadline - clock.now());
    if (error == ETIMEDOUT)
      return failure(ErrorKind::timed_out,
                     "the server does not shake hands: perhaps it has as many clients as it takes (`qemu-nbd -e N` "
                     "lets in N; connections=N asks for no more)");
    if (error != 0) return errno_failure(error, "connecting to it");
  }
  tune_socket(::nbd_aio_get_fd(handle));
  auto about = describe(handle);
  if (!about) return failure(std::move(about.error()));
  connected.about = *about;
  return connected;
}

NbdConnector::NbdConnector(transport::Reactor& reactor, std::string uri, Duration patience)
    : reactor_(reactor), uri_(std::move(uri)), patience_(patience) {}

NbdConnector::~NbdConnector() {
  const std::uint64_t one = 1;
  if (thread_.joinable()) {
    [[maybe_unused]] const auto rung = ::write(stop_fd_, &one, sizeof one);  // cannot fail: the count is tiny
    thread_.join();
  }
  if (done_fd_ >= 0) {
    reactor_.unwatch(done_fd_);
    ::close(done_fd_);
  }
  if (stop_fd_ >= 0) ::close(stop_fd_);
}

Result<void> NbdConnector::open() {
  done_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  stop_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (done_fd_ < 0 || stop_fd_ < 0)
    return errno_failure(errno, "creating an eventfd", "raise the limit of open files (`ulimit -n`)");
  return reactor_.watch(done_fd_, EPOLLIN, [this](std::uint32_t) { on_readable(); });
}

void NbdConnector::start(Done done) {
  check(!thread_.joinable(), "one attempt at a time");
  done_ = std::move(done);
  const auto tell = [this] {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto rung = ::write(done_fd_, &one, sizeof one);  // cannot fail: the count is tiny
  };
  auto thread = start_quiet_thread([this, tell] {
    result_ = nbd_connect(uri_, patience_, stop_fd_);
    tell();
  });
  if (thread) {
    thread_ = std::move(*thread);
  } else {
    result_ = failure(std::move(thread.error()));
    tell();
  }
}

void NbdConnector::on_readable() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(done_fd_, &count, sizeof count);
  if (thread_.joinable()) thread_.join();
  Result<NbdConnected> result = std::move(*result_);
  result_.reset();
  std::exchange(done_, {})(std::move(result));
}

}  // namespace rbt::target
