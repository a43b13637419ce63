#pragma once
// The shared-memory fabric: two processes on one machine, no RDMA device, no privileges. docs/shm.md says how it works,
// what it promises and what it cannot.

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/random.h"
#include "common/result.h"
#include "common/units.h"
#include "transport/fabric.h"

namespace rbt::transport::shm {

/// Who may connect to a listener. Always: the listener's own user, and root.
struct AccessPolicy {
  mode_t socket_mode = 0600;          ///< of the socket file
  std::optional<gid_t> socket_group;  ///< owner group of the socket file
  std::vector<uid_t> users;           ///< further effective user ids (SO_PEERCRED)
  std::vector<gid_t> groups;          ///< further groups, primary or supplementary (SO_PEERGROUPS)
};

struct Options {
  AccessPolicy access;
  /// How long a region's destructor waits for a peer that is in the middle of a copy, before it ends that connection.
  Duration revoke_timeout = std::chrono::milliseconds(500);
  std::size_t mappings_max = 256;               ///< different memfds that one connection's peer may announce
  std::uint64_t mapped_bytes_max = 1ull << 40;  ///< of our address space that one connection's peer may take up
};

/// Thread-safe. One protection domain: whoever is connected to any poll group of it is told of all its remote regions,
/// so use one fabric per circle of trust. Reads nothing but the sockets it is given.
class Fabric final : public transport::Fabric {
 public:
  /// `random` is only drawn from here: keys come from a generator of its own.
  [[nodiscard]] static Result<std::unique_ptr<Fabric>> open(const Options& options, Random& random);
  ~Fabric() override;

  [[nodiscard]] Result<std::unique_ptr<PollGroup>> open_poll_group(Reactor& reactor, const PollGroupOptions& options,
                                                                   CompletionHandler& handler) override;
  /// 0: fetching data from the peer's memory costs no round trip here.
  [[nodiscard]] std::uint32_t in_capsule_data_preferred() const noexcept override { return 0; }
  [[nodiscard]] std::string_view name() const noexcept override { return "shm"; }
  /// Where memory can be registered before there is a connection.
  [[nodiscard]] ProtectionDomain& domain() noexcept;

 private:
  class Parts;
  explicit Fabric(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace rbt::transport::shm
