#pragma once
// nvme+sim://NAME[.DEVICE][:PORT]: which machine and which of its devices.

#include <cstdint>
#include <optional>
#include <string>

#include "common/result.h"
#include "common/uri.h"

namespace rbt::transport::sim {

class World;
class Machine;

struct LocalAddress {
  std::optional<std::uint32_t> device;  ///< none: all
  std::uint16_t port = 0;
};

/// Where another machine is. It need not exist (yet).
struct RemoteAddress {
  std::string host;
  std::uint32_t device = 0;
  std::uint16_t port = 0;
  [[nodiscard]] std::string text() const;
};

/// `uri` as an address to listen on of `machine`. Errors: invalid_argument, not_found (not one of its own).
[[nodiscard]] Result<LocalAddress> local_address(const Uri& uri, const Machine& machine);
[[nodiscard]] RemoteAddress remote_address(const Uri& uri, const World& world);

}  // namespace rbt::transport::sim
