#include "target/authentication.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace rbt::target {

using nvme::AuthFault;
using nvme::AuthMessage;

namespace {

// By themselves: the strongest hash, and the group that is as strong as AES-128 at a millisecond or two; the others for hosts
// that do not have it, and none at all for hosts that have none.
constexpr nvme::AuthHash kHashes[] = {nvme::AuthHash::sha512, nvme::AuthHash::sha384, nvme::AuthHash::sha256};
constexpr nvme::DhGroup kGroups[] = {nvme::DhGroup::ffdhe3072, nvme::DhGroup::ffdhe4096, nvme::DhGroup::ffdhe6144,
                                     nvme::DhGroup::ffdhe8192, nvme::DhGroup::ffdhe2048, nvme::DhGroup::none};

template <typename T, std::size_t N>
std::optional<T> choose(const std::optional<T>& configured, const T (&preferred)[N], std::uint8_t offered) {
  const auto is_offered = [&](T each) { return (offered >> static_cast<unsigned>(each) & 1) != 0; };
  if (configured) return is_offered(*configured) ? configured : std::nullopt;
  const auto found = std::find_if(std::begin(preferred), std::end(preferred), is_offered);
  return found != std::end(preferred) ? std::optional(*found) : std::nullopt;
}

auth::Wiped copy_of(std::span<const std::byte> bytes) {
  auth::Wiped copy(bytes.size());
  std::copy(bytes.begin(), bytes.end(), copy.bytes().begin());
  return copy;
}

}  // namespace

std::string_view name(AuthState state) noexcept {
  switch (state) {
    case AuthState::idle: return "idle";
    case AuthState::making_key: return "making a key";
    case AuthState::challenge_due: return "challenge due";
    case AuthState::reply_due: return "reply due";
    case AuthState::deriving: return "deriving";
    case AuthState::success1_due: return "success1 due";
    case AuthState::success2_due: return "success2 due";
    case AuthState::failure1_due: return "failure1 due";
    case AuthState::failed: return "failed";
  }
  return "?";
}

void DhJob::run() {
  if (!key) {
    auto made = auth::DhKey::generate(group);
    failed = !made;
    if (made) key = std::move(*made);
    return;
  }
  auto derived = key->shared_secret(peer);
  failed = !derived;
  if (derived) shared = std::move(*derived);
}

Authentication::~Authentication() = default;

std::string Authentication::terms() const {
  return fmt::format("{}, {}, {}", name(hash_), name(group_), both_ways_ ? "both ways" : "one way");
}

void Authentication::forget() noexcept {
  key_.reset();
  for (auth::Wiped* const each : {&challenge_, &response_, &host_challenge_, &our_response_})
    *each = auth::Wiped();
}

std::unique_ptr<DhJob> Authentication::fail(AuthFault fault, std::string why) {
  forget();
  authenticated_ = false;
  fault_ = fault;
  why_ = std::move(why);
  state_ = AuthState::failure1_due;
  return nullptr;
}

std::unique_ptr<DhJob> Authentication::take(std::span<const std::byte> message) {
  if (state_ == AuthState::failed || state_ == AuthState::failure1_due) return nullptr;  // what was said stands
  const auto header = nvme::parse_auth_header(message);
  if (!header) return fail(AuthFault::incorrect_payload, "a message without a meaning");
  if (header->message == AuthMessage::negotiate) {
    if (!due()) return fail(AuthFault::incorrect_message, "a negotiate before the message before it was answered");
    return negotiate(message);
  }
  const bool expected = (header->message == AuthMessage::reply && state_ == AuthState::reply_due) ||
                        (header->message == AuthMessage::success2 && state_ == AuthState::success2_due) ||
                        (header->message == AuthMessage::failure2 &&
                         (state_ == AuthState::reply_due || state_ == AuthState::success2_due));
  if (!expected)
    return fail(AuthFault::incorrect_message, fmt::format("message {:03x}h came, while it is: {}",
                                                          static_cast<unsigned>(header->message), name(state_)));
  if (header->transaction != transaction_)
    return fail(AuthFault::incorrect_payload, "a message of another transaction");
  if (header->message == AuthMessage::reply) return reply(message);
  if (header->message == AuthMessage::success2) {
    success2();
    return nullptr;
  }
  static_cast<void>(
      fail(AuthFault::failed, fmt::format("the host says: {}", name(nvme::parse_auth_failure(message).fault))));
  state_ = AuthState::failed;  // it knows
  return nullptr;
}

std::unique_ptr<DhJob> Authentication::negotiate(std::span<const std::byte> message) {
  forget();
  ++exchange_;
  both_ways_ = false;
  const auto offer = nvme::parse_auth_negotiate(message);
  if (!offer) return fail(offer.error(), fmt::format("negotiate: {}", name(offer.error())));
  transaction_ = offer->transaction;
  const auto hash = choose(host_.hash, kHashes, offer->hashes);
  if (!hash) return fail(AuthFault::hash_unusable, "the host offers no hash function that it may use");
  const auto group = choose(host_.group, kGroups, offer->groups);
  if (!group) return fail(AuthFault::group_unusable, "the host offers no Diffie-Hellman group that it may use");
  hash_ = *hash;
  group_ = *group;
  if (group_ == nvme::DhGroup::none) {
    state_ = AuthState::challenge_due;
    return nullptr;
  }
  state_ = AuthState::making_key;
  auto job = std::make_unique<DhJob>();
  job->exchange = exchange_;
  job->group = group_;
  return job;
}

