#pragma once
// What two processes say to each other over the Unix socket: the handshake, regions, doorbells, farewells. One
// SOCK_SEQPACKET packet is one message; each type has one fixed size. Both ends are on one machine, so integers are in
// its own byte order. docs/shm.md has the order in which they may come.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

#include "transport/shm/descriptor.h"

namespace rbt::transport::shm {

inline constexpr std::uint32_t kMagic = 0x74627273;  // "srbt"
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::size_t kConnectDataMax = 56;  ///< private data of a connect, as on InfiniBand with an IP header
inline constexpr std::size_t kAcceptDataMax = 196;  ///< private data of an accept or a refusal
inline constexpr std::size_t kTextMax = 200;

enum class MessageType : std::uint16_t {
  hello = 1,  ///< connector: the ring memfd comes with it
  accept,     ///< acceptor
  refuse,     ///< acceptor; then it closes
  ready,      ///< connector: has seen `accept`
  doorbell,   ///< wakes the receiver; says nothing
  announce,   ///< a region may be used from now on; its memfd comes with it
  revoke,     ///< a region may no longer be used
  goodbye,    ///< the sender closes; `text` says why if it is not in order
};

struct MessageHead {
  std::uint32_t magic = kMagic;
  std::uint16_t version = kVersion;
  MessageType type;
};
static_assert(sizeof(MessageHead) == 8);

struct HelloMessage {
  static constexpr MessageType kType = MessageType::hello;
  MessageHead head{.type = kType};
  std::uint32_t slots_to_acceptor = 0;  ///< ring sizes: powers of two, kSlotsMin to kSlotsMax
  std::uint32_t slots_to_connector = 0;
  std::uint32_t receive_size = 0;    ///< bytes: the largest SEND the connector takes
  std::uint32_t incoming_reads = 0;  ///< RDMA READs the connector lets the acceptor have outstanding
  std::uint32_t private_size = 0;
  std::uint32_t reserved = 0;
  std::array<std::byte, 64> private_data{};
};
static_assert(sizeof(HelloMessage) == 96);

struct AcceptMessage {
  static constexpr MessageType kType = MessageType::accept;
  MessageHead head{.type = kType};
  std::uint32_t receive_size = 0;
  std::uint32_t private_size = 0;
  std::array<std::byte, 200> private_data{};
};
static_assert(sizeof(AcceptMessage) == 216);

enum class Refusal : std::uint32_t {
  by_consumer = 1,  ///< `data` is what the consumer said
  not_allowed,      ///< credentials; `data` is text from here on
  busy,
  malformed,
};

struct RefuseMessage {
  static constexpr MessageType kType = MessageType::refuse;
  MessageHead head{.type = kType};
  Refusal reason = Refusal::by_consumer;
  std::uint32_t data_size = 0;
  std::array<std::byte, kTextMax> data{};
};
static_assert(sizeof(RefuseMessage) == 216);

struct ReadyMessage {
  static constexpr MessageType kType = MessageType::ready;
  MessageHead head{.type = kType};
};

struct DoorbellMessage {
  static constexpr MessageType kType = MessageType::doorbell;
  MessageHead head{.type = kType};
};

struct AnnounceMessage {
  static constexpr MessageType kType = MessageType::announce;
  MessageHead head{.type = kType};
  std::uint32_t key = 0;
  std::uint32_t access = 0;  ///< RemoteAccess: read, write or read_write
  std::uint64_t base = 0;    ///< the owner's address of its first byte: what remote_address counts from
  std::uint64_t length = 0;
  std::uint64_t fd_offset = 0;  ///< of `base` in the memfd
};
static_assert(sizeof(AnnounceMessage) == 40);

struct RevokeMessage {
  static constexpr MessageType kType = MessageType::revoke;
  MessageHead head{.type = kType};
  std::uint32_t key = 0;
  std::uint32_t reserved = 0;
};
static_assert(sizeof(RevokeMessage) == 16);

struct GoodbyeMessage {
  static constexpr MessageType kType = MessageType::goodbye;
  MessageHead head{.type = kType};
  std::uint32_t in_order = 0;  ///< 1: close(); 0: something was wrong, and `text` says what
  std::uint32_t text_size = 0;
  std::array<char, kTextMax> text{};
};
static_assert(sizeof(GoodbyeMessage) == 216);

inline constexpr std::size_t kMessageMax = 216;

/// Fills a message's byte field with as much of `data` as fits; returns how much that was.
template <typename Byte, std::size_t kSize>
std::uint32_t put_bytes(std::array<Byte, kSize>& field, const void* data, std::size_t size) noexcept {
  const std::size_t count = size < kSize ? size : kSize;
  if (count != 0) std::memcpy(field.data(), data, count);
  return static_cast<std::uint32_t>(count);
}

/// A message as it came, not looked at yet, with the descriptor that came along.
struct Packet {
  std::array<std::byte, kMessageMax> bytes;
  std::size_t size = 0;
  Descriptor descriptor;

  /// Its type; nothing if it is too short, not ours, or of another version.
  [[nodiscard]] std::optional<MessageType> type() const noexcept;
  /// The message, if it is of this type and has exactly its size.
  template <typename Message>
  [[nodiscard]] std::optional<Message> as() const noexcept {
    static_assert(std::is_trivially_copyable_v<Message> && sizeof(Message) <= kMessageMax);
    if (size != sizeof(Message) || type() != Message::kType) return std::nullopt;
    Message message;
    std::memcpy(&message, bytes.data(), sizeof message);
    return message;
  }
};

enum class [[nodiscard]] Received : std::uint8_t{
    packet,
    nothing,    ///< not now
    closed,     ///< the peer has closed, or is dead
    violation,  ///< too long, or with more than one descriptor
};
/// Never blocks. Descriptors that do not belong are closed.
Received receive(int socket, Packet& packet) noexcept;

enum class [[nodiscard]] Sent : std::uint8_t{
    sent,
    full,  ///< the peer has not read what it was sent; or too many descriptors are on their way
    gone,  ///< there is no peer any more
};
/// Never blocks, never raises SIGPIPE. `fd` (or -1) goes along. Thread-safe: a packet is sent whole.
Sent send_bytes(int socket, std::span<const std::byte> bytes, int fd = -1) noexcept;
template <typename Message>
Sent send(int socket, const Message& message, int fd = -1) noexcept {
  static_assert(std::is_trivially_copyable_v<Message> && std::has_unique_object_representations_v<Message>);
  return send_bytes(socket, std::as_bytes(std::span(&message, 1)), fd);
}

}  // namespace rbt::transport::shm
