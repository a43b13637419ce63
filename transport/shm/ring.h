#pragma once
// The shared memory of one connection: two single-producer single-consumer rings of slots and, for each side, a few words
// that only that side writes. A peer may be hostile and writes what it likes at any time, so every word of it is read
// once into a local, checked, and only then used; nothing read here is ever trusted twice.
//
// A slot carries its own sequence number in the word in front of its payload. A 16-byte response therefore costs one
// cache-line transfer and a 64-byte capsule two; a published tail index would add one to each.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "common/result.h"
#include "transport/shm/descriptor.h"

namespace rbt::transport::shm {

inline constexpr std::size_t kSlotSize = 128;  // two lines: x86 fetches them in pairs
inline constexpr std::size_t kSlotPayload = 112;
inline constexpr std::uint32_t kSlotsMin = 64;
inline constexpr std::uint32_t kSlotsMax = 65536;
inline constexpr std::uint32_t kReceiveSizeMax = 1u << 20;

/// What a slot holds. Messages longer than one slot go on in the slots behind it.
enum class SlotKind : std::uint8_t { send = 1, send_with_invalidate = 2, continuation = 3 };

/// The word in front of a slot: bits 0-31 sequence (its position in the stream + 1), 32-55 length of the whole message
/// in bytes, 56-63 SlotKind.
struct SlotHead {
  std::uint32_t sequence = 0;
  std::uint32_t length = 0;
  std::uint8_t kind = 0;

  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return sequence | (std::uint64_t{length} << 32) | (std::uint64_t{kind} << 56);
  }
  static constexpr SlotHead unpack(std::uint64_t word) noexcept {
    return {static_cast<std::uint32_t>(word), static_cast<std::uint32_t>(word >> 32) & 0xffffff,
            static_cast<std::uint8_t>(word >> 56)};
  }
};

struct alignas(kSlotSize) Slot {
  std::atomic<std::uint64_t> head;
  std::atomic<std::uint32_t> key;  ///< send_with_invalidate: which
  std::uint32_t reserved;
  std::byte payload[kSlotPayload];
};
static_assert(sizeof(Slot) == kSlotSize && offsetof(Slot, payload) == 16);

/// Words that one side writes and the other reads, each on lines of its own. All start at zero.
struct SideControl {
  /// Slots of the other side's ring that this side has taken out, modulo 2^32. Release by the consumer after its last
  /// read of a slot; acquire by the producer before it overwrites the slot.
  alignas(128) std::atomic<std::uint32_t> consumed;
  /// Bit 0: this side sleeps and wants a doorbell for new messages; bit 1: also for free slots; the rest counts sleeps,
  /// so that one sleep costs one doorbell. Written before the sleeper's last look at the ring, a full fence between;
  /// read by the other side after publishing, a full fence between: one of the two sees the other (Dekker).
  alignas(128) std::atomic<std::uint32_t> sleep;
  /// Odd while this side copies into or out of the other side's memory. Set before it looks at the other side's `fence`,
  /// a full fence between; the other side reads it after writing `fence`, a full fence between. Released when the
  /// copying is over, acquired by the other side: what comes after the wait comes after the copies.
  alignas(128) std::atomic<std::uint32_t> copying;
  /// Bit 0: this side is closing, its memory is out of bounds. The rest counts regions that this side has revoked: a
  /// poster that has not read as many `revoke` messages must not copy.
  alignas(128) std::atomic<std::uint64_t> fence;
};
static_assert(sizeof(SideControl) == 512);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free);

/// The connector is side 0, the acceptor side 1. Each produces into the ring of its number.
inline constexpr unsigned kConnector = 0;
inline constexpr unsigned kAcceptor = 1;

/// A mapping of the memfd that both sides share: two SideControls, then the slots of ring 0, then those of ring 1.
class RingMemory {
 public:
  static constexpr std::size_t kSlotsAt = 4096;
  struct Sizes {
    std::uint32_t to_acceptor = 0;   ///< slots of ring 0
    std::uint32_t to_connector = 0;  ///< slots of ring 1
    [[nodiscard]] bool valid() const noexcept;
    [[nodiscard]] std::size_t bytes() const noexcept;
  };

  /// A new one, all zero, sealed. The descriptor is for the peer; the mapping does not need it.
  [[nodiscard]] static Result<std::shared_ptr<RingMemory>> create(Sizes sizes, Descriptor& descriptor);
  /// The peer's. Refused unless it is a memfd, sealed against shrinking, of exactly the right size, on ordinary pages.
  [[nodiscard]] static Result<std::shared_ptr<RingMemory>> attach(Sizes sizes, const Descriptor& descriptor);
  ~RingMemory();
  RingMemory(const RingMemory&) = delete;
  RingMemory& operator=(const RingMemory&) = delete;

  [[nodiscard]] SideControl& control(unsigned side) const noexcept;
  [[nodiscard]] Slot* slots(unsigned side) const noexcept;
  [[nodiscard]] std::uint32_t slot_count(unsigned side) const noexcept;

 private:
  RingMemory(std::byte* data, Sizes sizes) noexcept : data_(data), sizes_(sizes) {}
  std::byte* data_;
  Sizes sizes_;
};

/// Slots for a message of `length` bytes; an empty message takes one.
[[nodiscard]] constexpr std::uint32_t slots_for(std::uint32_t length) noexcept {
  return length == 0 ? 1 : static_cast<std::uint32_t>((length + kSlotPayload - 1) / kSlotPayload);
}
/// Slots for a ring that takes messages of up to `receive_size` bytes.
[[nodiscard]] std::uint32_t slot_count_for(std::uint32_t receive_size, std::uint32_t send_depth) noexcept;

