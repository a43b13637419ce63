#include "transport/shm/address.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "common/log.h"

namespace rbt::transport::shm {

namespace {

constexpr std::string_view kFileName = "target.sock";
// A start that replaces a stale socket holds the directory's lock for some microseconds.
constexpr int kLockAttempts = 100;
constexpr Duration kLockPause = std::chrono::milliseconds(5);

std::optional<sockaddr_un> address_of(const std::string& path) noexcept {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) return std::nullopt;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string default_directory() {
  const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && runtime[0] == '/') return fmt::format("{}/rbt", runtime);
  if (::geteuid() == 0) return "/run/rbt";
  return fmt::format("/tmp/rbt-{}", ::geteuid());
}

// A default directory is ours alone, so that nobody can put a socket of his own there.
Result<void> check_default_directory(const std::string& directory, PathUse use) {
  if (use == PathUse::listen && ::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
    return errno_failure(errno, fmt::format("creating {} for the target's socket", directory),
                         "set XDG_RUNTIME_DIR, or name another place with ?socket=PATH");
  struct stat status {};
  if (::lstat(directory.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("looking for a target's socket in {}", directory),
                         "start rbt-target, or name its socket with ?socket=PATH");
  if (!S_ISDIR(status.st_mode) || status.st_uid != ::geteuid() || (status.st_mode & 077) != 0)
    return failure(
        ErrorKind::permission,
        fmt::format("{} must be a directory of uid {} with mode 0700, and is {} of uid {} with mode {:04o}: remove "
                    "it, or name another place with ?socket=PATH",
                    directory, ::geteuid(), S_ISDIR(status.st_mode) ? "one" : "something else", status.st_uid,
                    status.st_mode & 07777));
  return {};
}

// Serialises those who replace stale sockets in one directory. Advisory, let go by closing.
Result<Descriptor> lock_directory(const std::string& path) {
  const std::string directory = directory_of(path);
  Descriptor lock(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.valid())
    return errno_failure(errno, fmt::format("opening {}, the directory of {}", directory, path),
                         "create it, or name another place with ?socket=PATH");
  for (int attempt = 0; ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0; ++attempt) {
    if (errno != EWOULDBLOCK && errno != EINTR) return errno_failure(errno, fmt::format("locking {}", directory));
    if (attempt == kLockAttempts)
      return failure(ErrorKind::in_use,
                     fmt::format("{} is locked by another process (flock): see `lslocks`, or name another "
                                 "place with ?socket=PATH",
                                 directory));
    const timespec pause{0, kLockPause.count()};
    ::nanosleep(&pause, nullptr);
  }
  return lock;
}

Descriptor make_socket() {
  return Descriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// Something is at `path` already: nothing if it was a dead listener's and is gone now.
Result<void> remove_stale(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return errno_failure(errno, fmt::format("looking at {}", path));
  }
  if (!S_ISSOCK(status.st_mode))
    return failure(ErrorKind::in_use, fmt::format("{} exists and is no socket: remove it, or name another place with "
                                                  "?socket=PATH",
                                                  path));
  const Descriptor probe = make_socket();
  if (!probe.valid()) return errno_failure(errno, "making a Unix socket");
  const int error = connect_socket(probe.get(), path);
  if (error == 0)
    return failure(ErrorKind::in_use,
                   fmt::format("listening on {}: {} listens there; stop it, or name another place with "
                               "?socket=PATH",
                               path, describe_peer(probe.get())));
  if (error != ECONNREFUSED) {
    if (error == EAGAIN)
      return failure(ErrorKind::in_use,
                     fmt::format("listening on {}: somebody listens there and is very busy (`ss -xlp` "
                                 "says who); stop it, or name another place with ?socket=PATH",
                                 path));
    return errno_failure(error, fmt::format("finding out who listens on {}", path),
                         "it may be another user's: name another place with ?socket=PATH");
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return errno_failure(errno, fmt::format("removing {}, the socket of a process that is gone", path));
  return {};
}

}  // namespace

Result<std::string> socket_path(const Uri& address, PathUse use) {
  if (address.scheme != Uri::Scheme::shm)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}: the shm fabric takes nvme+shm:// only", address.to_string()));
  if (use == PathUse::connect && address.option("group"))
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("{}: group= says who may connect to a listener: leave it out here", address.to_string()));
  std::string path;
  if (const auto given = address.option("socket")) {
    path = *given;
  } else {
    const std::string directory = default_directory();
    auto good = check_default_directory(directory, use);
    if (!good) return failure(std::move(good.error()));
    path = fmt::format("{}/{}", directory, kFileName);
  }
  if (!address_of(path))
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("the socket path {} has {} bytes: a Unix socket's path has at most {}; name a shorter one with "
                    "?socket=PATH",
                    path, path.size(), sizeof(sockaddr_un::sun_path) - 1));
  if (path.find('\0') != std::string::npos)
    return failure(ErrorKind::invalid_argument, "the socket path contains a zero byte");
  return path;
}

