// What the target has for a host that has lost its path: the recovery log page and the fence. docs/recovery.md.

#include <catch2/catch.hpp>

#include "common/nvme/recovery.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::FenceResult;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = 512;

nvme::RecoveryInfo recovery(TargetRig& rig, RawQueue& admin, Nsid nsid = Nsid(1)) {
  const auto log = rig.read_structure<nvme::RecoveryLog>(
      admin, nvme::encode_get_log_page(
                 {.nsid = nsid, .lid = nvme::kRecoveryLogId, .length = Bytes(sizeof(nvme::RecoveryLog))}));
  const auto info = nvme::parse_recovery_log(nvme::wire_bytes(log));
  REQUIRE(info);
  return *info;
}

FenceResult fence(TargetRig& rig, RawQueue& admin, const nvme::AssociationId& which) {
  const auto response = rig.execute(admin, nvme::encode_fence(which));
  TargetRig::require_ok(response);
  return static_cast<FenceResult>(response.cqe.dw0());
}

// A write whose data has come and which the store has not finished; its host waits for nothing.
void write_without_waiting(TargetRig& rig, RawQueue& io, HostMemory& memory, Gate& gate) {
  auto sqe = nvme::encode_block_command(nvme::IoOpcode::write, {.nsid = Nsid(1), .first = Lba(3), .count = Blocks(1)});
  sqe.sgl = memory.keyed(kBlock);
  io.submit(sqe);
  rig.expect([&] { return gate.waiting() == 1; }, "the store is asked for memory");
  gate.let_one_through();
  rig.expect([&] { return gate.waiting() == 1; }, "the data has come, and the store is to have it");
}

std::vector<std::byte> read_block(TargetRig& rig, RawQueue& io, std::uint64_t lba) {
  auto memory = rig.memory(io, kBlock);
  TargetRig::require_ok(rig.transfer(
      io, nvme::encode_block_command(nvme::IoOpcode::read, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(1)}),
      *memory, kBlock));
  return {memory->bytes().begin(), memory->bytes().end()};
}

}  // namespace

TEST_CASE("The recovery log names the target, the association and the namespace's incarnation") {
  TargetRig rig;
  const auto first = rig.associate();
  const auto second = rig.associate();
  const auto one = recovery(rig, *first.admin);
  const auto two = recovery(rig, *second.admin);
  CHECK(one.association.instance == two.association.instance);
  CHECK(one.association.instance != nvme::InstanceId{});
  CHECK(one.association.number != two.association.number);
  CHECK(recovery(rig, *first.admin).association == one.association);
  CHECK(one.incarnation == two.incarnation);
  CHECK(one.incarnation != nvme::Incarnation{});
  CHECK(recovery(rig, *first.admin, nvme::kNsidAll).incarnation == nvme::Incarnation{});
  const auto missing = rig.execute(
      *first.admin, nvme::encode_get_log_page({.nsid = Nsid(7), .lid = nvme::kRecoveryLogId, .length = Bytes(128)}));
  CHECK(missing.code() == StatusCode::invalid_namespace);
}

TEST_CASE("A store that was closed and opened again has another incarnation, and so has another target") {
  TargetRig rig;
  const auto association = rig.associate();
  const auto before = recovery(rig, *association.admin);
  REQUIRE(rig.target->remove_namespace(nqn(kSubsystem), Nsid(1), {}));
  rig.expect([&] { return rig.target->statistics().namespaces_leaving == 0; }, "it has gone");
  Random random(3);
  REQUIRE(rig.target->add_namespace(nqn(kSubsystem), make_ram_store(rig, random), Nsid(1)));
  CHECK(recovery(rig, *association.admin).incarnation != before.incarnation);
  TargetRig other({.network = {.seed = 2}});
  // The rigs' targets are seeded alike: only real processes differ, so what is compared is that it is there.
  CHECK(recovery(other, *other.associate().admin).association.instance != nvme::InstanceId{});
}

TEST_CASE("A fence ends an association of the same host, and says so when its last command has left the store") {
  Gate gate;
  TargetRig rig({.gate = &gate});
  const auto lost = rig.associate();
  RawQueue& io = rig.io_queue(lost, Qid(1));
  const auto old = recovery(rig, *lost.admin).association;
  auto memory = rig.memory(io, kBlock);
  std::fill(memory->bytes().begin(), memory->bytes().end(), std::byte{0x11});
  write_without_waiting(rig, io, *memory, gate);

  const auto fresh = rig.associate();
  REQUIRE(fence(rig, *fresh.admin, old) == FenceResult::ending);
  rig.expect([&] { return io.ended() && lost.admin->ended(); }, "its connections are closed");
  rig.run_for(std::chrono::seconds(30));
  CHECK(fence(rig, *fresh.admin, old) == FenceResult::ending);  // the store has not answered
  gate.let_one_through();
  rig.expect([&] { return fence(rig, *fresh.admin, old) == FenceResult::gone; }, "it is gone");

  gate.open = true;
  RawQueue& again = rig.io_queue(fresh, Qid(1));
  const auto block = read_block(rig, again, 3);
  CHECK((block == std::vector<std::byte>(kBlock, std::byte{0x11}) || block == std::vector<std::byte>(kBlock)));
}

TEST_CASE("No queue joins a controller that is being fenced off") {
  Gate gate;
  TargetRig rig({.gate = &gate});
  const auto lost = rig.associate();
  RawQueue& io = rig.io_queue(lost, Qid(1));
  auto memory = rig.memory(io, kBlock);
  write_without_waiting(rig, io, *memory, gate);
  const auto old = recovery(rig, *lost.admin).association;
  const auto fresh = rig.associate();
  REQUIRE(fence(rig, *fresh.admin, old) == FenceResult::ending);
  RawQueue& late = rig.queue_up(Qid(2), 32, lost.cntlid);
  CHECK(rig.connect(late, rig.connect_request(Qid(2), lost.cntlid)).code() == StatusCode::connect_invalid_parameters);
  gate.open = true;
  gate.let_all_through();
  rig.expect([&] { return fence(rig, *fresh.admin, old) == FenceResult::gone; }, "it is gone");
}

TEST_CASE("What is not here is gone: associations of other targets, and those that ended") {
  TargetRig rig;
  const auto fresh = rig.associate();
  auto mine = recovery(rig, *fresh.admin).association;
  auto other = mine;
  other.number += 1000;
  CHECK(fence(rig, *fresh.admin, other) == FenceResult::gone);
  other = mine;
  other.instance[0] = static_cast<std::uint8_t>(other.instance[0] + 1);
  CHECK(fence(rig, *fresh.admin, other) == FenceResult::gone);
  CHECK(fence(rig, *fresh.admin, {}) == FenceResult::gone);
  CHECK_FALSE(fresh.admin->ended());
}

TEST_CASE("Nobody fences off another host's association, nor his own") {
  TargetRig rig;
  const auto victim = rig.associate();
  const auto target_of_it = recovery(rig, *victim.admin).association;
  CHECK(rig.execute(*victim.admin, nvme::encode_fence(target_of_it)).code() == StatusCode::invalid_field);
  RawQueue& other = rig.queue_up(Qid(0));
  auto request = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  request.host_id = nvme::HostId(std::array<std::uint8_t, 16>{9, 9, 9});
  TargetRig::require_ok(rig.connect(other, request));
  TargetRig::require_ok(rig.set_configuration(other, TargetRig::enabled()));
  CHECK(rig.execute(other, nvme::encode_fence(target_of_it)).code() == StatusCode::invalid_field);
  rig.run_for(std::chrono::seconds(1));
  CHECK_FALSE(victim.admin->ended());
}
