#include "common/nvme/authentication.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace rbt::nvme {
namespace {

constexpr std::size_t kListBytes = 30;  // of identifiers of hashes, and of groups
constexpr std::uint8_t kReasonFailed = 1;
constexpr std::uint8_t kDhHmacChap = 1;

struct HeaderWire {
  std::uint8_t type = 0;
  std::uint8_t identifier = 0;
  Le16 reserved2;
  Le16 transaction;
};
static_assert(sizeof(HeaderWire) == 6 && WireType<HeaderWire>);

struct NegotiateWire {
  HeaderWire header;
  std::uint8_t concatenation = 0;
  std::uint8_t descriptors = 1;
  std::uint8_t protocol = kDhHmacChap;
  std::byte reserved9{};
  std::uint8_t hash_count = 0;
  std::uint8_t group_count = 0;
  std::array<std::uint8_t, kListBytes> hashes{};
  std::array<std::uint8_t, kListBytes> groups{};
};
static_assert(sizeof(NegotiateWire) == 72 && WireType<NegotiateWire>);
static_assert(offsetof(NegotiateWire, protocol) == 8 && offsetof(NegotiateWire, hash_count) == 10);
static_assert(offsetof(NegotiateWire, hashes) == 12 && offsetof(NegotiateWire, groups) == 42);

struct ChallengeWire {
  HeaderWire header;
  std::uint8_t hash_length = 0;
  std::byte reserved7{};
  std::uint8_t hash = 0;
  std::uint8_t group = 0;
  Le16 dh_length;
  Le32 sequence;
};
static_assert(sizeof(ChallengeWire) == 16 && WireType<ChallengeWire>);
static_assert(offsetof(ChallengeWire, hash) == 8 && offsetof(ChallengeWire, dh_length) == 10);
static_assert(offsetof(ChallengeWire, sequence) == 12);

struct ReplyWire {
  HeaderWire header;
  std::uint8_t hash_length = 0;
  std::byte reserved7{};
  std::uint8_t challenge_valid = 0;
  std::byte reserved9{};
  Le16 dh_length;
  Le32 sequence;
};
static_assert(sizeof(ReplyWire) == 16 && WireType<ReplyWire>);
static_assert(offsetof(ReplyWire, challenge_valid) == 8 && offsetof(ReplyWire, dh_length) == 10);

struct Success1Wire {
  HeaderWire header;
  std::uint8_t hash_length = 0;
  std::byte reserved7{};
  std::uint8_t response_valid = 0;
  std::array<std::byte, 7> reserved9{};
};
static_assert(sizeof(Success1Wire) == 16 && WireType<Success1Wire>);

struct Success2Wire {
  HeaderWire header;
  std::array<std::byte, 10> reserved6{};
};
static_assert(sizeof(Success2Wire) == 16 && WireType<Success2Wire>);

struct FailureWire {
  HeaderWire header;
  std::uint8_t reason = kReasonFailed;
  std::uint8_t explanation = 0;
};
static_assert(sizeof(FailureWire) == 8 && WireType<FailureWire>);

constexpr HeaderWire header(AuthMessage message, std::uint16_t transaction) noexcept {
  HeaderWire wire;
  wire.type = static_cast<std::uint8_t>(static_cast<unsigned>(message) >> 8);
  wire.identifier = static_cast<std::uint8_t>(static_cast<unsigned>(message) & 0xff);
  wire.transaction = transaction;
  return wire;
}

std::optional<AuthHash> known_hash(std::uint8_t identifier) noexcept {
  if (identifier < 1 || identifier > 3) return std::nullopt;
  return static_cast<AuthHash>(identifier);
}

std::optional<DhGroup> known_group(std::uint8_t identifier) noexcept {
  if (identifier > 5) return std::nullopt;
  return static_cast<DhGroup>(identifier);
}

// Takes `size` bytes off the front of what is left; it has them.
std::span<const std::byte> take(std::span<const std::byte>& left, std::size_t size) noexcept {
  const auto taken = left.first(size);
  left = left.subspan(size);
  return taken;
}

// A structure and what follows it.
template <WireType T>
std::size_t put(std::span<std::byte> out, const T& wire,
                std::initializer_list<std::span<const std::byte>> parts) noexcept {
  std::size_t size = sizeof(T);
  for (const auto part : parts)
    size += part.size();
  if (size > out.size()) return 0;
  std::memcpy(out.data(), &wire, sizeof wire);
  auto at = out.begin() + sizeof(T);
  for (const auto part : parts)
    at = std::copy(part.begin(), part.end(), at);
  return size;
}

}  // namespace

