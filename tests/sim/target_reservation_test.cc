// Reservations (Base 2.0, 8.19), as hosts see them.

#include <array>
#include <catch2/catch.hpp>

#include "target/opcodes.h"
#include "tests/sim/reservation_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AcquireAction;
using nvme::ChangePersistence;
using nvme::IoOpcode;
using nvme::RegisterAction;
using nvme::ReleaseAction;
using nvme::ReservationAcquire;
using nvme::ReservationRegister;
using nvme::ReservationRelease;
using nvme::ReservationType;
using nvme::StatusCode;
using Host = ReservationRig::Host;

namespace {

constexpr std::array kTypes{ReservationType::write_exclusive,
                            ReservationType::exclusive_access,
                            ReservationType::write_exclusive_registrants,
                            ReservationType::exclusive_access_registrants,
                            ReservationType::write_exclusive_all,
                            ReservationType::exclusive_access_all};

nvme::SubmissionQueueEntry set_feature(std::uint8_t fid, std::uint32_t nsid, std::uint32_t value) {
  return nvme::encode_set_features({.nsid = Nsid(nsid), .fid = fid, .value = value});
}
nvme::SubmissionQueueEntry get_feature(std::uint8_t fid, std::uint32_t nsid) {
  return nvme::encode_get_features({.nsid = Nsid(nsid), .fid = fid});
}

}  // namespace

TEST_CASE("Reservation Register adds, replaces and removes the key of a host") {
  ReservationRig rig;
  const Host host = rig.add_host(1);
  CHECK(rig.add_key(host, 0) == StatusCode::invalid_field);
  CHECK(rig.ask(host, ReservationRegister{.action = RegisterAction::replace, .new_key = 5}) ==
        StatusCode::reservation_conflict);
  CHECK(rig.add_key(host, 1) == StatusCode::success);
  CHECK(rig.add_key(host, 1) == StatusCode::success);
  CHECK(rig.add_key(host, 2) == StatusCode::reservation_conflict);
  CHECK(rig.ask(host, ReservationRegister{.action = RegisterAction::replace, .current_key = 9, .new_key = 2}) ==
        StatusCode::reservation_conflict);
  CHECK(rig.ask(host, ReservationRegister{.action = RegisterAction::replace, .current_key = 1, .new_key = 2}) ==
        StatusCode::success);
  CHECK(rig.ask(host,
                ReservationRegister{.action = RegisterAction::replace, .ignore_existing_key = true, .new_key = 3}) ==
        StatusCode::success);
  CHECK(rig.ask(host, ReservationRegister{.action = RegisterAction::remove, .current_key = 2}) ==
        StatusCode::reservation_conflict);
  CHECK(rig.report(host) ==
        nvme::ReservationStatus{.generation = 4, .entries = {{host.cntlid.value(), false, 3, host_id(1)}}});
  CHECK(rig.ask(host, ReservationRegister{.action = RegisterAction::remove, .current_key = 3}) == StatusCode::success);
  CHECK(rig.report(host).entries.empty());
  SECTION("and says what cannot be") {
    auto reserved = rig.entry_of(ReservationRegister{.new_key = 1});
    reserved.cdw10 = nvme::Le32(3);  // an action
    CHECK(rig.execute(*host.io, reserved).code() == StatusCode::invalid_field);
    reserved.cdw10 = nvme::Le32(1u << 30);  // of CPTPL
    CHECK(rig.execute(*host.io, reserved).code() == StatusCode::invalid_field);
    CHECK(rig.add_key(host, 1, ChangePersistence::on) == StatusCode::invalid_field);  // there is no file
    auto elsewhere = rig.entry_of(ReservationRegister{.new_key = 1});
    elsewhere.nsid = nvme::Le32(2);
    CHECK(rig.execute(*host.io, elsewhere).code() == StatusCode::invalid_namespace);
    auto short_data = rig.entry_of(ReservationRegister{.new_key = 1});
    short_data.sgl = rig.keys->keyed(8);
    CHECK(rig.execute(*host.io, short_data).code() == StatusCode::sgl_invalid_length);
    const Host nobody = rig.add_host(nvme::HostId());
    CHECK(rig.add_key(nobody, 1) == StatusCode::operation_denied);
    CHECK(rig.report(host).entries.empty());
  }
}

