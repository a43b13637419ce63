#include "initiator/authentication.h"

#include <fmt/format.h>

#include <array>
#include <optional>
#include <vector>

#include "common/auth/dh.h"
#include "common/auth/hmac.h"
#include "common/nvme/authentication.h"
#include "initiator/call.h"

namespace rbt::initiator {

namespace {

using nvme::AuthFault;
using nvme::AuthMessage;
using nvme::FabricsType;

constexpr std::uint8_t kEveryHash = 0b1110;
constexpr std::uint8_t kEveryGroup = 0b111111;

/// One exchange. What goes wrong on our side after the challenge is told to the controller by failure2.
class Exchange {
 public:
  Exchange(const Proof& proof, const AuthSend& send) : proof_(proof), send_(send), buffer_(nvme::kAuthBytesMax) {}

  [[nodiscard]] Result<void> run() {
    auto done = negotiate();
    if (done) done = fetch(AuthMessage::challenge);
    if (done) done = take_challenge();
    if (done) done = reply();
    if (done) done = fetch(AuthMessage::success1);
    // Linux's target ends the association as it answers failure1, and the answer may not get out any more.
    if (!done && done.error().kind() == ErrorKind::disconnected)
      return failure(ErrorKind::disconnected,
                     done.error().message() + "; so do targets that do not accept the secret of a host: look there");
    if (done) done = take_success1();
    return done;
  }

 private:
  [[nodiscard]] Result<void> command(FabricsType type, std::size_t size) {
    auto answer =
        send_(nvme::encode_auth_command(type, static_cast<std::uint32_t>(size)), std::span(buffer_).first(size));
    if (!answer) return failure(std::move(answer.error()));
    if (!answer->status().ok()) return failure(status_error(name(type), answer->status()));
    return {};
  }
  [[nodiscard]] Result<void> send(std::size_t size) { return command(FabricsType::authentication_send, size); }

  [[nodiscard]] Result<void> negotiate() {
    if (auto filled = auth::fill_random(std::as_writable_bytes(std::span(&transaction_, 1))); !filled) return filled;
    return send(
        encode(buffer_, nvme::AuthNegotiate{.transaction = transaction_, .hashes = kEveryHash, .groups = kEveryGroup}));
  }

  // The next message of the controller, which is to be this one, into buffer_.
  [[nodiscard]] Result<void> fetch(AuthMessage expected) {
    if (auto got = command(FabricsType::authentication_receive, buffer_.size()); !got) return got;
    const auto header = nvme::parse_auth_header(buffer_);
    if (header && header->message == AuthMessage::failure1) {
      const AuthFault fault = nvme::parse_auth_failure(buffer_).fault;
      return failure(
          fault == AuthFault::failed ? ErrorKind::permission : ErrorKind::unsupported,
          fmt::format("the target says \"{}\"{}", name(fault),
                      fault == AuthFault::failed
                          ? fmt::format(": it does not have this secret for host {}, or none to prove itself by; "
                                        "its log says more",
                                        proof_.host_nqn.text())
                          : ""));
    }
    if (header && header->message == expected && header->transaction == transaction_) return {};
    return refuse(AuthFault::incorrect_message,
                  Error(ErrorKind::protocol, "the target answered with another message than the one that is due"));
  }

  [[nodiscard]] Result<void> take_challenge() {
    const auto challenge = nvme::parse_auth_challenge(buffer_);
    if (!challenge)
      return refuse(challenge.error(),
                    Error(ErrorKind::protocol, fmt::format("the target's challenge: {}", name(challenge.error()))));
    hash_ = challenge->hash;
    if (challenge->group != nvme::DhGroup::none) {
      auto key = auth::DhKey::generate(challenge->group);
      if (!key) return refuse(AuthFault::group_unusable, std::move(key.error()));
      auto shared = key->shared_secret(challenge->dh_value);
      if (!shared) return refuse(AuthFault::incorrect_payload, std::move(shared.error()));
      key_ = std::move(*key);
      shared_ = std::move(*shared);
    }
    auto answer = respond(auth::Role::host, *proof_.secret, proof_.host_nqn, challenge->sequence, challenge->challenge);
    if (!answer) return refuse(AuthFault::failed, std::move(answer.error()));
    response_ = std::move(*answer);
    return {};
  }