tl::expected<std::uint32_t, std::uint8_t> parse_auth_command(const SubmissionQueueEntry& sqe) noexcept {
  const auto command = std::bit_cast<AuthCommand>(sqe);
  const AuthCommand right;
  if (command.protocol != right.protocol) return tl::unexpected(std::uint8_t{offsetof(AuthCommand, protocol)});
  if (command.specific0 != right.specific0) return tl::unexpected(std::uint8_t{offsetof(AuthCommand, specific0)});
  if (command.specific1 != right.specific1) return tl::unexpected(std::uint8_t{offsetof(AuthCommand, specific1)});
  const std::uint32_t length = command.length.get();
  if (length == 0 || length > kAuthBytesMax) return tl::unexpected(std::uint8_t{offsetof(AuthCommand, length)});
  return length;
}

SubmissionQueueEntry encode_auth_command(FabricsType type, std::uint32_t length) noexcept {
  AuthCommand command;
  command.fabrics_type = static_cast<std::uint8_t>(type);
  command.length = length;
  return std::bit_cast<SubmissionQueueEntry>(command);
}

std::size_t dh_bytes(DhGroup group) noexcept {
  switch (group) {
    case DhGroup::none: return 0;
    case DhGroup::ffdhe2048: return 256;
    case DhGroup::ffdhe3072: return 384;
    case DhGroup::ffdhe4096: return 512;
    case DhGroup::ffdhe6144: return 768;
    case DhGroup::ffdhe8192: return 1024;
  }
  return 0;
}

std::string_view name(AuthHash hash) noexcept {
  switch (hash) {
    case AuthHash::sha256: return "sha256";
    case AuthHash::sha384: return "sha384";
    case AuthHash::sha512: return "sha512";
  }
  return "unknown";
}

std::string_view name(DhGroup group) noexcept {
  switch (group) {
    case DhGroup::none: return "null";
    case DhGroup::ffdhe2048: return "ffdhe2048";
    case DhGroup::ffdhe3072: return "ffdhe3072";
    case DhGroup::ffdhe4096: return "ffdhe4096";
    case DhGroup::ffdhe6144: return "ffdhe6144";
    case DhGroup::ffdhe8192: return "ffdhe8192";
  }
  return "unknown";
}

std::optional<AuthHash> parse_auth_hash(std::string_view text) noexcept {
  for (const AuthHash hash : kAuthHashes)
    if (name(hash) == text) return hash;
  return std::nullopt;
}

std::optional<DhGroup> parse_dh_group(std::string_view text) noexcept {
  for (const DhGroup group : kDhGroups)
    if (name(group) == text) return group;
  return std::nullopt;
}

std::string_view name(AuthFault fault) noexcept {
  switch (fault) {
    case AuthFault::failed: return "authentication failed";
    case AuthFault::protocol_unusable: return "authentication protocol not usable";
    case AuthFault::concatenation_mismatch: return "secure channel concatenation mismatch";
    case AuthFault::hash_unusable: return "hash function not usable";
    case AuthFault::group_unusable: return "Diffie-Hellman group not usable";
    case AuthFault::incorrect_payload: return "incorrect payload";
    case AuthFault::incorrect_message: return "incorrect protocol message";
  }
  return "unknown";
}

