// Identify, the discovery log, features, events. Values: Base 2.0, 5.17, and what Linux and SPDK hosts insist on.

#include <catch2/catch.hpp>

#include "common/nvme/text.h"
#include "tests/sim/admin_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AdminOpcode;
using nvme::from_le;
using nvme::StatusCode;

TEST_CASE("Identify Controller says what hosts insist on, and nothing that is not so") {
  AdminRig rig;
  const auto id = rig.identify<nvme_id_ctrl>(NVME_IDENTIFY_CNS_CTRL);
  CHECK(from_le(id.cntlid) == rig.association.cntlid.value());
  CHECK(nvme::get_padded(id.sn) == "SN1");
  CHECK(nvme::get_padded(id.mn) == "a model");
  CHECK(id.sn[19] == ' ');
  CHECK(nvme::get_padded(id.subnqn) == kSubsystem);
  CHECK(from_le(id.ver) == 0x00010400);
  CHECK(id.cntrltype == 1);
  CHECK((id.cmic & NVME_CTRL_CMIC_MULTI_CTRL) != 0);
  CHECK(id.mdts == 8);
  CHECK(from_le(id.kas) > 0);
  CHECK(id.aerl == 3);
  CHECK(id.sqes == 0x66);
  CHECK(id.cqes == 0x44);
  CHECK(from_le(id.maxcmd) == 1024);
  CHECK(from_le(id.nn) == 4096);
  CHECK(from_le(id.mnan) == 4096);
  CHECK(from_le(id.oaes) == (NVME_CTRL_OAES_NA | NVME_CTRL_OAES_ANA));
  // Linux: MNAN not 0 and no more than NN, and a log of all groups and namespaces within MDTS.
  CHECK((id.cmic & NVME_CTRL_CMIC_MULTI_ANA_REPORTING) != 0);
  CHECK(id.anatt == 10);
  CHECK((id.anacap & 0x1f) == 0x1f);
  CHECK(from_le(id.anagrpmax) == 1);
  CHECK(from_le(id.nanagrpid) == 1);
  CHECK(from_le(id.oncs) == (1u << 0 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 8));
  CHECK(from_le(id.ocfs) == 1);
  CHECK(from_le(id.sgls) == (1u << 20 | 1u << 2 | 1u));
  CHECK(from_le(id.ioccsz) == (64 + 4096) / 16);
  CHECK(from_le(id.iorcsz) == 1);
  CHECK(from_le(id.icdoff) == 0);
  CHECK(id.msdbd == 1);
  CHECK((from_le(id.ctratt) & NVME_CTRL_CTRATT_TBKAS) != 0);
  CHECK(from_le(id.oacs) == NVME_CTRL_OACS_FORMAT);
  CHECK(id.fna == NVME_CTRL_FNA_NSID_FFFFFFFF);
  CHECK(from_le(id.fuses) == 1);
  CHECK(id.awupf == 0);
}

TEST_CASE("Identify Controller of a discovery controller says nothing that makes Linux warn") {
  AdminRig rig({}, std::string(nvme::kDiscoveryNqn));
  const auto id = rig.identify<nvme_id_ctrl>(NVME_IDENTIFY_CNS_CTRL);
  CHECK(id.cntrltype == 2);
  CHECK(from_le(id.cntlid) == rig.association.cntlid.value());
  CHECK(from_le(id.maxcmd) >= 128);  // else: "sqsize 128 > ctrl maxcmd"
  CHECK(from_le(id.kas) > 0);
}

TEST_CASE("Without in-capsule data Identify offers none, and a capsule with data is refused") {
  AdminRig rig({.limits = {.in_capsule_bytes = 0}});
  const auto id = rig.identify<nvme_id_ctrl>(NVME_IDENTIFY_CNS_CTRL);
  CHECK(from_le(id.sgls) == (1u << 2 | 1u));
  CHECK(from_le(id.ioccsz) == 4);
  auto sqe = nvme::encode_set_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_TIMESTAMP});
  sqe.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, 8});
  CHECK(rig.execute(rig.admin, sqe).code() == StatusCode::sgl_invalid_length);
}

