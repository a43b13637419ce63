#pragma once
// The controller's half of DH-HMAC-CHAP on one queue (Base 2.0, 8.13.5). Pure: no I/O, no time, no threads.
//
//   host:  negotiate          reply                  success2 (if it asked for our answer)
//   here:           challenge        success1, or failure1 at any step
//
// The host sends by Authentication Send and fetches by Authentication Receive. It may begin anew at any time, also when it is
// authenticated, and stays so until the new exchange has failed.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/auth/dh.h"
#include "common/auth/hmac.h"
#include "common/nvme/authentication.h"
#include "target/hosts.h"

namespace rbt::target {

enum class AuthState : std::uint8_t {
  idle,           ///< Nothing is going on. Woken by a negotiate.
  making_key,     ///< A key pair is being made for the challenge. Woken by finish().
  challenge_due,  ///< Woken by Authentication Receive.
  reply_due,      ///< Woken by the host's reply.
  deriving,       ///< The shared secret is being computed. Woken by finish().
  success1_due,   ///< The host has proved itself. Woken by Authentication Receive.
  success2_due,   ///< The host looks at our proof. Woken by its success2.
  failure1_due,   ///< Woken by Authentication Receive.
  failed,         ///< Both know that it has failed: final.
};
[[nodiscard]] std::string_view name(AuthState state) noexcept;

/// A computation that takes long: on any thread, between take() and finish().
struct DhJob {
  std::uint32_t exchange = 0;
  nvme::DhGroup group = nvme::DhGroup::none;
  std::optional<auth::DhKey> key;  ///< none: make one
  std::vector<std::byte> peer;     ///< the other's public value
  auth::Wiped shared;
  bool failed = false;
  void run();
};

/// Belongs to its connection.
class Authentication {
 public:
  /// `host` has a secret and outlives this.
  Authentication(const HostAuthentication& host, const nvme::Nqn& host_nqn, const nvme::Nqn& subsystem_nqn)
      : host_(host), host_nqn_(host_nqn), subsystem_nqn_(subsystem_nqn) {}
  ~Authentication();
  Authentication(const Authentication&) = delete;
  Authentication& operator=(const Authentication&) = delete;

  /// Commands may be carried out.
  [[nodiscard]] bool authenticated() const noexcept { return authenticated_; }
  [[nodiscard]] AuthState state() const noexcept { return state_; }
  /// For our own log, after it has failed.
  [[nodiscard]] const std::string& why() const noexcept { return why_; }
  /// "sha256, ffdhe2048, both ways".
  [[nodiscard]] std::string terms() const;

  /// What the host has sent. Null: that was all. Else run() it and finish() with it; the host waits meanwhile.
  [[nodiscard]] std::unique_ptr<DhJob> take(std::span<const std::byte> message);
  void finish(DhJob& job);
  /// There is something for the host to fetch. False while a job is running.
  [[nodiscard]] bool due() const noexcept { return state_ != AuthState::making_key && state_ != AuthState::deriving; }
  /// due(). Writes the next message and returns its length; 0 if it does not fit, and then nothing has changed.
  [[nodiscard]] std::size_t give(std::span<std::byte> out);

 private:
  [[nodiscard]] std::unique_ptr<DhJob> negotiate(std::span<const std::byte> message);
  [[nodiscard]] std::unique_ptr<DhJob> reply(std::span<const std::byte> message);
  void judge(std::span<const std::byte> shared);
  void success2();
  [[nodiscard]] Result<auth::Wiped> answer(auth::Role role, const auth::Question& question) const;
  std::unique_ptr<DhJob> fail(nvme::AuthFault fault, std::string why);
  [[nodiscard]] auth::Question question(std::uint32_t sequence, std::span<const std::byte> challenge,
                                        std::span<const std::byte> shared) const noexcept;
  void forget() noexcept;

  const HostAuthentication& host_;
  const nvme::Nqn& host_nqn_;
  const nvme::Nqn& subsystem_nqn_;
  AuthState state_ = AuthState::idle;
  bool authenticated_ = false;
  bool both_ways_ = false;
  nvme::AuthFault fault_ = nvme::AuthFault::failed;
  std::string why_;
  std::uint32_t exchange_ = 0;  // counts them: a job of an older one says nothing
  std::uint16_t transaction_ = 0;
  nvme::AuthHash hash_ = nvme::AuthHash::sha256;
  nvme::DhGroup group_ = nvme::DhGroup::none;
  std::optional<auth::DhKey> key_;
  std::uint32_t sequence_ = 0;       // S1
  auth::Wiped challenge_;            // C1
  auth::Wiped response_;             // the host's
  std::uint32_t host_sequence_ = 0;  // S2
  auth::Wiped host_challenge_;       // C2; empty: we need not answer
  auth::Wiped our_response_;
};

}  // namespace rbt::target
