#pragma once
// Where a shm listener is found, and who may come there.

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "common/result.h"
#include "common/uri.h"
#include "transport/shm/descriptor.h"
#include "transport/shm/fabric.h"

namespace rbt::transport::shm {

enum class PathUse : std::uint8_t { listen, connect };

/// The socket's path: the URI's `socket=`, else target.sock in $XDG_RUNTIME_DIR/rbt, in /run/rbt for root, or in
/// /tmp/rbt-UID. Such a default directory must belong to this user and be closed to others; listening creates it.
[[nodiscard]] Result<std::string> socket_path(const Uri& address, PathUse use);

/// `otherwise`, or what the URI's `group=NAME-OR-GID` makes of it: the socket is that group's with mode 0660, and its members
/// may connect. Only with `socket=`: a default directory is closed to others.
[[nodiscard]] Result<AccessPolicy> access_policy(const Uri& address, const AccessPolicy& otherwise);

/// 0 or an errno; never blocks (EAGAIN: the listener's backlog is full).
[[nodiscard]] int connect_socket(int socket, const std::string& path) noexcept;
[[nodiscard]] Error connect_error(int error_number, const std::string& path);

/// A socket file that listens, and its removal.
class BoundSocket {
 public:
  /// Replaces the file of a listener that is dead. Errors: in_use with the process that listens there.
  [[nodiscard]] static Result<BoundSocket> bind(const std::string& path, const AccessPolicy& policy, int backlog);
  BoundSocket(BoundSocket&& other) noexcept = default;
  BoundSocket& operator=(BoundSocket&&) = delete;
  /// Removes the file if it is still this one.
  ~BoundSocket();

  [[nodiscard]] int get() const noexcept { return socket_.get(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  BoundSocket(Descriptor socket, std::string path, dev_t device, ino_t inode)
      : socket_(std::move(socket)), path_(std::move(path)), device_(device), inode_(inode) {}
  Descriptor socket_;
  std::string path_;
  dev_t device_;
  ino_t inode_;
};

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};
/// SO_PEERCRED: who connected, or who listens; checked by the kernel.
[[nodiscard]] Result<PeerCredentials> credentials(int socket);
/// "pid 4711, uid 1000".
[[nodiscard]] std::string describe_peer(int socket);

/// Same user, or root: could end or debug us anyway.
[[nodiscard]] bool trusted(const PeerCredentials& peer) noexcept;
[[nodiscard]] bool allowed(int socket, const PeerCredentials& peer, const AccessPolicy& policy);

}  // namespace rbt::transport::shm