void Authentication::finish(DhJob& job) {
  const bool wanted = job.exchange == exchange_ && !due();
  if (!wanted) return;
  if (state_ == AuthState::making_key) {
    if (job.failed) return static_cast<void>(fail(AuthFault::group_unusable, "no key of this group can be made"));
    key_ = std::move(job.key);
    state_ = AuthState::challenge_due;
    return;
  }
  if (job.failed)
    return static_cast<void>(fail(AuthFault::group_unusable, "the host's public value is none of the group"));
  judge(job.shared.bytes());
}

std::unique_ptr<DhJob> Authentication::reply(std::span<const std::byte> message) {
  const auto parsed = nvme::parse_auth_reply(message, hash_, group_);
  if (!parsed) return fail(parsed.error(), fmt::format("reply: {}", name(parsed.error())));
  response_ = copy_of(parsed->response);
  host_sequence_ = parsed->sequence;
  // With sequence number 0 a challenge is there for a secure channel only, which there is none of.
  if (parsed->sequence != 0) host_challenge_ = copy_of(parsed->challenge);
  // Our own challenge sent back: the answer to one would be the answer to the other, were it not for what is hashed with them.
  if (auth::same(host_challenge_.bytes(), challenge_.bytes()))
    return fail(AuthFault::failed, "the host sends our own challenge back");
  if (group_ == nvme::DhGroup::none) {
    judge({});
    return nullptr;
  }
  state_ = AuthState::deriving;
  auto job = std::make_unique<DhJob>();
  job->exchange = exchange_;
  job->group = group_;
  job->key = std::exchange(key_, std::nullopt);
  job->peer.assign(parsed->dh_value.begin(), parsed->dh_value.end());
  return job;
}

auth::Question Authentication::question(std::uint32_t sequence, std::span<const std::byte> challenge,
                                        std::span<const std::byte> shared) const noexcept {
  return {.hash = hash_,
          .transaction = transaction_,
          .sequence = sequence,
          .challenge = challenge,
          .shared = shared,
          .host_nqn = host_nqn_.text(),
          .subsystem_nqn = subsystem_nqn_.text()};
}

Result<auth::Wiped> Authentication::answer(auth::Role role, const auth::Question& question) const {
  const bool host = role == auth::Role::host;
  auto key = (host ? host_.secret : host_.controller_secret)->key_for(host ? host_nqn_ : subsystem_nqn_);
  if (!key) return key;
  return respond(role, question, key->bytes());
}

void Authentication::judge(std::span<const std::byte> shared) {
  const auto expected = answer(auth::Role::host, question(sequence_, challenge_.bytes(), shared));
  if (!expected) return static_cast<void>(fail(AuthFault::failed, expected.error().message()));
  if (!auth::same(expected->bytes(), response_.bytes()))
    return static_cast<void>(
        fail(AuthFault::failed, "the host's answer is wrong: it does not have its secret as it is here"));
  both_ways_ = !host_challenge_.empty();
  if (both_ways_) {
    if (host_.controller_secret == nullptr)
      return static_cast<void>(
          fail(AuthFault::failed,
               "the host wants this subsystem to prove itself, and there is no controller secret for it"));
    auto ours = answer(auth::Role::controller, question(host_sequence_, host_challenge_.bytes(), shared));
    if (!ours) return static_cast<void>(fail(AuthFault::failed, ours.error().message()));
    our_response_ = std::move(*ours);
  }
  state_ = AuthState::success1_due;
}

void Authentication::success2() {
  forget();
  authenticated_ = true;
  state_ = AuthState::idle;
}

std::size_t Authentication::give(std::span<std::byte> out) {
  if (state_ == AuthState::challenge_due) {
    auth::Wiped challenge(nvme::hash_bytes(hash_));
    const auto sequence = auth::random_sequence();
    const auto filled = auth::fill_random(challenge.bytes());
    if (sequence && filled) {
      const std::size_t size =
          encode(out, nvme::AuthChallenge{.transaction = transaction_,
                                          .hash = hash_,
                                          .group = group_,
                                          .sequence = *sequence,
                                          .challenge = challenge.bytes(),
                                          .dh_value = key_ ? key_->public_value() : std::span<const std::byte>()});
      if (size == 0) return 0;
      sequence_ = *sequence;
      challenge_ = std::move(challenge);
      state_ = AuthState::reply_due;
      return size;
    }
    static_cast<void>(fail(AuthFault::failed, "there are no random numbers for a challenge"));
  }
  if (state_ == AuthState::success1_due) {
    const std::size_t size =
        encode(out, nvme::AuthSuccess1{.transaction = transaction_, .hash = hash_, .response = our_response_.bytes()});
    if (size == 0) return 0;
    if (both_ways_) {
      state_ = AuthState::success2_due;
    } else {
      success2();
    }
    return size;
  }
  if (state_ != AuthState::failure1_due && state_ != AuthState::failed)
    static_cast<void>(
        fail(AuthFault::incorrect_message, fmt::format("nothing is to be fetched, while it is: {}", name(state_))));
  const std::size_t size = encode(out, AuthMessage::failure1, nvme::AuthFailed{transaction_, fault_});
  if (size != 0) state_ = AuthState::failed;
  return size;
}

}  // namespace rbt::target