std::optional<AuthHeader> parse_auth_header(std::span<const std::byte> bytes) noexcept {
  const auto wire = read_wire<FailureWire>(bytes);  // the shortest there is
  if (!wire) return std::nullopt;
  const auto message = static_cast<AuthMessage>(wire->header.type << 8 | wire->header.identifier);
  switch (message) {
    case AuthMessage::negotiate:
    case AuthMessage::failure2:
    case AuthMessage::failure1:
    case AuthMessage::challenge:
    case AuthMessage::reply:
    case AuthMessage::success1:
    case AuthMessage::success2: return AuthHeader{message, wire->header.transaction.get()};
  }
  return std::nullopt;
}

AuthParsed<AuthNegotiate> parse_auth_negotiate(std::span<const std::byte> bytes) noexcept {
  const auto wire = read_wire<NegotiateWire>(bytes);
  if (!wire) return tl::unexpected(AuthFault::incorrect_payload);
  if (wire->concatenation != 0) return tl::unexpected(AuthFault::concatenation_mismatch);
  if (wire->descriptors == 0 || wire->hash_count > kListBytes || wire->group_count > kListBytes)
    return tl::unexpected(AuthFault::incorrect_payload);
  if (wire->protocol != kDhHmacChap) return tl::unexpected(AuthFault::protocol_unusable);
  AuthNegotiate message{.transaction = wire->header.transaction.get()};
  for (std::size_t i = 0; i < wire->hash_count; ++i)
    if (known_hash(wire->hashes[i])) message.hashes |= static_cast<std::uint8_t>(1u << wire->hashes[i]);
  for (std::size_t i = 0; i < wire->group_count; ++i)
    if (known_group(wire->groups[i])) message.groups |= static_cast<std::uint8_t>(1u << wire->groups[i]);
  return message;
}

AuthParsed<AuthChallenge> parse_auth_challenge(std::span<const std::byte> bytes) noexcept {
  const auto wire = read_wire<ChallengeWire>(bytes);
  if (!wire) return tl::unexpected(AuthFault::incorrect_payload);
  const auto hash = known_hash(wire->hash);
  if (!hash || wire->hash_length != hash_bytes(*hash)) return tl::unexpected(AuthFault::hash_unusable);
  const auto group = known_group(wire->group);
  if (!group) return tl::unexpected(AuthFault::group_unusable);
  auto left = bytes.subspan(sizeof *wire);
  if (wire->dh_length.get() != dh_bytes(*group) || left.size() < hash_bytes(*hash) + dh_bytes(*group))
    return tl::unexpected(AuthFault::incorrect_payload);
  AuthChallenge message{
      .transaction = wire->header.transaction.get(), .hash = *hash, .group = *group, .sequence = wire->sequence.get()};
  message.challenge = take(left, hash_bytes(*hash));
  message.dh_value = take(left, dh_bytes(*group));
  return message;
}

AuthParsed<AuthReply> parse_auth_reply(std::span<const std::byte> bytes, AuthHash hash, DhGroup group) noexcept {
  const auto wire = read_wire<ReplyWire>(bytes);
  if (!wire || wire->hash_length != hash_bytes(hash) || wire->dh_length.get() != dh_bytes(group) ||
      wire->challenge_valid > 1)
    return tl::unexpected(AuthFault::incorrect_payload);
  auto left = bytes.subspan(sizeof *wire);
  if (left.size() < 2 * hash_bytes(hash) + dh_bytes(group)) return tl::unexpected(AuthFault::incorrect_payload);
  AuthReply message{.transaction = wire->header.transaction.get(), .sequence = wire->sequence.get()};
  message.response = take(left, hash_bytes(hash));
  message.challenge = take(left, hash_bytes(hash));  // its place is there even if it says nothing
  if (wire->challenge_valid == 0) message.challenge = {};
  message.dh_value = take(left, dh_bytes(group));
  return message;
}