TEST_CASE("128 hosts can be registered, and one more is told that there is no room") {
  ReservationRig rig;
  const std::size_t most = 128;
  for (std::size_t i = 0; i < most; ++i) {
    const Host host = rig.add_host(static_cast<std::uint8_t>(i + 1));
    REQUIRE(rig.add_key(host, i + 1) == StatusCode::success);
    host.admin->connection->close();
    rig.expect([&] { return host.admin->closed && host.io->ended(); }, "the host has gone");
  }
  const Host late = rig.add_host(200);
  CHECK(rig.add_key(late, 1) == StatusCode::internal_error);
  CHECK(rig.logger.said("is not registered: 128 are"));
  const auto report = rig.report(late);
  REQUIRE(report.entries.size() == most);
  CHECK(report.entries[7] == nvme::ReservationStatus::Entry{0xffff, false, 8, host_id(8)});
}

TEST_CASE("A registration is of the host, not of the controller that it came through") {
  ReservationRig rig;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(1);
  const Host other = rig.add_host(2);
  REQUIRE(rig.add_key(one, 1) == StatusCode::success);
  CHECK(rig.acquire(two, 1, ReservationType::exclusive_access) == StatusCode::success);
  CHECK(rig.touch(one, IoOpcode::write) == StatusCode::success);
  CHECK(rig.touch(two, IoOpcode::read) == StatusCode::success);
  CHECK(rig.touch(other, IoOpcode::read) == StatusCode::reservation_conflict);
  const auto report = rig.report(other);
  REQUIRE(report.entries.size() == 2);
  CHECK(report.entries[0] == nvme::ReservationStatus::Entry{one.cntlid.value(), true, 1, host_id(1)});
  CHECK(report.entries[1] == nvme::ReservationStatus::Entry{two.cntlid.value(), true, 1, host_id(1)});
}

TEST_CASE("Reservation Report says who is registered and what is reserved, in the extended form only") {
  ReservationRig rig;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(2);
  REQUIRE(rig.add_key(one, 1) == StatusCode::success);
  REQUIRE(rig.add_key(two, 2) == StatusCode::success);
  REQUIRE(rig.acquire(two, 2, ReservationType::write_exclusive_registrants) == StatusCode::success);
  CHECK(rig.report(one) == nvme::ReservationStatus{.generation = 2,
                                                   .type = ReservationType::write_exclusive_registrants,
                                                   .entries = {{one.cntlid.value(), false, 1, host_id(1)},
                                                               {two.cntlid.value(), true, 2, host_id(2)}}});
  auto to = rig.memory(*one.io, 4096);
  const auto report = [&](nvme::ReservationReport wanted) {
    return rig.transfer(*one.io, nvme::encode_reservation_report(Nsid(1), wanted), *to,
                        static_cast<std::uint32_t>(wanted.bytes));
  };
  CHECK(report({.bytes = 4096}).code() == StatusCode::host_id_inconsistent);
  CHECK(report({.bytes = 100, .extended = true}).code() == StatusCode::success);  // as much as fits
  CHECK_FALSE(nvme::parse_reservation_status(to->bytes().first(100)).has_value());
  CHECK(to->bytes()[5] == std::byte{2});
  CHECK(rig.execute(*one.io,
                    nvme::encode_reservation_report(Nsid(1), {.bytes = std::uint64_t{1} << 34, .extended = true}))
            .code() == StatusCode::invalid_field);
}

TEST_CASE("A reservation is acquired by a registrant, and preempted by another") {
  ReservationRig rig;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(2);
  const auto type = GENERATE(from_range(kTypes));
  const bool all = nvme::is_all_registrants(type);
  CHECK(rig.acquire(one, 1, type) == StatusCode::reservation_conflict);
  REQUIRE(rig.add_key(one, 1) == StatusCode::success);
  REQUIRE(rig.add_key(two, 2) == StatusCode::success);
  CHECK(rig.acquire(one, 2, type) == StatusCode::reservation_conflict);
  CHECK(rig.acquire(one, 1, type) == StatusCode::success);
  CHECK(rig.acquire(one, 1, type) == StatusCode::success);
  CHECK(rig.acquire(two, 2, type) == (all ? StatusCode::success : StatusCode::reservation_conflict));
  CHECK(rig.acquire(one, 1, type == kTypes[0] ? kTypes[1] : kTypes[0]) == StatusCode::reservation_conflict);
  CHECK(rig.preempt(two, 2, 9, type) == StatusCode::reservation_conflict);
  CHECK(rig.preempt(two, 2, all ? 0 : 1, ReservationType::exclusive_access) == StatusCode::success);
  const auto report = rig.report(one);
  CHECK(report.type == ReservationType::exclusive_access);
  REQUIRE(report.entries.size() == 1);
  CHECK(report.entries[0] == nvme::ReservationStatus::Entry{two.cntlid.value(), true, 2, host_id(2)});
  CHECK(rig.touch(one, IoOpcode::read) == StatusCode::reservation_conflict);
  CHECK(rig.preempt(two, 2, 0, type) == StatusCode::invalid_field);
  auto reserved = rig.entry_of(ReservationAcquire{.current_key = 2});
  reserved.cdw10 = nvme::Le32(7u << 8);  // a type
  CHECK(rig.execute(*two.io, reserved).code() == StatusCode::invalid_field);
  reserved.cdw10 = nvme::Le32(1u << 8 | 1u << 3);  // IEKEY
  CHECK(rig.execute(*two.io, reserved).code() == StatusCode::invalid_field);
}