  [[nodiscard]] Result<void> reply() {
    if (proof_.controller_secret != nullptr) {
      challenge_ = auth::Wiped(nvme::hash_bytes(hash_));
      if (auto filled = auth::fill_random(challenge_.bytes()); !filled) return filled;
      const auto sequence = auth::random_sequence();
      if (!sequence) return failure(Error(sequence.error()));
      sequence_ = *sequence;
    }
    return send(
        encode(buffer_, nvme::AuthReply{.transaction = transaction_,
                                        .sequence = sequence_,
                                        .response = response_.bytes(),
                                        .challenge = challenge_.bytes(),
                                        .dh_value = key_ ? key_->public_value() : std::span<const std::byte>()}));
  }

  [[nodiscard]] Result<void> take_success1() {
    const auto success = nvme::parse_auth_success1(buffer_, hash_);
    if (!success)
      return refuse(success.error(),
                    Error(ErrorKind::protocol, fmt::format("the target's success: {}", name(success.error()))));
    if (proof_.controller_secret == nullptr) return {};
    const auto expected =
        respond(auth::Role::controller, *proof_.controller_secret, proof_.subsystem_nqn, sequence_, challenge_.bytes());
    if (!expected) return refuse(AuthFault::failed, Error(expected.error()));
    if (!auth::same(expected->bytes(), success->response))
      return refuse(
          AuthFault::failed,
          Error(ErrorKind::permission,
                fmt::format("subsystem {} has not proved that it is itself: it does not have the controller secret "
                            "that was given here",
                            proof_.subsystem_nqn.text())));
    return send(nvme::encode_auth_success2(buffer_, transaction_));
  }

  [[nodiscard]] Result<auth::Wiped> respond(auth::Role role, const auth::Secret& secret, const nvme::Nqn& owner,
                                            std::uint32_t sequence, std::span<const std::byte> challenge) const {
    auto key = secret.key_for(owner);
    if (!key) return key;
    return auth::respond(role,
                         {.hash = hash_,
                          .transaction = transaction_,
                          .sequence = sequence,
                          .challenge = challenge,
                          .shared = shared_.bytes(),
                          .host_nqn = proof_.host_nqn.text(),
                          .subsystem_nqn = proof_.subsystem_nqn.text()},
                         key->bytes());
  }

  // Tells the controller, who may have gone by then, and returns `why`.
  [[nodiscard]] Result<void> refuse(AuthFault fault, Error why) {
    static_cast<void>(send(encode(buffer_, AuthMessage::failure2, nvme::AuthFailed{transaction_, fault})));
    return failure(std::move(why));
  }

  const Proof& proof_;
  const AuthSend& send_;
  std::vector<std::byte> buffer_;
  std::uint16_t transaction_ = 0;
  nvme::AuthHash hash_ = nvme::AuthHash::sha256;
  std::optional<auth::DhKey> key_;
  auth::Wiped shared_;
  auth::Wiped response_;
  std::uint32_t sequence_ = 0;  // ours; 0: no challenge
  auth::Wiped challenge_;
};

}  // namespace

Result<void> authenticate(const Proof& proof, const AuthSend& send) {
  if (proof.secret == nullptr)
    return failure(ErrorKind::permission,
                   fmt::format("the target wants host {} to authenticate itself, and there is no secret: give it with "
                               "--secret-file (secret-file= in the URI)",
                               proof.host_nqn.text()));
  auto done = Exchange(proof, send).run();
  if (!done) return failure(std::move(done.error()).within("authentication"));
  return {};
}

}  // namespace rbt::initiator
