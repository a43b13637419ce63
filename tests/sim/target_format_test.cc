// Format NVM (NVM 1.0, 4.1.3).

#include <catch2/catch.hpp>

#include "tests/sim/reservation_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::Erase;
using nvme::IoOpcode;
using nvme::StatusCode;
using Host = ReservationRig::Host;

namespace {

struct FormatRig : ReservationRig {
  using ReservationRig::ReservationRig;
  static nvme::SubmissionQueueEntry format(Erase erase = Erase::user_data) {
    return nvme::encode_format({.nsid = Nsid(1), .erase = erase});
  }
  std::uint8_t progress() {
    return read_structure<nvme_id_ns>(*association.admin,
                                      nvme::encode_identify({.nsid = Nsid(1), .cns = NVME_IDENTIFY_CNS_NS}))
        .fpi;
  }
  Response answer(RawQueue& of, std::uint16_t cid) {
    std::optional<Response> response;
    expect([&] { return (response = of.take(cid)).has_value(); }, "the command is answered");
    return *response;
  }
};

}  // namespace

TEST_CASE("Format NVM erases a namespace, and nobody comes to its blocks meanwhile") {
  Gate gate;
  const std::size_t reactors = GENERATE(1u, 3u);
  FormatRig rig({.reactors = reactors, .store = "null:size=1GiB,block=4096", .gate = &gate});
  gate.open = true;
  const Host other = rig.add_host(2);
  CHECK(rig.progress() == NVME_NS_FPI_SUPPORTED);
  REQUIRE(
      rig.execute(*other.admin, nvme::encode_set_features({.nsid = Nsid(0),
                                                           .fid = NVME_FEAT_FID_ASYNC_EVENT,
                                                           .value = NVME_FEATURE_AENCFG_NOTICE_NAMESPACE_ATTRIBUTES}))
          .status()
          .ok());
  const auto event = other.admin->submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
  gate.open = false;
  auto data = rig.memory(*other.io, IoRig::kBlock);
  std::fill(data->bytes().begin(), data->bytes().end(), std::byte{7});
  auto write = IoRig::entry(IoOpcode::write, 9, 1);
  write.sgl = data->keyed(IoRig::kBlock);
  const auto before = other.io->submit(write);
  rig.expect([&] { return gate.waiting() == 1; }, "a write has come before");
  const auto format = rig.association.admin->submit(FormatRig::format());
  rig.expect([&] { return rig.progress() == (NVME_NS_FPI_SUPPORTED | 100); }, "it has begun");
  CHECK(gate.waiting() == 1);  // it waits for the write
  CHECK(rig.answer(*other.io, other.io->submit(write)).code() == StatusCode::format_in_progress);
  CHECK(rig.touch(other, IoOpcode::read) == StatusCode::format_in_progress);
  CHECK(rig.execute(*other.io, nvme::encode_flush(nvme::kNsidAll)).code() == StatusCode::format_in_progress);
  CHECK(rig.execute(*other.admin, FormatRig::format()).code() == StatusCode::format_in_progress);
  gate.let_one_through();
  rig.expect([&] { return gate.waiting() == 1; }, "the write is committed");
  gate.let_one_through();
  CHECK(rig.answer(*other.io, before).status().ok());
  std::uint8_t last = 0xff;
  for (int piece = 0; piece < 4; ++piece) {
    rig.expect([&] { return gate.waiting() == 1; }, "a piece is erased");
    const std::uint8_t now = rig.progress();
    CHECK(now < last);
    CHECK(now == (NVME_NS_FPI_SUPPORTED | (100 - 25 * piece)));
    last = now;
    gate.let_one_through();
  }
  rig.expect([&] { return gate.waiting() == 1; }, "all of it is made durable");
  CHECK_FALSE(rig.association.admin->take(format).has_value());
  gate.open = true;
  gate.let_all_through();
  CHECK(rig.answer(*rig.association.admin, format).status().ok());
  CHECK(rig.progress() == NVME_NS_FPI_SUPPORTED);
  CHECK(rig.touch(other, IoOpcode::write) == StatusCode::success);
  CHECK(rig.answer(*other.admin, event).cqe.dw0() == 0x040002);  // Namespace Attribute Changed, log page 04h
}