TEST_CASE("Reservation Release ends what the host holds, and clears everything") {
  ReservationRig rig;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(2);
  REQUIRE(rig.add_key(one, 1) == StatusCode::success);
  REQUIRE(rig.add_key(two, 2) == StatusCode::success);
  REQUIRE(rig.acquire(one, 1, ReservationType::write_exclusive) == StatusCode::success);
  const auto release = [&](const Host& host, std::uint64_t key, std::uint8_t type) {
    return rig.ask(host, ReservationRelease{.type = type, .current_key = key});
  };
  CHECK(release(one, 7, 1) == StatusCode::reservation_conflict);
  CHECK(release(one, 1, 2) == StatusCode::invalid_field);
  CHECK(release(two, 2, 1) == StatusCode::success);  // which does not hold it: nothing happens
  CHECK(rig.report(two).type == ReservationType::write_exclusive);
  CHECK(release(one, 1, 1) == StatusCode::success);
  CHECK_FALSE(rig.report(two).type.has_value());
  REQUIRE(rig.acquire(one, 1, ReservationType::exclusive_access) == StatusCode::success);
  CHECK(rig.ask(two, ReservationRelease{.action = ReleaseAction::clear, .current_key = 2}) == StatusCode::success);
  CHECK(rig.report(two) == nvme::ReservationStatus{.generation = 3});
  CHECK(rig.touch(two, IoOpcode::write) == StatusCode::success);
}

TEST_CASE("What a reservation forbids ends with Reservation Conflict, whichever command touches blocks") {
  ReservationRig rig;
  const std::array<Host, 3> hosts{rig.add_host(1), rig.add_host(2), rig.add_host(3)};  // as in the figure
  REQUIRE(rig.add_key(hosts[1], 1) == StatusCode::success);
  REQUIRE(rig.add_key(hosts[2], 2) == StatusCode::success);
  constexpr std::array kReads{IoOpcode::read, IoOpcode::compare, IoOpcode::verify};
  constexpr std::array kWrites{IoOpcode::write, IoOpcode::write_zeroes, IoOpcode::dataset_management, IoOpcode::copy,
                               IoOpcode::flush};
  std::size_t known = 4;  // the reservation commands themselves
  auto data = rig.memory(*hosts[0].io, ReservationRig::kBlock);
  const auto touch = [&](const Host& host, IoOpcode opcode, Nsid nsid = Nsid(1)) {
    nvme::SubmissionQueueEntry sqe = IoRig::entry(opcode, 0, 1);
    std::uint32_t length = ReservationRig::kBlock;
    if (opcode == IoOpcode::verify || opcode == IoOpcode::write_zeroes) length = 0;
    if (opcode == IoOpcode::flush) sqe = nvme::encode_flush(nsid), length = 0;
    if (opcode == IoOpcode::dataset_management)
      sqe = nvme::encode_dataset_management({.nsid = Nsid(1), .deallocate = nvme::Deallocate::yes}), length = 16;
    if (opcode == IoOpcode::copy) {
      sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(4)});
      const auto ranges = IoRig::copy_ranges({{Lba(0), Blocks(1)}});
      std::copy(ranges.begin(), ranges.end(), data->bytes().begin());
      length = static_cast<std::uint32_t>(ranges.size());
    } else {
      std::fill(data->bytes().begin(), data->bytes().end(), std::byte{0});
    }
    return rig.transfer(*host.io, sqe, *data, length).code();
  };
  for (std::size_t type = 0; type < kTypes.size(); ++type) {
    REQUIRE(rig.acquire(hosts[2], 2, kTypes[type]) == StatusCode::success);
    for (std::size_t who = 0; who < hosts.size(); ++who) {
      INFO("type " << type + 1 << " host " << who);
      const auto expected = [&](const char* row) {
        return row[who] == 'A' ? StatusCode::success : StatusCode::reservation_conflict;
      };
      for (const IoOpcode opcode : kReads)
        CHECK(touch(hosts[who], opcode) == expected(kBehaviour[type].read));
      for (const IoOpcode opcode : kWrites)
        CHECK(touch(hosts[who], opcode) == expected(kBehaviour[type].write));
      CHECK(touch(hosts[who], IoOpcode::flush, nvme::kNsidAll) == expected(kBehaviour[type].write));
      const auto pair = rig.compare_and_write(0, std::vector<std::byte>(IoRig::kBlock),
                                              std::vector<std::byte>(IoRig::kBlock), hosts[who].io);
      CHECK((pair.write.ok() && pair.compare.ok()) == (kBehaviour[type].write[who] == 'A'));
    }
    REQUIRE(rig.ask(hosts[2], ReservationRelease{.type = static_cast<std::uint8_t>(kTypes[type]), .current_key = 2}) ==
            StatusCode::success);
  }
  // Whatever is served on I/O queues stands in one of the lists above.
  known += kReads.size() + kWrites.size();
  std::size_t served = 0;
  for (const auto& operation : target::operations())
    if (operation.kind == target::QueueKind::io) ++served;
  CHECK(served == known);
}

