#include "common/nvme/capsule.h"

#include <catch2/catch.hpp>

#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;
using rbt::test::bytes_of;
using rbt::test::from_hex;
using rbt::test::hex;

TEST_CASE("A submission queue entry has its fields where the specification has them") {
  const auto sqe = from_hex<SubmissionQueueEntry>(
      "02 41 34 12  78 56 34 12  02 00 00 00  03 00 00 00  10 11 12 13 14 15 16 17"
      "20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f"
      "0a 00 00 a0  0b 00 00 b0  0c 00 00 c0  0d 00 00 d0  0e 00 00 e0  0f 00 00 f0");
  CHECK(sqe.opcode == 2);
  CHECK(sqe.fuse() == Fuse::first);
  CHECK(sqe.uses_sgl());
  CHECK(sqe.reserved_flags_clear());
  CHECK(sqe.command_id() == Cid(0x1234));
  CHECK(sqe.namespace_id() == Nsid(0x12345678));
  CHECK(sqe.cdw2.get() == 2);
  CHECK(sqe.cdw3.get() == 3);
  CHECK(sqe.metadata.get() == 0x1716151413121110);
  CHECK(sqe.sgl.raw[0] == std::byte{0x20});
  CHECK(sqe.cdw10.get() == 0xa000000a);
  CHECK(sqe.cdw11.get() == 0xb000000b);
  CHECK(sqe.cdw12.get() == 0xc000000c);
  CHECK(sqe.cdw13.get() == 0xd000000d);
  CHECK(sqe.cdw14.get() == 0xe000000e);
  CHECK(sqe.cdw15.get() == 0xf000000f);
}

TEST_CASE("A new entry has no data and says so with a keyed descriptor") {
  CHECK(bytes_of(SubmissionQueueEntry()) == hex("00 40 00*37 40 00*24"));
}

TEST_CASE("Reserved flag bits are seen") {
  SubmissionQueueEntry sqe;
  CHECK(sqe.reserved_flags_clear());
  for (unsigned bit = 2; bit < 6; ++bit) {
    sqe.flags = static_cast<std::uint8_t>(0x40 | 1u << bit);
    CHECK_FALSE(sqe.reserved_flags_clear());
  }
}

TEST_CASE("A completion queue entry is result, head, queue, command, status") {
  CompletionQueueEntry cqe;
  cqe.result = 0x8877665544332211u;
  cqe.sqhd = std::uint16_t{0x0102};
  cqe.cid = std::uint16_t{0x0304};
  cqe.status_field = Status::permanent(StatusCode::invalid_field).to_completion();
  CHECK(bytes_of(cqe) == hex("11 22 33 44 55 66 77 88  02 01  00 00  04 03  04 80"));
  const auto parsed = parse_response_capsule(bytes_of(cqe));
  REQUIRE(parsed);
  CHECK(parsed->command_id() == Cid(0x0304));
  CHECK(parsed->dw0() == 0x44332211);
  CHECK(parsed->status() == Status::permanent(StatusCode::invalid_field));
}

TEST_CASE("Capsules shorter than their entry are no capsules") {
  const auto bytes = hex("00*128");
  const std::span<const std::byte> all(bytes);
  CHECK_FALSE(parse_command_capsule(all.first(0)));
  CHECK_FALSE(parse_command_capsule(all.first(63)));
  CHECK(parse_command_capsule(all.first(64)));
  CHECK(parse_command_capsule(all));
  CHECK_FALSE(parse_response_capsule(all.first(15)));
  CHECK(parse_response_capsule(all.first(16)));
}

TEST_CASE("Little-endian integers are least significant byte first wherever they lie") {
  CHECK(bytes_of(Le16(0x0102)) == hex("02 01"));
  CHECK(bytes_of(Le32(0x01020304)) == hex("04 03 02 01"));
  CHECK(bytes_of(Le64(0x0102030405060708)) == hex("08 07 06 05 04 03 02 01"));
  CHECK(bytes_of(Le24(0x010203)) == hex("03 02 01"));
  CHECK(Le24(0x010203).get() == 0x010203);
  CHECK(Le24(Le24::kMax).get() == Le24::kMax);
}

TEST_CASE("Nothing is written where the structure does not fit") {
  std::array<std::byte, 3> small{};
  CHECK_FALSE(write_wire(small, Le32(0xffffffff)));
  CHECK(small == std::array<std::byte, 3>{});
}

TEST_CASE("Opcodes have names and strange ones have none") {
  CHECK(name(IoOpcode::write_zeroes) == "Write Zeroes");
  CHECK(name(AdminOpcode::get_log_page) == "Get Log Page");
  CHECK(name(FabricsType::connect) == "Connect");
  CHECK(name(static_cast<IoOpcode>(0xc1)).empty());
}
