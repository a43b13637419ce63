#pragma once
// Where a subsystem is, in the form of NVMe boot URIs:
//   nvme+rdma://HOST[:PORT][/NQN[/NSID]][?key=value&…]   HOST: name, IPv4 address or [IPv6 address]; PORT:
//   4420 nvme+shm://[/NQN[/NSID]][?socket=PATH&…] nvme+sim://NAME[:PORT][/NQN[/NSID]][?…]              tests:
//   the simulated network
// Percent-encoding (RFC 3986) is decoded in NQN and values; ':' in an NQN and '/' in a value may stand as
// they are.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "common/nvme/nqn.h"
#include "common/result.h"
#include "common/units.h"

namespace rbt {

/// RDMA_PS_TCP service of NVMe over RDMA (RDMA Transport 1.0, 2.1).
inline constexpr std::uint16_t kNvmeRdmaPort = 4420;

struct Uri {
  enum class Scheme : std::uint8_t { rdma, shm, sim };

  static constexpr std::size_t kLengthMax = 2048;
  /// NSIDs that can name one namespace: 1 to FFFFFFFEh.
  static constexpr std::uint32_t kNsidMax = 0xfffffffe;

  Scheme scheme = Scheme::rdma;
  std::string host;                    ///< without brackets; empty for shm
  std::uint16_t port = kNvmeRdmaPort;  ///< 1 to 65535; 0 for shm
  std::optional<nvme::Nqn> nqn;        ///< a subsystem's, perhaps not beginning with "nqn."; none: discovery
  std::optional<Nsid> nsid;
  /// Decoded, not empty. Keys: hostnqn, hostid, secret-file, ctrl-secret-file, queues, depth, keep-alive; for shm socket and group. What values mean is for
  /// their reader.
  std::map<std::string, std::string, std::less<>> options;

  /// Error: invalid_argument, in three lines: the URI and what is wrong and allowed, the URI, a caret under
  /// the place.
  static Result<Uri> parse(std::string_view text);
  /// The shortest URI that parse() makes the same value of.
  [[nodiscard]] std::string to_string() const;
  /// The value of `key`, if it was given. Valid as long as the URI.
  [[nodiscard]] std::optional<std::string_view> option(std::string_view key) const;

  friend bool operator==(const Uri&, const Uri&) = default;
};

/// "nvme+rdma" …
[[nodiscard]] std::string_view name(Uri::Scheme scheme) noexcept;

}  // namespace rbt