TEST_CASE("Identify Namespace describes the store") {
  AdminRig rig({.store = "ram:size=16MiB,block=4096"});
  const auto id = rig.identify<nvme_id_ns>(NVME_IDENTIFY_CNS_NS, 1);
  CHECK(from_le(id.nsze) == 4096);
  CHECK(from_le(id.ncap) == 4096);
  CHECK(id.lbaf[0].ds == 12);
  CHECK(id.flbas == 0);
  CHECK((id.nmic & 1) == 1);
  const std::array<std::uint8_t, 16> zero{};
  CHECK_FALSE(std::equal(zero.begin(), zero.end(), id.nguid));
}

TEST_CASE("Identify says how much of a write is atomic: as much as the store keeps whole, and no more") {
  struct Case {
    const char* store;
    std::uint32_t nawun;  // less one
  };
  const auto [store, nawun] = GENERATE(Case{"ram:size=16MiB", 1023},  // 512 KiB: commands on the same blocks take turns
                                       Case{"ram:size=16MiB,block=4096,atomic=in-place", 127},
                                       Case{"ram:size=16MiB,block=4096,atomic=shadow", 0},  //
                                       Case{"ram:size=16MiB,block=4096", 0});               // which, the MTU will say
  INFO(store);
  AdminRig rig({.store = store});
  const auto id = rig.identify<nvme_id_ns>(NVME_IDENTIFY_CNS_NS, 1);
  CHECK((id.nsfeat & NVME_NS_FEAT_NATOMIC) != 0);
  CHECK(from_le(id.nawun) == nawun);
  CHECK(from_le(id.nawupf) == 0);  // one block: what a lost connection leaves
  CHECK(from_le(id.nacwu) == nawun);
  CHECK(from_le(id.nabsn) == 0);
  CHECK(from_le(id.nabspf) == 0);
  CHECK(from_le(id.nabo) == 0);
  const auto controller = rig.identify<nvme_id_ctrl>(NVME_IDENTIFY_CNS_CTRL);
  CHECK(from_le(controller.awun) == 0);
  CHECK(from_le(controller.awupf) == 0);
}

TEST_CASE("NGUID and UUID are the same bytes in the descriptor list and in Identify Namespace") {
  AdminRig rig;
  const auto id = rig.identify<nvme_id_ns>(NVME_IDENTIFY_CNS_NS, 1);
  const auto list = rig.identify<std::array<std::uint8_t, 4096>>(NVME_IDENTIFY_CNS_NS_DESC_LIST, 1);
  CHECK(list[0] == NVME_NIDT_NGUID);
  CHECK(list[1] == 16);
  CHECK(std::equal(&list[4], &list[20], id.nguid));
  CHECK(list[20] == NVME_NIDT_UUID);
  CHECK(list[21] == 16);
  CHECK(std::equal(&list[24], &list[40], id.nguid));
  CHECK(list[40] == 0);
}

TEST_CASE("The list of namespaces begins behind the one that was asked for") {
  AdminRig rig;
  using List = std::array<std::uint32_t, 1024>;
  CHECK(from_le(rig.identify<List>(NVME_IDENTIFY_CNS_NS_ACTIVE_LIST, 0)[0]) == 1);
  CHECK(from_le(rig.identify<List>(NVME_IDENTIFY_CNS_NS_ACTIVE_LIST, 0)[1]) == 0);
  CHECK(from_le(rig.identify<List>(NVME_IDENTIFY_CNS_NS_ACTIVE_LIST, 1)[0]) == 0);
  CHECK(rig.identify_code(NVME_IDENTIFY_CNS_NS_ACTIVE_LIST, 0xfffffffe) == StatusCode::invalid_namespace);
}