TEST_CASE("Preempt and Abort is answered when no command of the preempted host can touch a block any more") {
  Gate gate;
  const std::size_t reactors = GENERATE(1u, 3u);
  ReservationRig rig({.reactors = reactors, .store = "ram:size=16MiB,block=4096,atomic=in-place", .gate = &gate});
  gate.open = true;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(2);
  const Host third = rig.add_host(3);
  REQUIRE(rig.add_key(one, 1) == StatusCode::success);
  REQUIRE(rig.add_key(two, 2) == StatusCode::success);
  REQUIRE(rig.add_key(third, 3) == StatusCode::success);
  REQUIRE(rig.acquire(two, 2, ReservationType::write_exclusive_registrants) == StatusCode::success);
  auto data = rig.memory(*two.io, IoRig::kBlock);
  std::fill(data->bytes().begin(), data->bytes().end(), std::byte{7});
  const auto write = [&](const Host& host, std::uint64_t lba) {
    auto sqe = IoRig::entry(IoOpcode::write, lba, 1);
    sqe.sgl = data->keyed(IoRig::kBlock);
    return host.io->submit(sqe);
  };
  const auto answer = [&](const Host& host, std::uint16_t cid) {
    std::optional<Response> response;
    rig.expect([&] { return (response = host.io->take(cid)).has_value(); }, "the command is answered");
    return response->code();
  };
  gate.open = false;
  const auto committing = write(two, 1);
  rig.expect([&] { return gate.waiting() == 1; }, "the store is asked for memory");
  gate.let_one_through();
  rig.expect([&] { return gate.waiting() == 1; }, "the write is committed");
  const auto asking = write(two, 2);
  const auto of_third = write(third, 3);
  rig.expect([&] { return gate.waiting() == 3; }, "two more have asked the store for memory");
  const auto acquire = one.io->submit(rig.entry_of(ReservationAcquire{.action = AcquireAction::preempt_and_abort,
                                                                      .type = ReservationType::exclusive_access,
                                                                      .current_key = 1,
                                                                      .preempt_key = 2}));
  rig.run_for(std::chrono::milliseconds(50));
  CHECK_FALSE(one.io->take(acquire).has_value());  // the write in the store may still land
  gate.open = true;
  gate.let_all_through();
  CHECK(answer(one, acquire) == StatusCode::success);
  CHECK(two.io->responses.size() == 2);  // both have ended before
  CHECK(answer(two, committing) == StatusCode::success);
  CHECK(answer(two, asking) == StatusCode::preempted_and_aborted);
  CHECK(answer(third, of_third) == StatusCode::success);  // of a host that is still registered, and came before
  CHECK(answer(two, write(two, 4)) == StatusCode::reservation_conflict);
  CHECK(answer(third, write(third, 5)) == StatusCode::reservation_conflict);
  CHECK(rig.touch(one, IoOpcode::write) == StatusCode::success);
}

