#pragma once
// The secrets of hosts and subsystems, in the form that nvme-cli makes (Base 2.0, 8.13.5.8): "DHHC-1:NN:BASE64:".

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/auth/wiped.h"
#include "common/nvme/authentication.h"
#include "common/nvme/nqn.h"
#include "common/result.h"

namespace rbt::auth {

/// Immutable, thread-safe, wiped at its end. No message of ours has any part of one in it.
class Secret {
 public:
  /// NN: 00, or 01, 02, 03 for a transformation with SHA-256, 384, 512; then the key (32, 48 or 64 bytes) and its CRC-32. White
  /// space around it is ignored. Error: invalid_argument, which says what is wrong and shows nothing.
  [[nodiscard]] static Result<std::shared_ptr<const Secret>> parse(std::string_view text);
  /// `keyring:DESCRIPTION`: a key of type "user" in this process's keyrings; else a file, of this user or root, that others cannot read
  /// and nobody else can write. Errors: `permission`, not_found, …, invalid_argument.
  [[nodiscard]] static Result<std::shared_ptr<const Secret>> load(const std::string& source);

  /// What `owner`, whose secret this is, answers challenges with.
  [[nodiscard]] Result<Wiped> key_for(const nvme::Nqn& owner) const;

 private:
  Secret(Wiped key, std::optional<nvme::AuthHash> transform) : key_(std::move(key)), transform_(transform) {}
  Wiped key_;
  std::optional<nvme::AuthHash> transform_;
};
using SharedSecret = std::shared_ptr<const Secret>;

/// Bytes of the text of a secret, at most; files and keys that have more are none.
inline constexpr std::size_t kSecretTextMax = 256;

}  // namespace rbt::auth
