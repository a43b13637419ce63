#include "common/nvme/reservation.h"

#include <catch2/catch.hpp>

#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;

TEST_CASE("Reservation commands have their bits where the specification has them") {
  const auto enrol = encode_reservation_register(
      Nsid(3), {.action = RegisterAction::replace, .ignore_existing_key = true, .persistence = ChangePersistence::on});
  CHECK(enrol.opcode == 0x0d);
  CHECK(enrol.nsid.get() == 3);
  CHECK(enrol.cdw10.get() == 0xc000000a);
  const auto acquire = encode_reservation_acquire(
      Nsid(3), {.action = AcquireAction::preempt_and_abort, .type = ReservationType::exclusive_access_all});
  CHECK(acquire.opcode == 0x11);
  CHECK(acquire.cdw10.get() == 0x0602);
  const auto release = encode_reservation_release(Nsid(3), {.action = ReleaseAction::clear, .type = 5});
  CHECK(release.opcode == 0x15);
  CHECK(release.cdw10.get() == 0x0501);
  const auto report = encode_reservation_report(Nsid(3), {.bytes = 4096, .extended = true});
  CHECK(report.opcode == 0x0e);
  CHECK(report.cdw10.get() == 1023);
  CHECK(report.cdw11.get() == 1);
  const auto keys = encode_reservation_keys(0x1122334455667788, 9);
  CHECK(keys[0] == std::byte{0x88});
  CHECK(keys[8] == std::byte{9});
  CHECK(parse_reservation_keys(keys) == std::array<std::uint64_t, 2>{0x1122334455667788, 9});
}

TEST_CASE("Reservation commands come back as they were encoded, and reserved values are refused") {
  for (const std::uint32_t dw10 : {0u, 1u, 2u, 3u, 4u, 7u, 8u, 0x100u, 0x108u, 0x602u, 0x603u, 0x700u, 0x101u,
                                   0x40000000u, 0x80000001u, 0xc000000au}) {
    SubmissionQueueEntry sqe;
    sqe.cdw10 = Le32(dw10);
    INFO(dw10);
    if (const auto parsed = parse_reservation_register(sqe))
      CHECK((encode_reservation_register(Nsid(1), *parsed).cdw10.get() ^ dw10) % 0x100 == 0);
    else
      CHECK(((dw10 & 7) > 2 || dw10 >> 30 == 1));
    const unsigned type = dw10 >> 8 & 0xff;
    if (const auto parsed = parse_reservation_acquire(sqe))
      CHECK(encode_reservation_acquire(Nsid(1), *parsed).cdw10.get() == (dw10 & 0xffff));
    else
      CHECK(((dw10 & 7) > 2 || (dw10 & 8) != 0 || type == 0 || type > 6));
    if (const auto parsed = parse_reservation_release(sqe))
      CHECK(encode_reservation_release(Nsid(1), *parsed).cdw10.get() == (dw10 & 0xffff));
    else
      CHECK(((dw10 & 7) > 1 || (dw10 & 8) != 0));
  }
}

TEST_CASE("A reservation report has its fields where the specification has them, and is never read past its end") {
  const ReservationStatus status{.generation = 0x01020304,
                                 .type = ReservationType::exclusive_access,
                                 .persists = true,
                                 .entries = {{.cntlid = 0x1122, .holds = true, .key = 5, .host = HostId({7})},
                                             {.cntlid = 0xffff, .key = 6, .host = HostId({8})}}};
  const auto bytes = encode_reservation_status(status);
  REQUIRE(bytes.size() == 3 * 64);
  CHECK(bytes[0] == std::byte{4});
  CHECK(bytes[4] == std::byte{2});
  CHECK(bytes[5] == std::byte{2});
  CHECK(bytes[9] == std::byte{1});
  CHECK(bytes[64] == std::byte{0x22});
  CHECK(bytes[66] == std::byte{1});
  CHECK(bytes[72] == std::byte{5});
  CHECK(bytes[80] == std::byte{7});
  CHECK(parse_reservation_status(bytes) == status);
  for (std::size_t size = 0; size < bytes.size(); ++size)
    CHECK_FALSE(parse_reservation_status(std::span(bytes).first(size)).has_value());
  auto wrong = bytes;
  wrong[4] = std::byte{7};
  CHECK_FALSE(parse_reservation_status(wrong).has_value());
}
