#include "common/nvme/sgl.h"

#include <catch2/catch.hpp>

#include "common/nvme/capsule.h"
#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;
using rbt::test::bytes_of;
using rbt::test::from_hex;
using rbt::test::hex;

namespace {

constexpr std::uint8_t kWrite = static_cast<std::uint8_t>(IoOpcode::write);
constexpr std::uint8_t kRead = static_cast<std::uint8_t>(IoOpcode::read);
constexpr std::uint8_t kFlush = static_cast<std::uint8_t>(IoOpcode::flush);
constexpr CapsuleLimits kFourKiB{4096};

SubmissionQueueEntry command(std::uint8_t opcode, std::string_view descriptor) {
  SubmissionQueueEntry sqe;
  sqe.opcode = opcode;
  sqe.sgl = from_hex<SglDescriptor>(descriptor);
  return sqe;
}

SubmissionQueueEntry in_capsule(std::uint64_t offset, std::uint32_t length) {
  SubmissionQueueEntry sqe;
  sqe.opcode = kWrite;
  OffsetDescriptor descriptor;
  descriptor.offset = offset;
  descriptor.length = length;
  descriptor.type = 0x01;
  sqe.sgl = std::bit_cast<SglDescriptor>(descriptor);
  return sqe;
}

StatusCode refusal(const SubmissionQueueEntry& sqe, std::uint64_t received_bytes = 64,
                   CapsuleLimits limits = kFourKiB) {
  const auto data = parse_data_pointer(sqe, received_bytes, limits);
  REQUIRE_FALSE(data);
  CHECK(data.error().do_not_retry());
  return data.error().code();
}

}  // namespace

TEST_CASE("A keyed descriptor is address, 24-bit length, unaligned key, type") {
  const auto sqe = command(kRead, "88 77 66 55 44 33 22 11  cc bb aa  04 03 02 01  40");
  const auto data = parse_data_pointer(sqe, 64, kFourKiB);
  REQUIRE(data);
  CHECK(std::get<KeyedData>(*data) == KeyedData{0x1122334455667788, 0xaabbcc, 0x01020304, RemoteInvalidate::no});
  CHECK(encode_data_pointer(*data) == sqe.sgl);
  CHECK(length(*data) == 0xaabbcc);
}

TEST_CASE("Sub type Fh asks for the key's invalidation") {
  const auto sqe = command(kRead, "00*8  00 10 00  04 03 02 01  4f");
  const auto data = parse_data_pointer(sqe, 64, kFourKiB);
  REQUIRE(data);
  CHECK(std::get<KeyedData>(*data).invalidate == RemoteInvalidate::yes);
  CHECK(encode_data_pointer(*data) == sqe.sgl);
}

TEST_CASE("Data in the capsule is an offset and a length behind the entry") {
  const auto sqe = command(kWrite, "00 02 00 00 00 00 00 00  00 10 00 00  00 00 00  01");
  const auto data = parse_data_pointer(sqe, 64 + 512 + 4096, {8192});
  REQUIRE(data);
  CHECK(std::get<InCapsuleData>(*data) == InCapsuleData{512, 4096});
  CHECK(encode_data_pointer(*data) == sqe.sgl);
}

TEST_CASE("Data in the capsule ends where the received bytes end, not where the buffer does") {
  CHECK(parse_data_pointer(in_capsule(0, 512), 64 + 512, kFourKiB));
  CHECK(refusal(in_capsule(0, 512), 64 + 511) == StatusCode::sgl_invalid_length);
  CHECK(refusal(in_capsule(513, 0), 64 + 512) == StatusCode::sgl_invalid_offset);
  CHECK(refusal(in_capsule(0, 1), 64) == StatusCode::sgl_invalid_length);
  CHECK(refusal(in_capsule(0, 1), 3) == StatusCode::sgl_invalid_length);
}