Result<AccessPolicy> access_policy(const Uri& address, const AccessPolicy& otherwise) {
  const auto given = address.option("group");
  if (!given) return otherwise;
  const std::string what = fmt::format("listening on {}", address.to_string());
  if (!address.option("socket"))
    return failure(ErrorKind::invalid_argument,
                   what +
                       ": nobody else can enter the default directory: with group= name a socket=PATH that the group "
                       "can reach");
  gid_t gid = 0;
  const char* const end = given->data() + given->size();
  if (const auto [stop, error] = std::from_chars(given->data(), end, gid); error != std::errc{} || stop != end) {
    std::vector<char> text(65536);  // a group with its members; sysconf() would name less and mean it as a hint
    group entry{};
    group* found = nullptr;
    const int failed = ::getgrnam_r(std::string(*given).c_str(), &entry, text.data(), text.size(), &found);
    if (found == nullptr)
      return failure(ErrorKind::not_found,
                     fmt::format("{}: there is no group '{}'{}: see `getent group`", what, printable(*given, 40),
                                 failed == ERANGE ? " of less than 64 KiB" : ""));
    gid = entry.gr_gid;
  }
  AccessPolicy policy = otherwise;
  policy.socket_mode = 0660;
  policy.socket_group = gid;
  policy.groups.push_back(gid);
  return policy;
}

int connect_socket(int socket, const std::string& path) noexcept {
  const auto address = address_of(path);
  if (!address) return ENAMETOOLONG;
  while (::connect(socket, reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0) {
    if (errno == EISCONN) return 0;
    if (errno != EINTR) return errno;
  }
  return 0;
}

Error connect_error(int error_number, const std::string& path) {
  const std::string what = fmt::format("connecting to {}", path);
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return Error(
          ErrorKind::unreachable,
          fmt::format("{}: there is no such socket: start rbt-target, or name its socket with ?socket=PATH", what));
    case ECONNREFUSED:
      return Error(
          ErrorKind::unreachable,
          fmt::format("{}: nobody listens there any more (the socket of a process that is gone): start rbt-target",
                      what));
    case EACCES:
      return Error(
          ErrorKind::permission,
          fmt::format("{}: uid {} may not: the target's user must allow it (owner, group and mode of the socket and "
                      "its directory)",
                      what, ::geteuid()));
    case EPROTOTYPE:
      return Error(ErrorKind::protocol,
                   fmt::format("{}: that socket is not an rbt target's (it is not SOCK_SEQPACKET)", what));
    case EAGAIN:
      return Error(ErrorKind::timed_out, fmt::format("{}: the target takes no more connections at the moment", what));
    default: return Error::from_errno(error_number, what);
  }
}

Result<BoundSocket> BoundSocket::bind(const std::string& path, const AccessPolicy& policy, int backlog) {
  const auto address = address_of(path);
  if (!address) return failure(ErrorKind::invalid_argument, fmt::format("the socket path {} is too long", path));
  const std::string what = fmt::format("listening on {}", path);
  auto lock = lock_directory(path);
  if (!lock) return failure(std::move(lock.error()));
  auto removed = remove_stale(path);
  if (!removed) return failure(std::move(removed.error()));

  Descriptor socket = make_socket();
  if (!socket.valid()) return errno_failure(errno, what, "raise the limit of open files (`ulimit -n`)");
  // The mode that the file is born with (unix(7)): nobody is let in between bind() and chmod().
  if (::fchmod(socket.get(), policy.socket_mode & 0700) != 0 ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0)
    return errno_failure(errno, what, "name a directory that this user may write to with ?socket=PATH");
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return errno_failure(errno, what);
  BoundSocket bound(std::move(socket), path, status.st_dev, status.st_ino);
  if (policy.socket_group && ::chown(path.c_str(), static_cast<uid_t>(-1), *policy.socket_group) != 0)
    return errno_failure(errno, fmt::format("{}: giving the socket to group {}", what, *policy.socket_group),
                         "this user must be a member of that group");
  if (::chmod(path.c_str(), policy.socket_mode) != 0) return errno_failure(errno, what);
  if (::listen(bound.get(), backlog) != 0) return errno_failure(errno, what);
  return bound;
}

BoundSocket::~BoundSocket() {
  if (!socket_.valid()) return;
  // Under the lock nobody replaces the file between the look and the removal. Without it (somebody holds it for long)
  // the file stays: the next listener finds it stale and removes it.
  const auto lock = lock_directory(path_);
  struct stat status {};
  if (lock && ::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_)
    ::unlink(path_.c_str());
}

Result<PeerCredentials> credentials(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return errno_failure(errno, "asking who is at the other end of a socket");
  return PeerCredentials{peer.pid, peer.uid, peer.gid};
}

std::string describe_peer(int socket) {
  const auto peer = credentials(socket);
  return peer ? fmt::format("pid {}, uid {}", peer->pid, peer->uid) : "an unknown process";
}

bool trusted(const PeerCredentials& peer) noexcept {
  return peer.uid == ::geteuid() || peer.uid == 0;
}

bool allowed(int socket, const PeerCredentials& peer, const AccessPolicy& policy) {
  if (trusted(peer)) return true;
  if (std::find(policy.users.begin(), policy.users.end(), peer.uid) != policy.users.end()) return true;
  if (policy.groups.empty()) return false;
  const auto listed = [&](gid_t gid) {
    return std::find(policy.groups.begin(), policy.groups.end(), gid) != policy.groups.end();
  };
  if (listed(peer.gid)) return true;
  std::vector<gid_t> groups(65536);  // NGROUPS_MAX
  auto size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) != 0) return false;
  groups.resize(size / sizeof(gid_t));
  return std::any_of(groups.begin(), groups.end(), listed);
}

}  // namespace rbt::transport::shm