TEST_CASE("Preempt and Abort waits for the store also when the preempted host has gone in the middle") {
  Gate gate;
  ReservationRig rig({.store = "ram:size=16MiB,block=4096,atomic=in-place", .gate = &gate});
  gate.open = true;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(2);
  REQUIRE(rig.add_key(one, 1) == StatusCode::success);
  REQUIRE(rig.add_key(two, 2) == StatusCode::success);
  gate.open = false;
  auto data = rig.memory(*two.io, IoRig::kBlock);
  auto sqe = IoRig::entry(IoOpcode::write, 1, 1);
  sqe.sgl = data->keyed(IoRig::kBlock);
  two.io->submit(sqe);
  rig.expect([&] { return gate.waiting() == 1; }, "the store is asked for memory");
  gate.let_one_through();
  rig.expect([&] { return gate.waiting() == 1; }, "the write is committed");
  two.io->connection->close();
  rig.expect([&] { return two.io->closed; }, "its queue has gone");
  const auto acquire = one.io->submit(
      rig.entry_of(ReservationAcquire{.action = AcquireAction::preempt_and_abort, .current_key = 1, .preempt_key = 2}));
  rig.run_for(std::chrono::milliseconds(50));
  CHECK_FALSE(one.io->take(acquire).has_value());
  gate.open = true;
  gate.let_all_through();
  std::optional<Response> response;
  rig.expect([&] { return (response = one.io->take(acquire)).has_value(); }, "the command is answered");
  CHECK(response->code() == StatusCode::success);
}

TEST_CASE("A host hears of reservations by one event at a time, and reads what happened page by page") {
  ReservationRig rig;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(2);
  REQUIRE(rig.add_key(one, 1) == StatusCode::success);
  REQUIRE(rig.add_key(two, 2) == StatusCode::success);
  const auto event = [&] { return two.admin->submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request)); };
  const auto comes = [&](std::uint16_t cid) {
    std::optional<Response> response;
    rig.expect([&] { return (response = two.admin->take(cid)).has_value(); }, "the event comes");
    return response->cqe.dw0();
  };
  constexpr std::uint32_t kEvent = 0x800006;  // I/O command specific, log page 80h
  const auto first = event();
  const auto second = event();
  REQUIRE(rig.acquire(one, 1, ReservationType::write_exclusive_registrants) == StatusCode::success);
  REQUIRE(rig.ask(one, ReservationRelease{.type = 3, .current_key = 1}) == StatusCode::success);
  REQUIRE(rig.preempt(one, 1, 2, ReservationType::write_exclusive) == StatusCode::success);
  CHECK(comes(first) == kEvent);
  rig.run_for(std::chrono::milliseconds(10));
  CHECK_FALSE(two.admin->take(second).has_value());  // nothing was read yet
  auto page = rig.notice(two);
  CHECK(page.lpc == 1);
  CHECK(page.rnlpt == NVME_RESV_NOTIFY_RNLPT_RESERVATION_RELEASED);
  CHECK(page.nalp == 1);
  CHECK(page.nsid == 1);
  CHECK(comes(second) == kEvent);
  page = rig.notice(two);
  CHECK(page.lpc == 2);
  CHECK(page.rnlpt == NVME_RESV_NOTIFY_RNLPT_REGISTRATION_PREEMPTED);
  CHECK(page.nalp == 0);
  page = rig.notice(two);
  CHECK(page.lpc == 0);
  CHECK(page.rnlpt == NVME_RESV_NOTIFY_RNLPT_EMPTY);
  CHECK(rig.notice(one).lpc == 0);
}

TEST_CASE("The notification mask silences what it names, namespace by namespace") {
  ReservationRig rig;
  const Host one = rig.add_host(1);
  const Host two = rig.add_host(2);
  const auto code = [&](const nvme::SubmissionQueueEntry& sqe) { return rig.execute(*two.admin, sqe).code(); };
  CHECK(code(set_feature(0x82, 1, 1)) == StatusCode::invalid_field);
  CHECK(code(set_feature(0x82, 2, 2)) == StatusCode::invalid_namespace);
  CHECK(code(get_feature(0x82, 0xffffffff)) == StatusCode::invalid_namespace);
  CHECK(code(set_feature(0x82, 0xffffffff, 1 << 3)) == StatusCode::success);
  CHECK(rig.execute(*two.admin, get_feature(0x82, 1)).cqe.dw0() == 1 << 3);
  CHECK(code(set_feature(0x82, 1, 1 << 1)) == StatusCode::success);
  for (const bool heard : {false, true}) {
    REQUIRE(rig.ask(one, ReservationRegister{.action = RegisterAction::replace,
                                             .ignore_existing_key = true,
                                             .new_key = 1}) == StatusCode::success);
    REQUIRE(rig.add_key(two, 2) == StatusCode::success);
    REQUIRE(rig.preempt(one, 1, 2, ReservationType::write_exclusive) == StatusCode::success);
    CHECK((rig.notice(two).lpc != 0) == heard);
    REQUIRE(code(set_feature(0x82, 1, 0)) == StatusCode::success);
  }
}
