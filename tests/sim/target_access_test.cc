// Asymmetric namespace access as a host sees it: identify, log page, event, and what becomes of I/O commands.

#include <catch2/catch.hpp>

#include <array>

#include "common/nvme/access.h"
#include "tests/sim/event_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AccessState;
using nvme::AdminOpcode;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kEvent = 0x000c0302;  // LID 0Ch, Asymmetric Namespace Access Change, Notice

struct AccessRig : EventRig {
  AccessRig() : EventRig(kEvent), io(io_queue(association, Qid(1))) {}
  void set(AccessState state) { REQUIRE(target->set_access(address(), state).has_value()); }
  void enable_events() { enable(NVME_FEATURE_AENCFG_NOTICE_ANA_CHANGE); }
  nvme::Status command(IoOpcode opcode) {
    auto data = memory(io, 512);
    auto sqe = nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(0), .count = Blocks(1)});
    if (opcode != IoOpcode::flush) sqe.sgl = data->keyed(512);
    return execute(io, sqe).cqe.status();
  }
  std::array<std::byte, 64> log(std::uint8_t lsp = 0) {
    return read_structure<std::array<std::byte, 64>>(
        admin,
        nvme::encode_get_log_page({.nsid = nvme::kNsidAll, .lid = NVME_LOG_LID_ANA, .lsp = lsp, .length = Bytes(64)}));
  }
  RawQueue& io;
};

}  // namespace

TEST_CASE("A namespace is in the one access group, which is optimized unless it was said otherwise") {
  AccessRig rig;
  const auto id =
      rig.read_structure<nvme_id_ns>(rig.admin, nvme::encode_identify({.nsid = Nsid(1), .cns = NVME_IDENTIFY_CNS_NS}));
  CHECK(nvme::from_le(id.anagrpid) == 1);
  CHECK(nvme::find_access_state(rig.log(), 1) == AccessState::optimized);
  CHECK(rig.log()[16 + 4] == std::byte{1});   // namespaces
  CHECK(rig.log()[16 + 32] == std::byte{1});  // the first of them
  CHECK(rig.log(nvme::kAccessLogGroupsOnly)[16 + 4] == std::byte{0});
  CHECK(rig.log(nvme::kAccessLogGroupsOnly)[16 + 32] == std::byte{0});
}

TEST_CASE("Where nothing can be done I/O commands say so and why, and admin commands go on") {
  AccessRig rig;
  const auto state = GENERATE(AccessState::non_optimized, AccessState::inaccessible, AccessState::persistent_loss,
                              AccessState::change);
  rig.set(state);
  for (const IoOpcode opcode : {IoOpcode::read, IoOpcode::write, IoOpcode::flush}) {
    const nvme::Status status = rig.command(opcode);
    CHECK(status.code() == nvme::access_status(state).code());
    CHECK_FALSE(status.do_not_retry());
  }
  CHECK(nvme::find_access_state(rig.log(), 1) == state);
  rig.set(AccessState::optimized);
  CHECK(rig.command(IoOpcode::write).ok());
}

TEST_CASE("A change of access is told once, and again after its log was read") {
  AccessRig rig;
  rig.enable_events();
  const auto first = rig.request_event();
  const auto second = rig.request_event();
  rig.set(AccessState::inaccessible);
  rig.expect_event(first);
  rig.set(AccessState::optimized);
  CHECK(rig.no_event(second));
  CHECK(nvme::find_access_state(rig.log(), 1) == AccessState::optimized);
  rig.set(AccessState::non_optimized);
  rig.expect_event(second);
}

TEST_CASE("A host that did not ask for the event is not told; one that asks later is told then") {
  AccessRig rig;
  const auto request = rig.request_event();
  rig.set(AccessState::inaccessible);
  CHECK(rig.no_event(request));
  rig.enable_events();
  rig.expect_event(request);
}

TEST_CASE("An address where nobody listens has no access state") {
  AccessRig rig;
  const auto set = rig.target->set_access(*Uri::parse("nvme+sim://elsewhere"), AccessState::optimized);
  REQUIRE_FALSE(set);
  CHECK(set.error().kind() == ErrorKind::not_found);
}
