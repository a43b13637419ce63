#include "common/auth/secret.h"

#include <array>
#include <cstdint>
#include <cstring>

#include "common/auth/hmac.h"

namespace rbt::auth {
namespace {

constexpr std::string_view kPrefix = "DHHC-1:";
constexpr std::string_view kPurpose = "NVMe-over-Fabrics";
constexpr std::size_t kCrcBytes = 4;

tl::unexpected<Error> refused(std::string_view why) {
  return failure(ErrorKind::invalid_argument,
                 "a secret is written DHHC-1:NN:BASE64: (`nvme gen-dhchap-key` makes one): " + std::string(why));
}

std::string_view trimmed(std::string_view text) noexcept {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// CRC-32 of IEEE 802.3, as zlib's.
std::uint32_t crc32(std::span<const std::byte> bytes) noexcept {
  std::uint32_t crc = ~0u;
  for (const std::byte byte : bytes) {
    crc ^= static_cast<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit)
      crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1)));
  }
  return ~crc;
}

// -1: not of the alphabet. Without a table or a branch on the character: neither shows in caches.
int sextet(char character) noexcept {
  const int c = static_cast<unsigned char>(character);
  const auto within = [c](int low, int high) { return ((low - 1 - c) & (c - high - 1)) >> 8; };  // all ones, or 0
  const int value = (within('A', 'Z') & (c - 'A' + 1)) | (within('a', 'z') & (c - 'a' + 27)) |
                    (within('0', '9') & (c - '0' + 53)) | (within('+', '+') & 63) | (within('/', '/') & 64);
  return value - 1;
}

// Strict: whole groups of four, padding at the end only, unused bits zero.
std::optional<Wiped> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  Wiped out(text.size() / 4 * 3 - padding);
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool pad = i >= text.size() - padding;
    const int value = pad ? 0 : sextet(text[i]);
    if (value < 0) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    if (i % 4 != 3) continue;
    for (std::size_t byte = 0; byte < 3; ++byte) {
      const auto each = static_cast<std::byte>(bits >> (16 - 8 * byte) & 0xff);
      const std::size_t at = i / 4 * 3 + byte;
      if (at < out.bytes().size())
        out.bytes()[at] = each;
      else if (each != std::byte{0})
        return std::nullopt;
    }
    bits = 0;
  }
  return out;
}

}  // namespace

Result<SharedSecret> Secret::parse(std::string_view text) {
  text = trimmed(text);
  if (!text.starts_with(kPrefix)) return refused("it does not begin with DHHC-1:");
  text.remove_prefix(kPrefix.size());
  if (text.size() < 3 || text[0] != '0' || text[1] < '0' || text[1] > '3' || text[2] != ':')
    return refused("00, 01, 02 or 03 and a colon are expected behind DHHC-1:");
  const int transform = text[1] - '0';
  text.remove_prefix(3);
  if (!text.ends_with(':')) return refused("there is no colon at its end");
  text.remove_suffix(1);
  if (text.size() > kSecretTextMax) return refused("it is too long");
  auto decoded = decode_base64(text);
  if (!decoded) return refused("what stands between the last colons is not base64");
  const std::size_t bytes = decoded->bytes().size();
  if (bytes != 32 + kCrcBytes && bytes != 48 + kCrcBytes && bytes != 64 + kCrcBytes)
    return refused("the key does not have 32, 48 or 64 bytes and a checksum of 4");
  const auto key = decoded->bytes().first(bytes - kCrcBytes);
  if (nvme::read_wire<nvme::Le32>(decoded->bytes().subspan(key.size()))->get() != crc32(key))
    return refused("its checksum is wrong: it was not copied whole");
  Wiped kept(key.size());
  std::memcpy(kept.bytes().data(), key.data(), key.size());
  return SharedSecret(new Secret(
      std::move(kept), transform == 0 ? std::optional<nvme::AuthHash>() : static_cast<nvme::AuthHash>(transform)));
}

Result<Wiped> Secret::key_for(const nvme::Nqn& owner) const {
  if (transform_) return hmac(*transform_, key_.bytes(), {text_bytes(owner.text()), text_bytes(kPurpose)});
  Wiped copy(key_.bytes().size());
  std::memcpy(copy.bytes().data(), key_.bytes().data(), copy.bytes().size());
  return copy;
}

}  // namespace rbt::auth