TEST_CASE("Identify refuses what is not there") {
  AdminRig rig;
  CHECK(rig.identify_code(NVME_IDENTIFY_CNS_NS, 0) == StatusCode::invalid_namespace);
  CHECK(rig.identify_code(NVME_IDENTIFY_CNS_NS, 4097) == StatusCode::invalid_namespace);
  CHECK(rig.identify_code(NVME_IDENTIFY_CNS_NS, 0xffffffff) == StatusCode::invalid_namespace);
  CHECK(rig.identify_code(NVME_IDENTIFY_CNS_NS_DESC_LIST, 2) == StatusCode::invalid_namespace);
  for (const auto cns : std::initializer_list<std::uint8_t>{0x04, 0x08, 0x12, 0x13, 0x1c, 0xff})
    CHECK(rig.identify_code(cns) == StatusCode::invalid_field);
  CHECK(rig.identify_code(NVME_IDENTIFY_CNS_CSI_CTRL, 0, 0) == StatusCode::success);
  CHECK(rig.identify_code(NVME_IDENTIFY_CNS_CSI_CTRL, 0, 2) == StatusCode::invalid_field);
  auto to = rig.memory(rig.admin, 8192);
  for (const std::uint32_t length : {0u, 512u, 4095u, 8192u})
    CHECK(rig.transfer(rig.admin, AdminRig::identify_entry(NVME_IDENTIFY_CNS_CTRL, 0), *to, length).code() ==
          StatusCode::sgl_invalid_length);
}

TEST_CASE("The discovery log names every subsystem that the host may connect to, and where") {
  TargetRig rig;
  const auto association = rig.associate(std::string(nvme::kDiscoveryNqn));
  const auto id =
      rig.read_structure<nvme_id_ctrl>(*association.admin, AdminRig::identify_entry(NVME_IDENTIFY_CNS_CTRL, 0));
  CHECK(id.cntrltype == 2);
  const auto log = rig.read_structure<std::array<std::byte, 4096>>(
      *association.admin, AdminRig::log_entry(NVME_LOG_LID_DISCOVER, 4096, 0, 0));
  CHECK(log[8] == std::byte{1});  // NUMREC
  nvmf_disc_log_entry entry;
  std::memcpy(&entry, &log[1024], sizeof entry);
  CHECK(nvme::get_padded(entry.subnqn) == kSubsystem);
  CHECK(nvme::get_padded(entry.traddr) == "target");
  CHECK(nvme::get_padded(entry.trsvcid) == "4420");
  CHECK(entry.subtype == NVME_NQN_NVME);
  CHECK(from_le(entry.cntlid) == 0xffff);
  CHECK(from_le(entry.asqsz) == 32);
  CHECK(log[2048] == std::byte{0});
  auto to = rig.memory(*association.admin, 4096);
  CHECK(rig.transfer(*association.admin, AdminRig::log_entry(NVME_LOG_LID_DISCOVER, 4096, 1 << 20, 0), *to, 4096)
            .status()
            .ok());
}

TEST_CASE("The discovery log says nothing of subsystems that are not for this host") {
  TargetRig rig({.allow_any_host = false, .allowed_hosts = {{.nqn = nqn("nqn.2024-01.example:friend")}}});
  const auto association = rig.associate(std::string(nvme::kDiscoveryNqn));
  const auto header = rig.read_structure<std::array<std::byte, 1024>>(
      *association.admin, AdminRig::log_entry(NVME_LOG_LID_DISCOVER, 1024, 0, 0));
  CHECK(header[8] == std::byte{0});
}

TEST_CASE("A discovery controller serves no namespaces and grants no I/O queues") {
  TargetRig rig;
  const auto association = rig.associate(std::string(nvme::kDiscoveryNqn));
  auto to = rig.memory(*association.admin, 4096);
  CHECK(rig.transfer(*association.admin, AdminRig::identify_entry(NVME_IDENTIFY_CNS_NS, 1), *to, 4096).code() ==
        StatusCode::invalid_field);
  RawQueue& io = rig.queue_up(Qid(1), 32, association.cntlid);
  auto request = rig.connect_request(Qid(1), association.cntlid);
  request.subsystem_nqn = nvme::Nqn::discovery();
  CHECK(rig.connect(io, request).code() == StatusCode::connect_invalid_parameters);
}