TEST_CASE("Format NVM refuses what there is not, and whom a reservation keeps out") {
  FormatRig rig;
  const auto code = [&](const nvme::FormatCommand& command) {
    return rig.execute(*rig.association.admin, nvme::encode_format(command)).code();
  };
  for (const std::uint64_t lba : {0ul, 3ul, IoRig::kBlocks - 1})
    REQUIRE(rig.write(lba, some_bytes(IoRig::kBlock, 1)).status().ok());
  CHECK(code({.nsid = Nsid(1), .format = 1}) == StatusCode::invalid_format);
  CHECK(code({.nsid = Nsid(1), .format = 16}) == StatusCode::invalid_format);
  CHECK(code({.nsid = Nsid(1), .protection = 2}) == StatusCode::invalid_format);
  CHECK(code({.nsid = Nsid(1), .erase = Erase::cryptographic}) == StatusCode::invalid_field);
  CHECK(code({.nsid = Nsid(1), .erase = static_cast<Erase>(3)}) == StatusCode::invalid_field);
  CHECK(code({.nsid = Nsid(0)}) == StatusCode::invalid_namespace);
  CHECK(code({.nsid = Nsid(2)}) == StatusCode::invalid_namespace);
  CHECK(code({.nsid = nvme::kNsidAll}) == StatusCode::invalid_field);
  const Host other = rig.add_host(2);
  REQUIRE(rig.add_key(other, 1) == StatusCode::success);
  REQUIRE(rig.acquire(other, 1, nvme::ReservationType::write_exclusive) == StatusCode::success);
  CHECK(code({.nsid = Nsid(1)}) == StatusCode::reservation_conflict);
  CHECK(rig.read(3, 1) == some_bytes(IoRig::kBlock, 1));
  CHECK(rig.execute(*other.admin, FormatRig::format(Erase::unsaid)).code() == StatusCode::success);
  for (const std::uint64_t lba : {0ul, 3ul, IoRig::kBlocks - 1})
    CHECK(rig.read(lba, 1) == std::vector<std::byte>(IoRig::kBlock));
}

TEST_CASE("A Format NVM goes on when its host has gone, and ends when the store fails or the namespace is removed") {
  Gate gate;
  FormatRig rig({.store = "null:size=1GiB,block=4096", .gate = &gate});
  gate.open = true;
  const Host host = rig.add_host(2);
  gate.open = false;
  const auto format = host.admin->submit(FormatRig::format());
  rig.expect([&] { return gate.waiting() == 1; }, "it erases");
  SECTION("the host goes") {
    host.admin->connection->close();
    rig.expect([&] { return host.admin->closed; }, "the host has gone");
    CHECK(rig.progress() != NVME_NS_FPI_SUPPORTED);
    gate.open = true;
    gate.let_all_through();
    rig.expect([&] { return rig.progress() == NVME_NS_FPI_SUPPORTED; }, "it is done");
    CHECK(rig.touch(rig.add_host(3), IoOpcode::write) == StatusCode::success);
  }
  SECTION("the store fails") {
    gate.answers.push_back(target::StoreStatus::write_error);
    gate.let_one_through();
    CHECK(rig.answer(*host.admin, format).code() == StatusCode::write_fault);
    gate.open = true;
    CHECK(rig.progress() == NVME_NS_FPI_SUPPORTED);
    CHECK(rig.touch(host, IoOpcode::write) == StatusCode::success);
  }
  SECTION("the namespace is removed") {
    bool gone = false;
    REQUIRE(rig.target->remove_namespace(nqn(kSubsystem), Nsid(1), [&](auto) { gone = true; }).has_value());
    rig.run_for(std::chrono::milliseconds(10));
    CHECK_FALSE(gone);
    gate.let_one_through();
    CHECK(rig.answer(*host.admin, format).code() == StatusCode::invalid_namespace);
    rig.expect([&] { return gone; }, "it has gone");
    gate.open = true;
  }
}
