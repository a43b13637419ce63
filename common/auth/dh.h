#pragma once
// The Diffie-Hellman half of DH-HMAC-CHAP: finite fields of RFC 7919. Thread-safe; slow: the largest group takes tens of
// milliseconds per call, so not on a thread that others wait for.

#include <memory>
#include <span>
#include <vector>

#include "common/auth/wiped.h"
#include "common/nvme/authentication.h"
#include "common/result.h"

namespace rbt::auth {

/// A private exponent and its public value; for one exchange.
class DhKey {
 public:
  /// Not for DhGroup::none. Errors: `internal`, if OpenSSL does not have the group.
  [[nodiscard]] static Result<DhKey> generate(nvme::DhGroup group);
  /// dh_bytes(group), big-endian.
  [[nodiscard]] std::span<const std::byte> public_value() const noexcept { return public_value_; }
  /// With the public value of a peer, which has as many bytes. With leading zeroes as long as that. Errors: `protocol`, for
  /// a value that gives the secret away: 0, 1, the prime less 1, or anything else that is not of the group.
  [[nodiscard]] Result<Wiped> shared_secret(std::span<const std::byte> peer) const;

 private:
  struct Free {
    void operator()(void* key) const noexcept;
  };
  DhKey() = default;
  std::unique_ptr<void, Free> key_;  // EVP_PKEY
  std::vector<std::byte> public_value_;
};

}  // namespace rbt::auth