TEST_CASE("Features that hosts set are there, and others are not") {
  AdminRig rig;
  CHECK(rig.set_feature(NVME_FEAT_FID_KATO, 7000).status().ok());
  CHECK(rig.get_feature(NVME_FEAT_FID_KATO).cqe.dw0() == 7000);
  CHECK(rig.set_feature(NVME_FEAT_FID_ASYNC_EVENT, 0x1f).status().ok());
  CHECK(rig.get_feature(NVME_FEAT_FID_ASYNC_EVENT).cqe.dw0() == 0x1f);
  CHECK(rig.set_feature(NVME_FEAT_FID_ASYNC_EVENT, 0x11f).status().ok());
  CHECK(rig.get_feature(NVME_FEAT_FID_ASYNC_EVENT).cqe.dw0() == 0x11f);
  CHECK(rig.set_feature(NVME_FEAT_FID_ASYNC_EVENT, 0x200).code() == StatusCode::invalid_field);
  CHECK(rig.get_feature(NVME_FEAT_FID_NUM_QUEUES).cqe.dw0() == 0x003f003f);
  CHECK(rig.set_feature(NVME_FEAT_FID_NUM_QUEUES, 0x0000ffff).code() == StatusCode::invalid_field);
  for (const auto fid : std::initializer_list<std::uint8_t>{0x01, 0x04, 0x0c, 0x16, 0x80, 0xff}) {
    CHECK(rig.get_feature(fid).code() == StatusCode::invalid_field);
    CHECK(rig.set_feature(fid, 0).code() == StatusCode::invalid_field);
  }
  // a RAM store has no volatile write cache to switch off
  CHECK(rig.get_feature(NVME_FEAT_FID_VOLATILE_WC).code() == StatusCode::invalid_field);
  CHECK(rig.set_feature(NVME_FEAT_FID_HOST_ID, 1).code() == StatusCode::command_sequence_error);
  auto save = nvme::encode_set_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_KATO, .save = nvme::SaveFeature::yes});
  CHECK(rig.execute(rig.admin, save).code() == StatusCode::feature_not_saveable);
}

TEST_CASE("Features have a current, a default and a saved value, and say what can be done with them") {
  Gate gate;  // and a write cache
  gate.open = true;
  AdminRig rig({.gate = &gate});
  auto to = rig.memory(rig.admin, 16);
  const auto get = [&](std::uint8_t fid, nvme::FeatureSelect select, std::uint32_t length) {
    const auto sqe = nvme::encode_get_features({.nsid = Nsid(0), .fid = fid, .select = select, .value = 1});
    const auto response = rig.transfer(rig.admin, sqe, *to, length);
    rig.require_ok(response);
    return response.cqe.dw0();
  };
  using enum nvme::FeatureSelect;
  struct Feature {
    std::uint8_t fid;
    std::uint32_t set, current, default_value;
  };
  const Feature features[] = {{NVME_FEAT_FID_VOLATILE_WC, 0, 0, 1},
                              {NVME_FEAT_FID_NUM_QUEUES, 0x00020003, 0x00020002, 0x003f003f},
                              {NVME_FEAT_FID_ASYNC_EVENT, 0x11f, 0x11f, 0},
                              {NVME_FEAT_FID_KATO, 5000, 5000, 0}};
  for (const Feature& feature : features) {
    INFO(int{feature.fid});
    REQUIRE(rig.set_feature(feature.fid, feature.set).status().ok());
    CHECK(get(feature.fid, current, 0) == feature.current);
    CHECK(get(feature.fid, default_value, 0) == feature.default_value);
    CHECK(get(feature.fid, saved, 0) == feature.default_value);  // nothing was ever saved
    CHECK(get(feature.fid, supported, 0) == 4);                  // changeable
  }
  CHECK(get(NVME_FEAT_FID_TIMESTAMP, default_value, 8) == 0);
  CHECK(get(NVME_FEAT_FID_TIMESTAMP, supported, 0) == 4);
  CHECK(get(NVME_FEAT_FID_TIMESTAMP, supported, 8) == 4);  // nvme-cli sends a buffer along
  CHECK(get(NVME_FEAT_FID_HOST_ID, saved, 16) == 0);
  CHECK(get(NVME_FEAT_FID_HOST_ID, supported, 16) == 0);  // Connect's for good
  for (const auto select : {current, default_value, saved, supported}) {
    const auto unknown = nvme::encode_get_features({.nsid = Nsid(0), .fid = 0x04, .select = select});
    CHECK(rig.execute(rig.admin, unknown).code() == StatusCode::invalid_field);
  }
  auto reserved = nvme::encode_get_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_KATO});
  reserved.cdw10 = reserved.cdw10.get() | 4u << 8;
  CHECK(rig.execute(rig.admin, reserved).code() == StatusCode::invalid_field);
}

