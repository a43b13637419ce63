#pragma once
// Socket addresses: from a Uri, and as text.

#include <sys/socket.h>

#include <string>

#include "common/result.h"

namespace rbt {
struct Uri;
}

namespace rbt::transport::verbs {

struct SocketAddress {
  sockaddr_storage storage{};
  [[nodiscard]] sockaddr* get() noexcept { return reinterpret_cast<sockaddr*>(&storage); }
  [[nodiscard]] const sockaddr* get() const noexcept { return reinterpret_cast<const sockaddr*>(&storage); }
};

/// The Uri's host and port. A name is looked up (blocks as long as the resolver does); an empty host is every address.
[[nodiscard]] Result<SocketAddress> resolve(const Uri& uri);

/// "10.0.0.2:51312", "[fe80::1%eth0]:4420".
[[nodiscard]] std::string to_text(const sockaddr* address);
/// Without the port: "10.0.0.2", "fe80::1%eth0"; empty for anything but IPv4 and IPv6.
[[nodiscard]] std::string host_text(const sockaddr* address);
[[nodiscard]] bool is_loopback(const sockaddr* address) noexcept;

}  // namespace rbt::transport::verbs