TEST_CASE("Data in the capsule ends where the controller's offer ends") {
  CHECK(refusal(in_capsule(0, 4097), 64 + 8192) == StatusCode::sgl_invalid_length);
  CHECK(refusal(in_capsule(4097, 0), 64 + 8192) == StatusCode::sgl_invalid_offset);
  CHECK(refusal(in_capsule(0, 1), 64 + 8192, {0}) == StatusCode::sgl_invalid_length);
}

TEST_CASE("Offset and length that would wrap around are refused") {
  CHECK(refusal(in_capsule(~0ULL, 1), 64 + 4096) == StatusCode::sgl_invalid_offset);
  CHECK(refusal(in_capsule(~0ULL - 0xfffffffe, 0xffffffff), 64 + 4096) == StatusCode::sgl_invalid_offset);
  CHECK(refusal(in_capsule(1ULL << 32, 16), 64 + 4096) == StatusCode::sgl_invalid_offset);
  CHECK(refusal(in_capsule(16, 0xfffffff8), 64 + 4096) == StatusCode::sgl_invalid_length);
  CHECK(refusal(command(kRead, "ff*8  02 00 00  01 00 00 00  40")) == StatusCode::sgl_invalid_length);
  CHECK(parse_data_pointer(command(kRead, "ff*8  01 00 00  01 00 00 00  40"), 64, kFourKiB));
}

TEST_CASE("A command that reads cannot have its data in the capsule") {
  auto sqe = in_capsule(0, 512);
  sqe.opcode = kRead;
  CHECK(refusal(sqe, 64 + 512) == StatusCode::invalid_field);
}

TEST_CASE("Every command must say that it uses an SGL") {
  for (const std::uint8_t opcode : {kRead, kWrite, kFlush}) {
    auto sqe = command(opcode, "00*8 00 10 00 01 00 00 00 40");
    for (const int flags : {0x00, 0x80, 0xc0}) {
      sqe.flags = static_cast<std::uint8_t>(flags);
      CHECK(refusal(sqe) == StatusCode::invalid_field);
    }
  }
}

TEST_CASE("Only the three descriptor types of this transport are understood") {
  for (unsigned type = 0; type < 256; ++type) {
    auto sqe = in_capsule(0, 16);
    sqe.sgl.raw[15] = static_cast<std::byte>(type);
    if (type == 0x01 || type == 0x40 || type == 0x4f) {
      CHECK(parse_data_pointer(sqe, 64 + 16, kFourKiB));
    } else {
      CHECK(refusal(sqe, 64 + 16) == StatusCode::sgl_invalid_type);
    }
  }
}

TEST_CASE("A command that moves no data has none, whatever its descriptor says") {
  const auto data = parse_data_pointer(command(kFlush, "ff*16"), 64, kFourKiB);
  REQUIRE(data);
  CHECK(std::holds_alternative<NoData>(*data));
  CHECK(length(*data) == 0);
}

TEST_CASE("A length of zero is no data") {
  CHECK(std::holds_alternative<NoData>(*parse_data_pointer(command(kRead, "00*15 40"), 64, kFourKiB)));
  CHECK(std::holds_alternative<NoData>(*parse_data_pointer(in_capsule(0, 0), 64, kFourKiB)));
  CHECK(bytes_of(encode_data_pointer(NoData{})) == hex("00*15 40"));
}

TEST_CASE("The direction of a fabrics command is in its type") {
  SubmissionQueueEntry sqe;
  sqe.opcode = kFabricsOpcode;
  for (const auto& [type, direction] :
       {std::pair{FabricsType::connect, Direction::to_controller},
        std::pair{FabricsType::property_get, Direction::none}, std::pair{FabricsType::property_set, Direction::none},
        std::pair{FabricsType::authentication_send, Direction::to_controller},
        std::pair{FabricsType::authentication_receive, Direction::to_host},
        std::pair{FabricsType::disconnect, Direction::none}}) {
    sqe.nsid = static_cast<std::uint32_t>(type);
    CHECK(data_direction(sqe) == direction);
  }
}