TEST_CASE("The host identifier is Connect's") {
  AdminRig rig;
  auto to = rig.memory(rig.admin, 16);
  const auto get = [&](std::uint32_t extended) {
    return rig.transfer(rig.admin,
                        nvme::encode_get_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_HOST_ID, .value = extended}),
                        *to, 16);
  };
  CHECK(get(1).status().ok());
  CHECK(to->bytes()[0] == std::byte{1});
  CHECK(to->bytes()[2] == std::byte{3});
  CHECK(get(0).code() == StatusCode::invalid_field);
}

TEST_CASE("The timestamp runs on from what the host set") {
  AdminRig rig;
  auto data = rig.memory(rig.admin, 8);
  const nvme::Le64 wanted(std::uint64_t{1'000'000});
  std::memcpy(data->bytes().data(), &wanted, 8);
  REQUIRE(
      rig.transfer(rig.admin, nvme::encode_set_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_TIMESTAMP}), *data, 8)
          .status()
          .ok());
  rig.run_for(std::chrono::milliseconds(500));
  REQUIRE(
      rig.transfer(rig.admin, nvme::encode_get_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_TIMESTAMP}), *data, 8)
          .status()
          .ok());
  const std::uint64_t now = nvme::read_wire<nvme::Le64>(data->bytes())->get();
  CHECK((now >> 48) == 2);  // set by the host
  CHECK((now & 0xffffffffffff) >= 1'000'500);
  CHECK((now & 0xffffffffffff) < 1'000'600);
}

TEST_CASE("Asynchronous Event Requests are held, four of them, and Abort ends one") {
  AdminRig rig;
  std::vector<std::uint16_t> held;
  for (int i = 0; i < 4; ++i)
    held.push_back(rig.admin.submit(nvme::encode_plain(AdminOpcode::async_event_request)));
  CHECK(rig.execute(rig.admin, nvme::encode_plain(AdminOpcode::async_event_request)).code() ==
        StatusCode::async_event_limit_exceeded);
  CHECK(rig.admin.responses.empty());
  const auto abort = [&](std::uint16_t qid, std::uint16_t cid) {
    return rig.execute(rig.admin, nvme::encode_abort({.qid = Qid(qid), .cid = Cid(cid)})).cqe.dw0();
  };
  CHECK(abort(0, 0x7777) == 1);
  CHECK(abort(1, held[1]) == 1);
  CHECK(abort(0, held[1]) == 0);
  const auto aborted = rig.admin.take(held[1]);
  REQUIRE(aborted);
  CHECK(aborted->code() == StatusCode::abort_requested);
  CHECK(abort(0, held[1]) == 1);
  held[1] = rig.admin.submit(nvme::encode_plain(AdminOpcode::async_event_request));
  CHECK(rig.execute(rig.admin, nvme::encode_plain(AdminOpcode::async_event_request)).code() ==
        StatusCode::async_event_limit_exceeded);
}

