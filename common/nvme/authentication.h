#pragma once
// DH-HMAC-CHAP on the wire (Base 2.0, 8.13.5) and the two commands that carry it (6.2, 6.1). No cryptography here: common/auth.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <tl/expected.hpp>

#include "common/nvme/capsule.h"

namespace rbt::nvme {

// ---- The commands

/// Authentication Send and Receive.
struct AuthCommand {
  std::uint8_t opcode = kFabricsOpcode;
  std::uint8_t flags = kFlagsSgl;
  Le16 cid;
  std::uint8_t fabrics_type = 0;
  std::array<std::byte, 19> reserved5{};
  SglDescriptor sgl;
  std::byte reserved40{};
  std::uint8_t specific0 = 1;  ///< SPSP0, SPSP1: 1 and 1
  std::uint8_t specific1 = 1;
  std::uint8_t protocol = 0xe9;  ///< SECP
  Le32 length;                   ///< TL of Send, AL of Receive: bytes of data
  std::array<std::byte, 16> reserved48{};
};
static_assert(sizeof(AuthCommand) == 64 && WireType<AuthCommand>);
static_assert(offsetof(AuthCommand, sgl) == 24 && offsetof(AuthCommand, specific0) == 41);
static_assert(offsetof(AuthCommand, protocol) == 43 && offsetof(AuthCommand, length) == 44);

/// The longest message has 16 + 2 * 64 + 1024 bytes; Linux offers 4096 for every answer.
inline constexpr std::uint32_t kAuthBytesMax = 4096;
/// Byte 41 to 44 of an entry that is refused, or its length: 1 to kAuthBytesMax.
[[nodiscard]] tl::expected<std::uint32_t, std::uint8_t> parse_auth_command(const SubmissionQueueEntry& sqe) noexcept;
/// Without cid and data pointer. `type`: authentication_send or _receive.
[[nodiscard]] SubmissionQueueEntry encode_auth_command(FabricsType type, std::uint32_t length) noexcept;

// ---- What is agreed upon

enum class AuthHash : std::uint8_t { sha256 = 1, sha384 = 2, sha512 = 3 };
enum class DhGroup : std::uint8_t { none = 0, ffdhe2048, ffdhe3072, ffdhe4096, ffdhe6144, ffdhe8192 };
inline constexpr AuthHash kAuthHashes[] = {AuthHash::sha512, AuthHash::sha384, AuthHash::sha256};  ///< strongest first
inline constexpr DhGroup kDhGroups[] = {DhGroup::ffdhe8192, DhGroup::ffdhe6144, DhGroup::ffdhe4096,
                                        DhGroup::ffdhe3072, DhGroup::ffdhe2048, DhGroup::none};
inline constexpr std::size_t kAuthHashBytesMax = 64;
inline constexpr std::size_t kDhBytesMax = 1024;
[[nodiscard]] constexpr std::size_t hash_bytes(AuthHash hash) noexcept {
  return 16 + 16 * std::size_t(hash);
}
/// Of a public value and of the secret that comes of two; 0: no exchange.
[[nodiscard]] std::size_t dh_bytes(DhGroup group) noexcept;
[[nodiscard]] std::string_view name(AuthHash hash) noexcept;  ///< "sha256"
[[nodiscard]] std::string_view name(DhGroup group) noexcept;  ///< "null", "ffdhe2048"
[[nodiscard]] std::optional<AuthHash> parse_auth_hash(std::string_view text) noexcept;
[[nodiscard]] std::optional<DhGroup> parse_dh_group(std::string_view text) noexcept;

/// Reason code explanation of AUTH_Failure1 and 2; the reason code has one value only.
enum class AuthFault : std::uint8_t {
  failed = 1,
  protocol_unusable,
  concatenation_mismatch,
  hash_unusable,
  group_unusable,
  incorrect_payload,
  incorrect_message,
};
[[nodiscard]] std::string_view name(AuthFault fault) noexcept;

/// Type << 8 | identifier.
enum class AuthMessage : std::uint16_t {
  negotiate = 0x000,
  failure2 = 0x0f0,
  failure1 = 0x0f1,
  challenge = 0x101,
  reply = 0x102,
  success1 = 0x103,
  success2 = 0x104,
};

// ---- The messages. Spans point into what was parsed, or outlive what is encoded.

struct AuthHeader {
  AuthMessage message{};
  std::uint16_t transaction = 0;
};
/// Nothing: fewer than 8 bytes, or an identifier without a meaning.
[[nodiscard]] std::optional<AuthHeader> parse_auth_header(std::span<const std::byte> bytes) noexcept;

/// Sets of hashes and groups: bit N stands for identifier N.
struct AuthNegotiate {
  std::uint16_t transaction = 0;
  std::uint8_t hashes = 0;
  std::uint8_t groups = 0;
};
struct AuthChallenge {
  std::uint16_t transaction = 0;
  AuthHash hash = AuthHash::sha256;
  DhGroup group = DhGroup::none;
  std::uint32_t sequence = 0;
  std::span<const std::byte> challenge = {};  ///< hash_bytes(hash)
  std::span<const std::byte> dh_value = {};   ///< dh_bytes(group)
};
struct AuthReply {
  std::uint16_t transaction = 0;
  std::uint32_t sequence = 0;  ///< of `challenge`
  std::span<const std::byte> response = {};
  std::span<const std::byte> challenge = {};  ///< as many bytes; empty: the controller need not authenticate itself
  std::span<const std::byte> dh_value = {};
};
struct AuthSuccess1 {
  std::uint16_t transaction = 0;
  AuthHash hash = AuthHash::sha256;
  std::span<const std::byte> response = {};  ///< empty: none was asked for
};
struct AuthFailed {
  std::uint16_t transaction = 0;
  AuthFault fault = AuthFault::failed;
};

template <typename T>
using AuthParsed = tl::expected<T, AuthFault>;
/// The header has been parsed and names this message; its transaction is for the caller to compare. Bytes behind a message are
/// ignored: receivers offer more room than it needs.
[[nodiscard]] AuthParsed<AuthNegotiate> parse_auth_negotiate(std::span<const std::byte> bytes) noexcept;
[[nodiscard]] AuthParsed<AuthChallenge> parse_auth_challenge(std::span<const std::byte> bytes) noexcept;
/// To a challenge with this hash and group.
[[nodiscard]] AuthParsed<AuthReply> parse_auth_reply(std::span<const std::byte> bytes, AuthHash hash,
                                                     DhGroup group) noexcept;
[[nodiscard]] AuthParsed<AuthSuccess1> parse_auth_success1(std::span<const std::byte> bytes, AuthHash hash) noexcept;
/// An explanation without a meaning is `failed`.
[[nodiscard]] AuthFailed parse_auth_failure(std::span<const std::byte> bytes) noexcept;

/// Writes a message to the start of `out` and returns its length; 0 if it does not fit.
[[nodiscard]] std::size_t encode(std::span<std::byte> out, const AuthNegotiate& message) noexcept;
[[nodiscard]] std::size_t encode(std::span<std::byte> out, const AuthChallenge& message) noexcept;
[[nodiscard]] std::size_t encode(std::span<std::byte> out, const AuthReply& message) noexcept;
[[nodiscard]] std::size_t encode(std::span<std::byte> out, const AuthSuccess1& message) noexcept;
[[nodiscard]] std::size_t encode_auth_success2(std::span<std::byte> out, std::uint16_t transaction) noexcept;
/// `which`: failure1 (by the controller) or failure2 (by the host).
[[nodiscard]] std::size_t encode(std::span<std::byte> out, AuthMessage which, const AuthFailed& message) noexcept;

}  // namespace rbt::nvme
