#pragma once
// Where a command's data is: SGL descriptors (Base 2.0, 4.1.2; RDMA Transport 1.0, 3.2) and the one parser
// for them.

#include <cstddef>
#include <cstdint>
#include <variant>

#include "common/nvme/endian.h"
#include "common/nvme/status.h"

namespace rbt::nvme {

struct SubmissionQueueEntry;

/// Byte 15 of a descriptor: type in the high nibble, sub type in the low one.
enum class SglType : std::uint8_t {
  data_block_address = 0x00,  ///< PCIe memory: not of this transport
  data_block_offset = 0x01,   ///< data in the capsule
  segment_address = 0x20,
  last_segment_offset = 0x31,   ///< several keyed descriptors in the capsule
  keyed_data_block = 0x40,      ///< the host's memory by address, length, key
  keyed_and_invalidate = 0x4f,  ///< and the response shall invalidate the key
};

/// In the capsule: address is an offset from the end of the submission queue entry (ICDOFF is 0).
struct OffsetDescriptor {
  Le64 offset;
  Le32 length;
  std::array<std::uint8_t, 3> reserved{};
  std::uint8_t type = 0;
};
static_assert(sizeof(OffsetDescriptor) == 16 && WireType<OffsetDescriptor>);
static_assert(offsetof(OffsetDescriptor, length) == 8 && offsetof(OffsetDescriptor, type) == 15);

/// In the host's memory: Base 2.0, figure "Keyed SGL Data Block descriptor".
struct KeyedDescriptor {
  Le64 address;
  Le24 length;
  Le32 key;
  std::uint8_t type = 0;
};
static_assert(sizeof(KeyedDescriptor) == 16 && WireType<KeyedDescriptor>);
static_assert(offsetof(KeyedDescriptor, length) == 8 && offsetof(KeyedDescriptor, key) == 11 &&
              offsetof(KeyedDescriptor, type) == 15);

/// 16 bytes that are one of the two above: which one, says type(). By default a keyed descriptor of length 0, which is how
/// hosts say "no data": Linux's target refuses type 0 even on commands that move none.
struct SglDescriptor {
  std::array<std::byte, 16> raw = empty();
  [[nodiscard]] constexpr SglType type() const noexcept { return static_cast<SglType>(raw[15]); }
  friend constexpr bool operator==(const SglDescriptor&, const SglDescriptor&) noexcept = default;

 private:
  static constexpr std::array<std::byte, 16> empty() noexcept {
    std::array<std::byte, 16> bytes{};
    bytes[15] = static_cast<std::byte>(SglType::keyed_data_block);
    return bytes;
  }
};
static_assert(sizeof(SglDescriptor) == 16 && WireType<SglDescriptor>);

/// Whether the response to a command shall invalidate the memory key that the command named.
enum class RemoteInvalidate : std::uint8_t { no, yes };

struct NoData {
  friend constexpr bool operator==(NoData, NoData) noexcept = default;
};
/// `length` > 0 bytes at `offset` from the end of the submission queue entry, all of them received.
struct InCapsuleData {
  std::uint32_t offset = 0;
  std::uint32_t length = 0;
  friend constexpr bool operator==(const InCapsuleData&, const InCapsuleData&) noexcept = default;
};
/// `length` bytes, 1 to 2^24 - 1, of the peer's memory; `address` + `length` does not wrap.
struct KeyedData {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint32_t key = 0;
  RemoteInvalidate invalidate = RemoteInvalidate::no;
  friend constexpr bool operator==(const KeyedData&, const KeyedData&) noexcept = default;
};
/// Several KeyedData become a fourth alternative when Identify offers MSDBD > 1.
using DataPointer = std::variant<NoData, InCapsuleData, KeyedData>;

/// Bytes that the pointer stands for; 0 for NoData.
[[nodiscard]] std::uint32_t length(const DataPointer& data) noexcept;

/// What this controller offered on this queue.
struct CapsuleLimits {
  std::uint32_t in_capsule_bytes_max = 0;  ///< IOCCSZ * 16 - 64; 0: no data in capsules
};

/// The data pointer of a received command. `received_bytes`: of this receive's completion, entry included.
/// PSDT must be 01b for every command (RDMA Transport 1.0, 3.2). Data in the capsule must lie within what was
/// received and within the limit, and only commands that move data to the controller may have it. Commands
/// that move no data have NoData whatever their descriptor says. Whether the length is the command's is for
/// the command's own decoder to judge. Errors, all with DNR: invalid_field, sgl_invalid_type,
/// sgl_invalid_offset, sgl_invalid_length.
[[nodiscard]] Expected<DataPointer> parse_data_pointer(const SubmissionQueueEntry& sqe, std::uint64_t received_bytes,
                                                       const CapsuleLimits& limits) noexcept;

/// For the initiator. NoData becomes a keyed descriptor of length 0, which is what every host sends for "no
/// data". KeyedData::length ≤ 2^24 - 1: more is a bug of the caller's.
[[nodiscard]] SglDescriptor encode_data_pointer(const DataPointer& data) noexcept;

}  // namespace rbt::nvme