TEST_CASE("A silent host loses its controller after the keep-alive timeout, and nobody else") {
  TargetRig rig;
  const auto association = rig.associate(kSubsystem, std::chrono::seconds(2));
  RawQueue& io = rig.io_queue(association, Qid(1));
  const auto patient = rig.associate();  // no keep-alive
  rig.run_for(std::chrono::milliseconds(1900));
  CHECK_FALSE(association.admin->ended());
  rig.expect([&] { return association.admin->ended() && io.ended(); }, "both queues are closed");
  CHECK(rig.logger.said("keep alive"));
  CHECK_FALSE(patient.admin->ended());
}

TEST_CASE("Keep Alive keeps the controller, and so does any other command on any queue") {
  TargetRig rig;
  const auto association = rig.associate(kSubsystem, std::chrono::seconds(1));
  RawQueue& io = rig.io_queue(association, Qid(1));
  for (int i = 0; i < 20; ++i) {
    rig.run_for(std::chrono::milliseconds(900));
    const bool admin = i % 2 == 0;
    CHECK(rig.execute(admin ? *association.admin : io,
                      admin ? nvme::encode_plain(AdminOpcode::keep_alive) : nvme::encode_flush(Nsid(1)))
              .status()
              .ok());
  }
  CHECK_FALSE(association.admin->ended());
}

TEST_CASE("Keep Alive is refused where it is off, and a huge timeout is a long one") {
  TargetRig rig;
  const auto association = rig.associate();
  const auto keep_alive = nvme::encode_plain(AdminOpcode::keep_alive);
  CHECK(rig.execute(*association.admin, keep_alive).code() == StatusCode::keep_alive_invalid);
  const auto huge = nvme::encode_set_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_KATO, .value = 0xffffffff});
  REQUIRE(rig.execute(*association.admin, huge).status().ok());
  rig.run_for(std::chrono::hours(1));
  CHECK(rig.execute(*association.admin, keep_alive).status().ok());
}

TEST_CASE("Two namespaces of one identity are refused") {
  TargetRig rig;
  // the rig has started already; a target of its own
  auto target = target::Target::open({.clock = rig.network.clock(),
                                      .logger = rig.logger,
                                      .random = rig.random,
                                      .given_reactors = {rig.target_reactors[0].get()}});
  REQUIRE(target.has_value());
  REQUIRE((*target)->add_subsystem(nqn("nqn.2024-01.example:a"), {}).has_value());
  REQUIRE((*target)->add_subsystem(nqn("nqn.2024-01.example:b"), {}).has_value());
  CHECK((*target)->add_subsystem(nqn("nqn.2024-01.example:b"), {}).error().kind() == ErrorKind::in_use);
  CHECK((*target)->add_subsystem(nvme::Nqn::discovery(), {}).error().kind() == ErrorKind::invalid_argument);
  const auto add = [&](const char* subsystem, std::uint64_t seed, std::optional<Nsid> nsid = {}) {
    Random same(seed);
    return (*target)->add_namespace(nqn(subsystem), make_ram_store(rig, same), nsid);
  };
  CHECK(add("nqn.2024-01.example:a", 7).value() == Nsid(1));
  CHECK(add("nqn.2024-01.example:b", 7).error().kind() == ErrorKind::in_use);
  CHECK(add("nqn.2024-01.example:a", 8, Nsid(1)).error().kind() == ErrorKind::in_use);
  CHECK(add("nqn.2024-01.example:a", 8, Nsid(4097)).error().kind() == ErrorKind::invalid_argument);
  CHECK(add("nqn.2024-01.example:a", 8, Nsid(0)).error().kind() == ErrorKind::invalid_argument);
  CHECK(add("nqn.2024-01.example:c", 8).error().kind() == ErrorKind::not_found);
  CHECK(add("nqn.2024-01.example:a", 8, Nsid(5)).value() == Nsid(5));
  CHECK(add("nqn.2024-01.example:a", 9).value() == Nsid(2));
}
