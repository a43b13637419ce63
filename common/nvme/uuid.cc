#include "common/nvme/uuid.h"

#include <fmt/format.h>

#include <span>

#include "common/log.h"

namespace rbt::nvme {
namespace {

constexpr std::size_t kTextLength = 36;
constexpr bool is_dash_position(std::size_t i) noexcept {
  return i == 8 || i == 13 || i == 18 || i == 23;
}

/// 0 to 15, or 16 for what is no hexadecimal digit.
constexpr unsigned hex_value(char c) noexcept {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a') + 10;
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A') + 10;
  return 16;
}

bool parse_into(std::string_view text, std::array<std::uint8_t, 16>& bytes) noexcept {
  if (text.size() != kTextLength) return false;
  std::size_t digit = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (is_dash_position(i)) {
      if (text[i] != '-') return false;
      continue;
    }
    const unsigned value = hex_value(text[i]);
    if (value > 15) return false;
    auto& byte = bytes[digit / 2];
    byte = static_cast<std::uint8_t>(unsigned{byte} << 4 | value);
    ++digit;
  }
  return true;
}

}  // namespace

Result<Uuid> Uuid::parse(std::string_view text) {
  std::array<std::uint8_t, 16> bytes{};
  if (!parse_into(text, bytes))
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not a UUID: 36 characters like 5a2b4c1e-0d3f-4e6a-8b7c-9d0e1f2a3b4c",
                               printable(text, 64)));
  return Uuid(bytes);
}

Uuid Uuid::generate(Random& random) noexcept {
  std::array<std::uint8_t, 16> bytes{};
  random.fill(std::as_writable_bytes(std::span(bytes)));
  bytes[6] = static_cast<std::uint8_t>((bytes[6] & 0x0f) | 0x40);  // RFC 4122, 4.4: version 4
  bytes[8] = static_cast<std::uint8_t>((bytes[8] & 0x3f) | 0x80);  // and the variant
  return Uuid(bytes);
}

std::string Uuid::to_string() const {
  std::string text;
  text.reserve(kTextLength);
  for (const std::uint8_t byte : bytes_) {
    if (is_dash_position(text.size())) text += '-';
    text += fmt::format("{:02x}", byte);
  }
  return text;
}

}  // namespace rbt::nvme
