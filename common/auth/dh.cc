#include "common/auth/dh.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/dh.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>

#include <fmt/format.h>

#include <string>

namespace rbt::auth {
namespace {

using Context = std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Number = std::unique_ptr<BIGNUM, decltype(&BN_free)>;

tl::unexpected<Error> failed(ErrorKind kind, std::string_view what) {
  ERR_clear_error();
  return failure(kind, std::string(what));
}

// 1 < value < p - 1. That is all there is to check: p is a safe prime, so that any other value is of a group as large as ours, or
// of twice its size, which tells whether an exponent is odd that is never used again. OpenSSL's own check raises the value to the
// power of q: 250 ms for the largest group.
bool between_the_ends(EVP_PKEY* own, std::span<const std::byte> value) {
  BIGNUM* prime = nullptr;
  if (EVP_PKEY_get_bn_param(own, OSSL_PKEY_PARAM_FFC_P, &prime) != 1) return false;
  const Number owned(prime, BN_free);
  const Number number(
      BN_bin2bn(reinterpret_cast<const unsigned char*>(value.data()), static_cast<int>(value.size()), nullptr),
      BN_free);
  return number && BN_sub_word(prime, 1) == 1 && BN_cmp(number.get(), BN_value_one()) > 0 &&
         BN_cmp(number.get(), prime) < 0;
}

Key make_peer(EVP_PKEY* own, std::span<const std::byte> value) {
  Key peer(EVP_PKEY_new(), EVP_PKEY_free);
  if (!peer || EVP_PKEY_copy_parameters(peer.get(), own) != 1 ||
      EVP_PKEY_set1_encoded_public_key(peer.get(), reinterpret_cast<const unsigned char*>(value.data()),
                                       value.size()) != 1)
    return {nullptr, EVP_PKEY_free};
  return peer;
}

}  // namespace

void DhKey::Free::operator()(void* key) const noexcept {
  EVP_PKEY_free(static_cast<EVP_PKEY*>(key));  // wipes the exponent
}

Result<DhKey> DhKey::generate(nvme::DhGroup group) {
  const std::string group_name(nvme::name(group));
  const Context context(EVP_PKEY_CTX_new_from_name(nullptr, "DH", nullptr), EVP_PKEY_CTX_free);
  EVP_PKEY* generated = nullptr;
  if (!context || EVP_PKEY_keygen_init(context.get()) != 1 ||
      EVP_PKEY_CTX_set_group_name(context.get(), group_name.c_str()) != 1 ||
      EVP_PKEY_generate(context.get(), &generated) != 1)
    return failed(ErrorKind::internal, fmt::format("OpenSSL cannot make a key of group {}", group_name));
  DhKey key;
  key.key_.reset(generated);
  BIGNUM* value = nullptr;
  if (EVP_PKEY_get_bn_param(generated, OSSL_PKEY_PARAM_PUB_KEY, &value) != 1)
    return failed(ErrorKind::internal, fmt::format("OpenSSL keeps the public value of group {} to itself", group_name));
  const Number owned(value, BN_free);
  key.public_value_.resize(nvme::dh_bytes(group));
  if (BN_bn2binpad(value, reinterpret_cast<unsigned char*>(key.public_value_.data()),
                   static_cast<int>(key.public_value_.size())) < 0)
    return failed(ErrorKind::internal, fmt::format("the public value of group {} is too long", group_name));
  return key;
}

Result<Wiped> DhKey::shared_secret(std::span<const std::byte> peer) const {
  auto* const own = static_cast<EVP_PKEY*>(key_.get());
  if (peer.size() != public_value_.size() || !between_the_ends(own, peer))
    return failed(ErrorKind::protocol, "the peer's Diffie-Hellman value is not one of the group");
  const Key theirs = make_peer(own, peer);
  const Context context(EVP_PKEY_CTX_new_from_pkey(nullptr, own, nullptr), EVP_PKEY_CTX_free);
  Wiped secret(public_value_.size());
  std::size_t size = secret.bytes().size();
  // padded: the length does not depend on the secret.
  if (!theirs || !context || EVP_PKEY_derive_init(context.get()) != 1 ||
      EVP_PKEY_CTX_set_dh_pad(context.get(), 1) != 1 ||
      EVP_PKEY_derive_set_peer_ex(context.get(), theirs.get(), 0) != 1 ||
      EVP_PKEY_derive(context.get(), reinterpret_cast<unsigned char*>(secret.bytes().data()), &size) != 1 ||
      size != secret.bytes().size())
    return failed(ErrorKind::protocol, "the peer's Diffie-Hellman value is not one of the group");
  return secret;
}

}  // namespace rbt::auth
