#include "transport/verbs/address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "common/uri.h"

namespace rbt::transport::verbs {

Result<SocketAddress> resolve(const Uri& uri) {
  if (uri.scheme != Uri::Scheme::rdma)
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("{}: not an address of the rdma fabric: expected nvme+rdma://HOST[:PORT]", uri.to_string()));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (uri.host.empty() ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  const int error =
      ::getaddrinfo(uri.host.empty() ? "0.0.0.0" : uri.host.c_str(), std::to_string(uri.port).c_str(), &hints, &found);
  if (error != 0)
    return failure(error == EAI_MEMORY ? ErrorKind::resource : ErrorKind::not_found,
                   fmt::format("looking up host \"{}\": {}; give an address, or see /etc/hosts and the resolver",
                               uri.host, error == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(error)));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  SocketAddress address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  return address;
}

std::string host_text(const sockaddr* address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address->sa_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, address, sizeof v4);
    ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    return text.data();
  }
  if (address->sa_family != AF_INET6) return {};
  sockaddr_in6 v6{};
  std::memcpy(&v6, address, sizeof v6);
  ::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
  std::array<char, IF_NAMESIZE> interface {};
  if (v6.sin6_scope_id != 0 && ::if_indextoname(v6.sin6_scope_id, interface.data()) != nullptr)
    return fmt::format("{}%{}", text.data(), interface.data());
  return text.data();
}

std::string to_text(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, address, sizeof v4);
    return fmt::format("{}:{}", host_text(address), ntohs(v4.sin_port));
  }
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, address, sizeof v6);
    return fmt::format("[{}]:{}", host_text(address), ntohs(v6.sin6_port));
  }
  return fmt::format("address family {}", address->sa_family);
}

bool is_loopback(const sockaddr* address) noexcept {
  if (address->sa_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, address, sizeof v4);
    return (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
  }
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, address, sizeof v6);
    return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
  }
  return false;
}

}  // namespace rbt::transport::verbs