AuthParsed<AuthSuccess1> parse_auth_success1(std::span<const std::byte> bytes, AuthHash hash) noexcept {
  const auto wire = read_wire<Success1Wire>(bytes);
  if (!wire || wire->hash_length != hash_bytes(hash) || wire->response_valid > 1)
    return tl::unexpected(AuthFault::incorrect_payload);
  AuthSuccess1 message{.transaction = wire->header.transaction.get(), .hash = hash};
  if (wire->response_valid == 0) return message;
  auto left = bytes.subspan(sizeof *wire);
  if (left.size() < hash_bytes(hash)) return tl::unexpected(AuthFault::incorrect_payload);
  message.response = take(left, hash_bytes(hash));
  return message;
}

AuthFailed parse_auth_failure(std::span<const std::byte> bytes) noexcept {
  const auto wire = read_wire<FailureWire>(bytes);
  if (!wire) return {};
  const bool known = wire->explanation >= 1 && wire->explanation <= static_cast<int>(AuthFault::incorrect_message);
  return {wire->header.transaction.get(), known ? static_cast<AuthFault>(wire->explanation) : AuthFault::failed};
}

std::size_t encode(std::span<std::byte> out, const AuthNegotiate& message) noexcept {
  NegotiateWire wire;
  wire.header = header(AuthMessage::negotiate, message.transaction);
  for (std::uint8_t i = 0; i < 8; ++i) {
    if ((message.hashes >> i & 1) != 0) wire.hashes[wire.hash_count++] = i;
    if ((message.groups >> i & 1) != 0) wire.groups[wire.group_count++] = i;
  }
  return put(out, wire, {});
}

std::size_t encode(std::span<std::byte> out, const AuthChallenge& message) noexcept {
  ChallengeWire wire;
  wire.header = header(AuthMessage::challenge, message.transaction);
  wire.hash_length = static_cast<std::uint8_t>(message.challenge.size());
  wire.hash = static_cast<std::uint8_t>(message.hash);
  wire.group = static_cast<std::uint8_t>(message.group);
  wire.dh_length = static_cast<std::uint16_t>(message.dh_value.size());
  wire.sequence = message.sequence;
  return put(out, wire, {message.challenge, message.dh_value});
}

std::size_t encode(std::span<std::byte> out, const AuthReply& message) noexcept {
  static constexpr std::array<std::byte, kAuthHashBytesMax> kNoChallenge{};
  ReplyWire wire;
  wire.header = header(AuthMessage::reply, message.transaction);
  wire.hash_length = static_cast<std::uint8_t>(message.response.size());
  wire.challenge_valid = message.challenge.empty() ? 0 : 1;
  wire.dh_length = static_cast<std::uint16_t>(message.dh_value.size());
  wire.sequence = message.sequence;
  const auto challenge = message.challenge.empty()
                             ? std::span<const std::byte>(kNoChallenge).first(message.response.size())
                             : message.challenge;
  return put(out, wire, {message.response, challenge, message.dh_value});
}

std::size_t encode(std::span<std::byte> out, const AuthSuccess1& message) noexcept {
  Success1Wire wire;
  wire.header = header(AuthMessage::success1, message.transaction);
  wire.hash_length = static_cast<std::uint8_t>(hash_bytes(message.hash));
  wire.response_valid = message.response.empty() ? 0 : 1;
  return put(out, wire, {message.response});
}

std::size_t encode_auth_success2(std::span<std::byte> out, std::uint16_t transaction) noexcept {
  return put(out, Success2Wire{header(AuthMessage::success2, transaction)}, {});
}

std::size_t encode(std::span<std::byte> out, AuthMessage which, const AuthFailed& message) noexcept {
  FailureWire wire;
  wire.header = header(which, message.transaction);
  wire.explanation = static_cast<std::uint8_t>(message.fault);
  return put(out, wire, {});
}

}  // namespace rbt::nvme
