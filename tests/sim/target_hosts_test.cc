// Who may come in, and what it sees.

#include <catch2/catch.hpp>

#include "target/store/spec.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AdminOpcode;
using nvme::from_le;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kEvent = 2 | 0 << 8 | 0x04 << 16;  // Notice, Namespace Attribute Changed, log page 04h
using List = std::array<std::uint32_t, 1024>;
using Ids = std::vector<std::uint32_t>;

const nvme::HostId kHostId(std::array<std::uint8_t, 16>{1, 2, 3});  // the rig's
const nvme::HostId kOtherId(std::array<std::uint8_t, 16>{9});

/// Namespaces 1, 2 and 3, and a host that sees what it is told to.
struct HostsRig : TargetRig {
  explicit HostsRig(std::optional<std::vector<Nsid>> shown, bool any_host = false)
      : TargetRig({.allow_any_host = any_host,
                   .allowed_hosts = {{.nqn = nqn(kHost), .id = kHostId, .namespaces = std::move(shown)},
                                     {.nqn = nqn("nqn.2024-01.example:all")}}}),
        association(associate()),
        admin(*association.admin),
        io(io_queue(association, Qid(1))),
        data(memory(io, 4096)) {
    for (int i = 0; i < 2; ++i)
      REQUIRE(target->add_namespace(nqn(kSubsystem), make_ram_store(*this, random)).has_value());
    require_ok(execute(admin, nvme::encode_set_features({.fid = NVME_FEAT_FID_ASYNC_EVENT, .value = 0x100})));
  }
  Ids list(const nvme::SubmissionQueueEntry& sqe) {
    Ids found;
    for (const std::uint32_t each : read_structure<List>(admin, sqe))
      if (each != 0) found.push_back(from_le(each));
    return found;
  }
  Ids active(std::uint8_t cns = NVME_IDENTIFY_CNS_NS_ACTIVE_LIST) { return list(nvme::encode_identify({.cns = cns})); }
  Ids changed() {
    return list(
        nvme::encode_get_log_page({.nsid = nvme::kNsidAll, .lid = NVME_LOG_LID_CHANGED_NS, .length = Bytes(4096)}));
  }
  StatusCode read(Nsid nsid) {
    auto sqe = nvme::encode_block_command(IoOpcode::read, {.nsid = nsid, .first = Lba(0), .count = Blocks(1)});
    sqe.sgl = data->keyed(512);
    return execute(io, sqe).code();
  }
  std::uint64_t blocks_of(Nsid nsid) {
    return from_le(
        read_structure<nvme_id_ns>(admin, nvme::encode_identify({.nsid = nsid, .cns = NVME_IDENTIFY_CNS_NS})).nsze);
  }
  void show(std::optional<std::vector<Nsid>> shown) {
    REQUIRE(target->show_namespaces(nqn(kSubsystem), nqn(kHost), shown).has_value());
  }
  Response connect_as(const std::string& name, const nvme::HostId& id) {
    auto request = connect_request(Qid(0), nvme::kCntlidDynamic);
    request.host_nqn = nqn(name);
    request.host_id = id;
    RawQueue& queue = queue_up(Qid(0));
    return connect(queue, request);
  }

  Association association;
  RawQueue &admin, &io;
  std::unique_ptr<HostMemory> data;
};

}  // namespace

