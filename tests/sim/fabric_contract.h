#pragma once
// What every fabric promises (transport/fabric.h), as claims that run against any of them: sim, shm, verbs.
//
//   TEST_CASE("The shared memory fabric keeps the contract of all fabrics") {
//     for (const auto claims : {connection_claims(), transfer_claims()})
//       for (const Claim& claim : claims)
//       DYNAMIC_SECTION(claim.name) {
//         ShmUnderTest fabric;
//         claim.check(fabric);
//       }
//   }

#include <functional>
#include <span>
#include <string_view>

#include "common/uri.h"
#include "transport/fabric.h"

namespace rbt::test {

/// A fabric with two ends, server and client, in one process. A fresh one for every claim.
class FabricUnderTest {
 public:
  virtual ~FabricUnderTest() = default;
  [[nodiscard]] virtual transport::Fabric& server() = 0;
  [[nodiscard]] virtual transport::Fabric& client() = 0;
  /// The claims open their poll groups on these; both belong to the calling thread, and may be the same.
  [[nodiscard]] virtual transport::Reactor& server_reactor() = 0;
  [[nodiscard]] virtual transport::Reactor& client_reactor() = 0;
  /// Where the server listens and the client connects to; always the same.
  [[nodiscard]] virtual Uri address() = 0;
  /// An address of the same kind where nobody listens.
  [[nodiscard]] virtual Uri silent_address() = 0;
  /// Turns both reactors until `done`, for at most 10 s of the fabric's own time; false: it never was.
  [[nodiscard]] virtual bool run_until(const std::function<bool()>& done) = 0;
  /// Turns both reactors for a while (some ms of the fabric's own time): what has not happened then will not.
  virtual void run_a_while() = 0;

  // What fabrics may differ in.
  /// send_with_invalidate works on the regions of ProtectionDomain::register_memory (not over rxe).
  [[nodiscard]] virtual bool invalidates() const { return true; }
  /// A SEND without a receive buffer waits for ever; false: it may fail after a while.
  [[nodiscard]] virtual bool waits_for_receive_buffers() const { return true; }
};

struct Claim {
  std::string_view name;
  void (*check)(FabricUnderTest&);
};

/// Connecting, accepting, refusing, closing.
[[nodiscard]] std::span<const Claim> connection_claims();
/// Moving data, and being stopped from it.
[[nodiscard]] std::span<const Claim> transfer_claims();

}  // namespace rbt::test
