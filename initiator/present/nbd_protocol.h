#pragma once
// The bytes of NBD: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. Numbers are big-endian. Simple replies
// only, which is all that Linux's client knows and all that others fall back to.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace rbt::initiator::nbd {

template <typename T>
[[nodiscard]] constexpr T get_be(std::span<const std::byte> from) noexcept {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(static_cast<T>(value << 8) | static_cast<T>(from[i]));
  return value;
}
template <>
[[nodiscard]] constexpr std::uint8_t get_be(std::span<const std::byte> from) noexcept {
  return static_cast<std::uint8_t>(from[0]);
}
template <typename T>
constexpr void put_be(std::span<std::byte> to, T value) noexcept {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    to[i] = static_cast<std::byte>(value >> (8 * (sizeof(T) - 1 - i)) & 0xFF);
}

// Transmission flags: what the export can do.
inline constexpr std::uint16_t kHasFlags = 1U << 0;
inline constexpr std::uint16_t kReadOnly = 1U << 1;
inline constexpr std::uint16_t kSendFlush = 1U << 2;
inline constexpr std::uint16_t kSendFua = 1U << 3;
inline constexpr std::uint16_t kSendTrim = 1U << 5;
inline constexpr std::uint16_t kSendWriteZeroes = 1U << 6;
inline constexpr std::uint16_t kCanMultiConn = 1U << 8;  ///< a flush on one connection is one for all

enum class CommandType : std::uint16_t { read = 0, write = 1, disconnect = 2, flush = 3, trim = 4, write_zeroes = 6 };
inline constexpr std::uint16_t kCommandFua = 1U << 0;
inline constexpr std::uint16_t kCommandNoHole = 1U << 1;  ///< write zeroes: no deallocation

// Errors of a reply. There is no EROFS.
inline constexpr std::uint32_t kErrorPermission = 1;
inline constexpr std::uint32_t kErrorIo = 5;
inline constexpr std::uint32_t kErrorInvalid = 22;
inline constexpr std::uint32_t kErrorNoSpace = 28;
inline constexpr std::uint32_t kErrorUnsupported = 95;

/// No client sends more data with one request unless it was told that it may.
inline constexpr std::uint32_t kPayloadMax = std::uint32_t{32} << 20;

/// "Request message": 28 bytes, then the data of a write.
struct Command {
  static constexpr std::size_t kSize = 28;
  static constexpr std::uint32_t kMagic = 0x25609513;
  std::uint16_t flags = 0;
  CommandType type{};  ///< not checked
  std::uint64_t cookie = 0;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;

  /// Nothing: not the magic number; what follows cannot be told apart any more.
  [[nodiscard]] static constexpr std::optional<Command> parse(std::span<const std::byte, kSize> from) noexcept {
    if (get_be<std::uint32_t>(from) != kMagic) return std::nullopt;
    return Command{.flags = get_be<std::uint16_t>(from.subspan<4>()),
                   .type = static_cast<CommandType>(get_be<std::uint16_t>(from.subspan<6>())),
                   .cookie = get_be<std::uint64_t>(from.subspan<8>()),
                   .offset = get_be<std::uint64_t>(from.subspan<16>()),
                   .length = get_be<std::uint32_t>(from.subspan<24>())};
  }
};

/// "Simple reply message": 16 bytes, then the data of a read that succeeded.
struct Reply {
  static constexpr std::size_t kSize = 16;
  static constexpr std::uint32_t kMagic = 0x67446698;
  static constexpr std::array<std::byte, kSize> make(std::uint32_t error, std::uint64_t cookie) noexcept {
    std::array<std::byte, kSize> out{};
    put_be(std::span(out), kMagic);
    put_be(std::span(out).subspan<4>(), error);
    put_be(std::span(out).subspan<8>(), cookie);
    return out;
  }
};

}  // namespace rbt::initiator::nbd
