#include "transport/sim/address.h"

#include <fmt/format.h>

#include <charconv>

#include "transport/sim/machine.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

struct HostAndDevice {
  std::string_view host;
  std::optional<std::uint32_t> device;
};

// "target.1" is device 1 of "target".
HostAndDevice split(std::string_view host) noexcept {
  const auto dot = host.rfind('.');
  if (dot == std::string_view::npos) return {host, std::nullopt};
  const std::string_view digits = host.substr(dot + 1);
  std::uint32_t device = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), device);
  if (digits.empty() || error != std::errc{} || end != digits.data() + digits.size()) return {host, std::nullopt};
  return {host.substr(0, dot), device};
}

}  // namespace

std::string RemoteAddress::text() const {
  return device == 0 ? fmt::format("{}:{}", host, port) : fmt::format("{}.{}:{}", host, device, port);
}

Result<LocalAddress> local_address(const Uri& uri, const Machine& machine) {
  if (uri.scheme != Uri::Scheme::sim)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("listening on {}: not an address of the simulated network; nvme+sim://{} is",
                               uri.to_string(), machine.host()));
  if (uri.host == machine.host()) return LocalAddress{std::nullopt, uri.port};
  const HostAndDevice named = split(uri.host);
  if (named.host != machine.host() || !named.device || *named.device >= machine.devices().size())
    return failure(
        ErrorKind::not_found,
        fmt::format("listening on {}: machine {} has no such address; it has {} and its {} devices {}.0 …",
                    uri.to_string(), machine.host(), machine.host(), machine.devices().size(), machine.host()));
  return LocalAddress{named.device, uri.port};
}

RemoteAddress remote_address(const Uri& uri, const World& world) {
  if (world.find_machine(uri.host) == nullptr)
    if (const HostAndDevice named = split(uri.host); named.device && world.find_machine(named.host) != nullptr)
      return {std::string(named.host), *named.device, uri.port};
  return {uri.host, 0, uri.port};
}

}  // namespace rbt::transport::sim
