#include "common/nvme/sgl.h"

#include <algorithm>
#include <bit>

#include "common/check.h"
#include "common/nvme/capsule.h"

namespace rbt::nvme {
namespace {

Expected<DataPointer> parse_in_capsule(const OffsetDescriptor& descriptor, Direction direction,
                                       std::uint64_t received_bytes, const CapsuleLimits& limits) noexcept {
  if (direction != Direction::to_controller) return refuse(StatusCode::invalid_field);
  const std::uint64_t behind_entry =
      received_bytes > sizeof(SubmissionQueueEntry) ? received_bytes - sizeof(SubmissionQueueEntry) : 0;
  const std::uint64_t limit = std::min<std::uint64_t>(behind_entry, limits.in_capsule_bytes_max);
  const std::uint64_t offset = descriptor.offset.get();
  const std::uint64_t length = descriptor.length.get();
  if (offset > limit) return refuse(StatusCode::sgl_invalid_offset);
  if (length > limit - offset) return refuse(StatusCode::sgl_invalid_length);
  if (length == 0) return NoData{};
  // offset + length ≤ limit ≤ in_capsule_bytes_max, which is 32 bits wide
  return InCapsuleData{static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(length)};
}

Expected<DataPointer> parse_keyed(const KeyedDescriptor& descriptor, RemoteInvalidate invalidate) noexcept {
  const std::uint64_t address = descriptor.address.get();
  const std::uint32_t length = descriptor.length.get();
  if (length == 0) return NoData{};
  if (length - 1 > ~std::uint64_t{0} - address) return refuse(StatusCode::sgl_invalid_length);
  return KeyedData{address, length, descriptor.key.get(), invalidate};
}

}  // namespace

std::uint32_t length(const DataPointer& data) noexcept {
  if (const auto* keyed = std::get_if<KeyedData>(&data)) return keyed->length;
  if (const auto* in_capsule = std::get_if<InCapsuleData>(&data)) return in_capsule->length;
  return 0;
}

Expected<DataPointer> parse_data_pointer(const SubmissionQueueEntry& sqe, std::uint64_t received_bytes,
                                         const CapsuleLimits& limits) noexcept {
  if (!sqe.uses_sgl()) return refuse(StatusCode::invalid_field);
  const Direction direction = data_direction(sqe);
  if (direction == Direction::none) return NoData{};
  switch (sqe.sgl.type()) {
    case SglType::keyed_data_block: return parse_keyed(std::bit_cast<KeyedDescriptor>(sqe.sgl), RemoteInvalidate::no);
    case SglType::keyed_and_invalidate:
      return parse_keyed(std::bit_cast<KeyedDescriptor>(sqe.sgl), RemoteInvalidate::yes);
    case SglType::data_block_offset:
      return parse_in_capsule(std::bit_cast<OffsetDescriptor>(sqe.sgl), direction, received_bytes, limits);
    case SglType::last_segment_offset:  // needs MSDBD > 1, which is not offered
    case SglType::data_block_address:
    case SglType::segment_address: break;
  }
  return refuse(StatusCode::sgl_invalid_type);
}

SglDescriptor encode_data_pointer(const DataPointer& data) noexcept {
  if (const auto* in_capsule = std::get_if<InCapsuleData>(&data)) {
    OffsetDescriptor descriptor;
    descriptor.offset = std::uint64_t{in_capsule->offset};
    descriptor.length = in_capsule->length;
    descriptor.type = static_cast<std::uint8_t>(SglType::data_block_offset);
    return std::bit_cast<SglDescriptor>(descriptor);
  }
  KeyedDescriptor descriptor;
  descriptor.type = static_cast<std::uint8_t>(SglType::keyed_data_block);
  if (const auto* keyed = std::get_if<KeyedData>(&data)) {
    check(keyed->length <= Le24::kMax, "a keyed SGL descriptor holds at most 2^24 - 1 bytes");
    descriptor.address = keyed->address;
    descriptor.length = Le24(keyed->length);
    descriptor.key = keyed->key;
    if (keyed->invalidate == RemoteInvalidate::yes)
      descriptor.type = static_cast<std::uint8_t>(SglType::keyed_and_invalidate);
  }
  return std::bit_cast<SglDescriptor>(descriptor);
}

}  // namespace rbt::nvme