TEST_CASE("A host sees its own namespaces and no others, in lists, in logs and in commands") {
  HostsRig rig(std::vector{Nsid(1), Nsid(3)});
  for (const auto cns :
       {NVME_IDENTIFY_CNS_NS_ACTIVE_LIST, NVME_IDENTIFY_CNS_ALLOCATED_NS_LIST, NVME_IDENTIFY_CNS_CSI_NS_ACTIVE_LIST})
    CHECK(rig.active(static_cast<std::uint8_t>(cns)) == Ids{1, 3});
  CHECK(rig.blocks_of(Nsid(1)) != 0);
  CHECK(rig.blocks_of(Nsid(2)) == 0);  // as one that does not exist
  CHECK(rig.read(Nsid(3)) == StatusCode::success);
  CHECK(rig.read(Nsid(2)) == StatusCode::invalid_namespace);
  auto page = rig.memory(rig.admin, 4096);
  CHECK(rig.transfer(rig.admin, nvme::encode_identify({.nsid = Nsid(2), .cns = NVME_IDENTIFY_CNS_NS_DESC_LIST}), *page,
                     4096)
            .code() == StatusCode::invalid_namespace);
  CHECK(rig.transfer(rig.admin,
                     nvme::encode_get_log_page({.nsid = Nsid(2), .lid = NVME_LOG_LID_SMART, .length = Bytes(512)}),
                     *page, 512)
            .code() == StatusCode::invalid_namespace);
  CHECK(rig.execute(rig.io, nvme::encode_flush(Nsid(2))).code() == StatusCode::invalid_namespace);
  CHECK(rig.execute(rig.io, nvme::encode_flush(nvme::kNsidAll)).status().ok());
  CHECK(rig.changed() == Ids{3});  // 2 came as well, and is nobody to it
}

TEST_CASE("What a host sees changes while it is connected, and it is told") {
  HostsRig rig(std::vector{Nsid(1)});
  CHECK(rig.changed().empty());
  const auto event = rig.admin.submit(nvme::encode_plain(AdminOpcode::async_event_request));
  rig.show(std::vector{Nsid(2), Nsid(7)});
  std::optional<Response> told;
  rig.expect([&] { return (told = rig.admin.take(event)).has_value(); }, "the event comes");
  CHECK(told->cqe.dw0() == kEvent);
  CHECK(rig.changed() == Ids{1, 2});  // there is no 7
  CHECK(rig.active() == Ids{2});
  CHECK(rig.read(Nsid(1)) == StatusCode::invalid_namespace);
  CHECK(rig.read(Nsid(2)) == StatusCode::success);
  const auto seventh = rig.target->add_namespace(nqn(kSubsystem), make_ram_store(rig, rig.random), Nsid(7));
  REQUIRE(seventh.has_value());
  CHECK(rig.active() == Ids{2, 7});
  rig.show(std::nullopt);
  CHECK(rig.active() == Ids{1, 2, 3, 7});
  rig.show(std::vector<Nsid>{});
  CHECK(rig.active().empty());
  const auto stranger = rig.target->show_namespaces(nqn(kSubsystem), nqn("nqn.2024-01.example:no"), {});
  REQUIRE_FALSE(stranger);
  CHECK(stranger.error().kind() == ErrorKind::not_found);
}

TEST_CASE("What one host sees says nothing of what another does") {
  HostsRig rig(std::vector{Nsid(2)});
  auto request = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  request.host_nqn = nqn("nqn.2024-01.example:all");
  request.host_id = kOtherId;
  RawQueue& other = rig.queue_up(Qid(0));
  rig.require_ok(rig.connect(other, request));
  rig.require_ok(rig.set_configuration(other, TargetRig::enabled()));
  const auto list = rig.read_structure<List>(other, nvme::encode_identify({.cns = NVME_IDENTIFY_CNS_NS_ACTIVE_LIST}));
  CHECK((from_le(list[0]) == 1 && from_le(list[1]) == 2 && from_le(list[2]) == 3));
  CHECK(rig.active() == Ids{2});
}

TEST_CASE("A host with another identifier than the list says is refused, as one that is not on it") {
  const bool any_host = GENERATE(false, true);  // else it had only to change its identifier
  HostsRig rig(std::nullopt, any_host);
  const auto wrong = rig.connect_as(kHost, kOtherId);
  CHECK(wrong.code() == StatusCode::connect_invalid_host);
  const auto stranger = rig.connect_as("nqn.2024-01.example:no", kOtherId);
  CHECK(stranger.status().ok() == any_host);
  if (!any_host) {
    CHECK(stranger.cqe.dw0() == wrong.cqe.dw0());
    CHECK(stranger.cqe.status_field == wrong.cqe.status_field);
  }
  CHECK(rig.connect_as("nqn.2024-01.example:all", kOtherId).status().ok());
}
