#pragma once
// The host's half of DH-HMAC-CHAP on one queue (Base 2.0, 8.13.5): authenticate() is the list of its steps.

#include <functional>
#include <span>

#include "common/auth/secret.h"
#include "common/nvme/capsule.h"
#include "common/result.h"

namespace rbt::initiator {

/// Who proves what to whom.
struct Proof {
  const nvme::Nqn& host_nqn;
  const nvme::Nqn& subsystem_nqn;
  const auth::SharedSecret& secret;             ///< the host's
  const auth::SharedSecret& controller_secret;  ///< null: the controller need not prove itself
};

/// Sends one command, Authentication Send or Receive, with its data, and waits for the answer, whatever its status.
using AuthSend = std::function<Result<nvme::CompletionQueueEntry>(const nvme::SubmissionQueueEntry& entry,
                                                                  std::span<std::byte> data)>;

/// Blocks. With the largest Diffie-Hellman group its own part takes the thread 40 ms; up to ffdhe3072 it is 2. Errors:
/// `permission`, if one of the two does not accept the other; `unsupported`, `protocol`; those of `send`.
[[nodiscard]] Result<void> authenticate(const Proof& proof, const AuthSend& send);

}  // namespace rbt::initiator
