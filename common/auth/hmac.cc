#include "common/auth/hmac.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>

#include <fmt/format.h>

#include <bit>
#include <memory>
#include <string>

namespace rbt::auth {
namespace {

const unsigned char* raw(std::span<const std::byte> bytes) noexcept {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* raw(std::span<std::byte> bytes) noexcept {
  return reinterpret_cast<unsigned char*>(bytes.data());
}

tl::unexpected<Error> openssl_failure(std::string_view what) {
  std::array<char, 160> text{};
  ERR_error_string_n(ERR_get_error(), text.data(), text.size());
  ERR_clear_error();
  return failure(ErrorKind::internal, fmt::format("{}: OpenSSL says {}", what, text.data()));
}

// Little-endian, as it is hashed.
template <typename T>
std::array<std::byte, sizeof(T)> le(T value) noexcept {
  return std::bit_cast<std::array<std::byte, sizeof(T)>>(nvme::Le<T>(value));
}

}  // namespace

void wipe(std::span<std::byte> bytes) noexcept {
  OPENSSL_cleanse(bytes.data(), bytes.size());
}

Result<Wiped> hmac(nvme::AuthHash hash, std::span<const std::byte> key,
                   std::initializer_list<std::span<const std::byte>> parts) {
  const std::unique_ptr<EVP_MAC, decltype(&EVP_MAC_free)> mac(EVP_MAC_fetch(nullptr, "HMAC", nullptr), EVP_MAC_free);
  const std::unique_ptr<EVP_MAC_CTX, decltype(&EVP_MAC_CTX_free)> context(mac ? EVP_MAC_CTX_new(mac.get()) : nullptr,
                                                                          EVP_MAC_CTX_free);
  if (!context) return openssl_failure("preparing HMAC");
  std::string digest_name(name(hash));
  const OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest_name.data(), digest_name.size()),
      OSSL_PARAM_construct_end()};
  bool good = EVP_MAC_init(context.get(), raw(key), key.size(), parameters) == 1;
  for (const auto part : parts)
    good = good && EVP_MAC_update(context.get(), raw(part), part.size()) == 1;
  Wiped out(nvme::hash_bytes(hash));
  std::size_t written = 0;
  good = good && EVP_MAC_final(context.get(), raw(out.bytes()), &written, out.bytes().size()) == 1;
  if (!good || written != out.bytes().size()) return openssl_failure(fmt::format("HMAC with {}", name(hash)));
  return out;
}

Result<Wiped> digest(nvme::AuthHash hash, std::span<const std::byte> data) {
  const std::string digest_name(name(hash));
  Wiped out(nvme::hash_bytes(hash));
  std::size_t written = 0;
  if (EVP_Q_digest(nullptr, digest_name.c_str(), nullptr, data.data(), data.size(), raw(out.bytes()), &written) != 1 ||
      written != out.bytes().size())
    return openssl_failure(digest_name);
  return out;
}

// Host: HMAC(Kh, C1' || S1 || T || SC || "HostHost" || NQNh || 00h || NQNc); controller: HMAC(Kc, C2' || S2 || T || SC ||
// "Controller" || NQNc || 00h || NQNh). C' is the challenge, or, with a group, HMAC(H(shared secret), challenge). SC is 0.
Result<Wiped> respond(Role role, const Question& question, std::span<const std::byte> key) {
  Wiped augmented;
  auto challenge = question.challenge;
  if (!question.shared.empty()) {
    auto session_key = digest(question.hash, question.shared);
    if (!session_key) return session_key;
    auto made = hmac(question.hash, session_key->bytes(), {question.challenge});
    if (!made) return made;
    augmented = std::move(*made);
    challenge = augmented.bytes();
  }
  constexpr std::array<std::byte, 1> kZero{};
  const auto sequence = le(question.sequence);
  const auto transaction = le(question.transaction);
  const auto host = text_bytes(question.host_nqn);
  const auto subsystem = text_bytes(question.subsystem_nqn);
  const bool by_host = role == Role::host;
  return hmac(question.hash, key,
              {challenge, sequence, transaction, kZero, text_bytes(by_host ? "HostHost" : "Controller"),
               by_host ? host : subsystem, kZero, by_host ? subsystem : host});
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) noexcept {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

Result<void> fill_random(std::span<std::byte> bytes) {
  if (RAND_bytes(raw(bytes), static_cast<int>(bytes.size())) == 1) return {};
  return openssl_failure("asking for random bytes");
}

Result<std::uint32_t> random_sequence() {
  while (true) {
    std::uint32_t sequence = 0;
    if (auto filled = fill_random(std::as_writable_bytes(std::span(&sequence, 1))); !filled)
      return failure(std::move(filled.error()));
    if (sequence != 0) return sequence;
  }
}

}  // namespace rbt::auth
