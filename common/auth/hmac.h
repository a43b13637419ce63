#pragma once
// What proves that somebody has the secret (Base 2.0, 8.13.5.4 and 8.13.5.5). Thread-safe.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>

#include "common/auth/wiped.h"
#include "common/nvme/authentication.h"
#include "common/result.h"

namespace rbt::auth {

/// HMAC over the parts, one behind the other. Errors: `internal`, if OpenSSL does not have the hash (a FIPS provider, say).
[[nodiscard]] Result<Wiped> hmac(nvme::AuthHash hash, std::span<const std::byte> key,
                                 std::initializer_list<std::span<const std::byte>> parts);
[[nodiscard]] Result<Wiped> digest(nvme::AuthHash hash, std::span<const std::byte> data);

/// Who answers a challenge.
enum class Role : std::uint8_t { host, controller };

/// What an answer is made of.
struct Question {
  nvme::AuthHash hash = nvme::AuthHash::sha256;
  std::uint16_t transaction = 0;
  std::uint32_t sequence = 0;
  std::span<const std::byte> challenge = {};
  std::span<const std::byte> shared = {};  ///< the Diffie-Hellman secret; empty: the null group
  std::string_view host_nqn;
  std::string_view subsystem_nqn;
};
/// `key`: Secret::key_for() of the one who answers.
[[nodiscard]] Result<Wiped> respond(Role role, const Question& question, std::span<const std::byte> key);

/// In constant time; false if the lengths differ.
[[nodiscard]] bool same(std::span<const std::byte> a, std::span<const std::byte> b) noexcept;

/// From OpenSSL's generator, which the kernel seeds: rbt::Random is not for secrets.
[[nodiscard]] Result<void> fill_random(std::span<std::byte> bytes);
/// Never 0, which says that a challenge is not to be answered.
[[nodiscard]] Result<std::uint32_t> random_sequence();

[[nodiscard]] inline std::span<const std::byte> text_bytes(std::string_view text) noexcept {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace rbt::auth