/// The writing end. One thread.
class Producer {
 public:
  Producer(const RingMemory& ring, unsigned side) noexcept
      : slots_(ring.slots(side)), consumed_word_(&ring.control(1 - side).consumed), count_(ring.slot_count(side)) {}

  enum class [[nodiscard]] Room : std::uint8_t{enough, full, violation};
  /// Asks for room; looks at the peer's word only when what it knew does not suffice.
  Room reserve(std::uint32_t slots) noexcept {
    if (slots <= count_ - in_use()) return Room::enough;
    const std::uint32_t seen = consumed_word_->load(std::memory_order_acquire);
    const std::uint32_t step = seen - static_cast<std::uint32_t>(consumed_);
    if (step > in_use()) return Room::violation;  // more than was ever sent, or backwards
    consumed_ += step;
    return slots <= count_ - in_use() ? Room::enough : Room::full;
  }
  /// Begins a message for which reserve() has found room; then append() all its bytes, then publish().
  void begin(SlotKind kind, std::uint32_t length, std::uint32_t key) noexcept {
    first_ = SlotHead{static_cast<std::uint32_t>(position_ + 1), length, static_cast<std::uint8_t>(kind)};
    begin_ = position_;
    slots_[position_ & (count_ - 1)].key.store(key, std::memory_order_relaxed);
    filled_ = 0;
  }
  void append(const std::byte* data, std::size_t size) noexcept {
    while (size != 0) {
      if (filled_ == kSlotPayload) next_slot();
      const std::size_t room = kSlotPayload - filled_;
      const std::size_t part = size < room ? size : room;
      std::memcpy(slots_[position_ & (count_ - 1)].payload + filled_, data, part);
      filled_ += part;
      data += part;
      size -= part;
    }
  }
  void publish() noexcept {
    ++position_;
    // Release: the consumer that acquires this word sees the payload of all the message's slots.
    slots_[begin_ & (count_ - 1)].head.store(first_.pack(), std::memory_order_release);
  }
  [[nodiscard]] std::uint32_t in_use() const noexcept { return static_cast<std::uint32_t>(position_ - consumed_); }
  [[nodiscard]] std::uint32_t slot_count() const noexcept { return count_; }

 private:
  void next_slot() noexcept {
    ++position_;
    filled_ = 0;
    // Not polled by the consumer until a lap later; says so that no old word is taken for a new message.
    slots_[position_ & (count_ - 1)].head.store(
        SlotHead{static_cast<std::uint32_t>(position_ + 1), 0, static_cast<std::uint8_t>(SlotKind::continuation)}
            .pack(),
        std::memory_order_relaxed);
  }
  Slot* slots_;
  const std::atomic<std::uint32_t>* consumed_word_;
  std::uint32_t count_;
  std::size_t filled_ = 0;
  std::uint64_t position_ = 0;  // slots ever written
  std::uint64_t begin_ = 0;
  std::uint64_t consumed_ = 0;  // slots known to be free again
  SlotHead first_;
};

/// The reading end. One thread.
class Consumer {
 public:
  /// Takes messages of at most `length_max` bytes.
  Consumer(const RingMemory& ring, unsigned side, std::uint32_t length_max) noexcept
      : slots_(ring.slots(1 - side)),
        consumed_word_(&ring.control(side).consumed),
        count_(ring.slot_count(1 - side)),
        length_max_(length_max) {}

  enum class [[nodiscard]] Peek : std::uint8_t{nothing, message, violation};
  struct Message {
    std::uint32_t length = 0;
    bool invalidates = false;
    std::uint32_t key = 0;
  };
  /// Looks at the next slot; reads its head once. `message` is within bounds.
  Peek peek(Message& message) const noexcept {
    const Slot& slot = slots_[position_ & (count_ - 1)];
    const std::uint64_t word = slot.head.load(std::memory_order_acquire);  // partner: Producer::publish()
    const SlotHead head = SlotHead::unpack(word);
    const auto expected = static_cast<std::uint32_t>(position_ + 1);
    if (head.sequence != expected) {
      const bool first_lap = position_ < count_;
      const bool old = first_lap ? word == 0 : head.sequence == static_cast<std::uint32_t>(expected - count_);
      return old ? Peek::nothing : Peek::violation;
    }
    const auto kind = static_cast<SlotKind>(head.kind);
    if (kind != SlotKind::send && kind != SlotKind::send_with_invalidate) return Peek::violation;
    if (head.length > length_max_ || slots_for(head.length) > count_) return Peek::violation;
    message.length = head.length;
    message.invalidates = kind == SlotKind::send_with_invalidate;
    message.key = message.invalidates ? slot.key.load(std::memory_order_relaxed) : 0;
    return Peek::message;
  }
  /// Whether peek() would find anything but nothing.
  [[nodiscard]] bool pending() const noexcept {
    Message ignored;
    return peek(ignored) != Peek::nothing;
  }
  /// Copies the message that peek() has found and steps over it. The slots go back with publish().
  void take(const Message& message, std::byte* to) noexcept {
    std::uint32_t left = message.length;
    do {
      const std::uint32_t part = left < kSlotPayload ? left : static_cast<std::uint32_t>(kSlotPayload);
      if (part != 0) std::memcpy(to, slots_[position_ & (count_ - 1)].payload, part);
      to += part;
      left -= part;
      ++position_;
    } while (left != 0);
  }
  /// Gives the slots of everything taken back. The word's line moves only when the producer looks, once a lap.
  void publish() noexcept { consumed_word_->store(static_cast<std::uint32_t>(position_), std::memory_order_release); }

 private:
  const Slot* slots_;
  std::atomic<std::uint32_t>* consumed_word_;
  std::uint32_t count_;
  std::uint32_t length_max_;
  std::uint64_t position_ = 0;  // slots ever taken
};

}  // namespace rbt::transport::shm
