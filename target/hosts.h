#pragma once
// Which hosts may come in, and what each of them sees.

#include <optional>
#include <vector>

#include "common/auth/secret.h"
#include "common/nvme/nqn.h"
#include "common/units.h"

namespace rbt::target {

/// How a host proves who it is, by DH-HMAC-CHAP (Base 2.0, 8.13.5), on every queue. docs/authentication.md.
struct HostAuthentication {
  auth::SharedSecret secret = {};  ///< the host's; null: it is believed
  auth::SharedSecret controller_secret =
      {};  ///< ours, for hosts that want us to prove ourselves; null: they do not connect
  /// The hash function and the Diffie-Hellman group; none: the best that the host offers, DhGroup::none as the last.
  std::optional<nvme::AuthHash> hash = {};
  std::optional<nvme::DhGroup> group = {};
};

/// A host that may connect to a subsystem. Several of one NQN are told apart by their identifiers: the first that fits counts.
struct AllowedHost {
  nvme::Nqn nqn;
  std::optional<nvme::HostId> id = {};  ///< none: any
  /// The namespaces that exist for it, those that come later included; to it there are no others: not in lists, not in logs,
  /// not in commands. None: all. Target::show_namespaces() changes it.
  std::optional<std::vector<Nsid>> namespaces = {};
  HostAuthentication authentication = {};
};

}  // namespace rbt::target
