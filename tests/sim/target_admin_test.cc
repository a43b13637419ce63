// Identify, logs, features, events. Values: Base 2.0, 5.17, and what Linux and SPDK hosts insist on.

#include <catch2/catch.hpp>

#include "common/nvme/text.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AdminOpcode;
using nvme::from_le;
using nvme::StatusCode;

namespace {

struct AdminRig : TargetRig {
  explicit AdminRig(RigOptions options = {}, const std::string& subsystem = kSubsystem)
      : TargetRig(std::move(options)), association(associate(subsystem)), admin(*association.admin) {}
  template <typename T>
  T identify(std::uint8_t cns, std::uint32_t nsid = 0) {
    return read_structure<T>(admin, identify_entry(cns, nsid));
  }
  StatusCode identify_code(std::uint8_t cns, std::uint32_t nsid = 0, std::uint8_t command_set = 0) {
    auto to = memory(admin, 4096);
    return transfer(admin, identify_entry(cns, nsid, command_set), *to, 4096).code();
  }
  static nvme::SubmissionQueueEntry identify_entry(std::uint8_t cns, std::uint32_t nsid, std::uint8_t command_set = 0) {
    return nvme::encode_identify({.nsid = Nsid(nsid), .cns = cns, .cntlid = Cntlid(0), .command_set = command_set});
  }
  static nvme::SubmissionQueueEntry log_entry(std::uint8_t lid, std::uint32_t length, std::uint64_t offset = 0,
                                              std::uint32_t nsid = 0xffffffff) {
    return nvme::encode_get_log_page(
        {.nsid = Nsid(nsid), .lid = lid, .offset = Bytes(offset), .length = Bytes(length)});
  }
  template <typename T>
  T log(std::uint8_t lid) {
    return read_structure<T>(admin, log_entry(lid, sizeof(T)));
  }
  Response log_response(const nvme::SubmissionQueueEntry& sqe, std::uint32_t length) {
    auto to = memory(admin, length);
    return transfer(admin, sqe, *to, length);
  }
  Response get_feature(std::uint8_t fid, std::uint32_t value = 0) {
    return execute(admin, nvme::encode_get_features({.nsid = Nsid(0), .fid = fid, .value = value}));
  }
  Response set_feature(std::uint8_t fid, std::uint32_t value) {
    return execute(admin, nvme::encode_set_features({.nsid = Nsid(0), .fid = fid, .value = value}));
  }
  Association association;
  RawQueue& admin;
};

}  // namespace

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
  CHECK(from_le(id.oncs) == (1u << 0 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 6 | 1u << 7 | 1u << 8));
  CHECK(from_le(id.ocfs) == 1);
  CHECK(from_le(id.sgls) == (1u << 20 | 1u << 2 | 1u));
  CHECK(from_le(id.ioccsz) == (64 + 4096) / 16);
  CHECK(from_le(id.iorcsz) == 1);
  CHECK(from_le(id.icdoff) == 0);
  CHECK(id.msdbd == 1);
  CHECK((from_le(id.ctratt) & NVME_CTRL_CTRATT_TBKAS) != 0);
  CHECK(id.oacs == 0);
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

TEST_CASE("The error log holds the last failures, newest first") {
  AdminRig rig;
  rig.execute(rig.admin, nvme::encode_plain(AdminOpcode::format_nvm));
  auto sqe = nvme::encode_plain(AdminOpcode::sanitize);
  sqe.cid = std::uint16_t{0x4242};
  rig.execute(rig.admin, sqe);
  const auto log = rig.log<std::array<nvme_error_log_page, 64>>(NVME_LOG_LID_ERROR);
  CHECK(from_le(log[0].error_count) == 2);
  CHECK(from_le(log[0].cmdid) == 0x4242);
  CHECK(nvme::Status::from_completion(from_le(log[0].status_field)).code() == StatusCode::invalid_opcode);
  CHECK(from_le(log[1].error_count) == 1);
  CHECK(from_le(log[2].error_count) == 0);
}

TEST_CASE("The error log says which byte of the entry was wrong, which block, and which queue") {
  AdminRig rig({.store = "error:read,lba=77,ram:size=16MiB,block=4096"});
  RawQueue& io = rig.io_queue(rig.association, Qid(1));
  auto to = rig.memory(rig.admin, 4096);
  auto io_to = rig.memory(io, 4096);
  struct Mistake {
    nvme::SubmissionQueueEntry sqe;
    std::uint16_t location;
    std::uint64_t lba = 0;
    bool on_io = true;
    std::uint32_t length = 4096;
  };
  const auto read = [](std::uint64_t lba, std::uint64_t count = 1) {
    return nvme::encode_block_command(nvme::IoOpcode::read,
                                      {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(count)});
  };
  const auto with = [](nvme::SubmissionQueueEntry sqe, auto change) {
    change(sqe);
    return sqe;
  };
  const Mistake mistakes[] = {
      {with(read(0), [](auto& sqe) { sqe.opcode = 0x04; }), 0},
      {with(read(0), [](auto& sqe) { sqe.flags = 0x41; }), 1},
      {with(read(0), [](auto& sqe) { sqe.flags = 0x44; }), 2 << 8 | 1},
      {with(read(0), [](auto& sqe) { sqe.flags = 0; }), 6 << 8 | 1},
      {with(read(0), [](auto& sqe) { sqe.nsid = 9u; }), 4},
      {read(0x123456), 40, 0x123456},
      {read(0, 300), 48},
      {read(0), 32, 0, true, 512},
      {read(77), 0xffff, 77},  // the medium: no parameter is wrong
      {AdminRig::identify_entry(0x55, 0), 40, 0, false},
      {AdminRig::log_entry(0x77, 4096), 40, 0, false},
      {nvme::encode_get_features({.nsid = Nsid(0), .fid = 0x99}), 40, 0, false},
      {nvme::encode_set_features({.nsid = Nsid(0), .fid = 0x0b, .value = 1u << 20}), 44, 0, false, 0},
      {nvme::encode_set_features({.nsid = Nsid(0), .fid = 0x0f, .save = nvme::SaveFeature::yes}), 7 << 8 | 43, 0,
       false},
  };
  std::uint64_t count = 0;
  for (const Mistake& mistake : mistakes) {
    INFO("mistake " << count);
    const auto response =
        rig.transfer(mistake.on_io ? io : rig.admin, mistake.sqe, mistake.on_io ? *io_to : *to, mistake.length);
    CHECK_FALSE(response.status().ok());
    const auto log = rig.log<std::array<nvme_error_log_page, 64>>(NVME_LOG_LID_ERROR);
    CHECK(from_le(log[0].error_count) == ++count);
    CHECK(from_le(log[0].parm_error_location) == mistake.location);
    CHECK(from_le(log[0].lba) == mistake.lba);
    CHECK(from_le(log[0].sqid) == (mistake.on_io ? 1 : 0));
    CHECK(from_le(log[0].cmdid) == response.cqe.cid.get());
    CHECK(nvme::Status::from_completion(from_le(log[0].status_field)) == response.status());
  }
}

TEST_CASE(
    "The SMART log counts Compare and Verify as reads, Copy as a write, and only the medium's errors as the medium's") {
  AdminRig rig({.store = "error:read,lba=77,ram:size=16MiB,block=4096"});
  RawQueue& io = rig.io_queue(rig.association, Qid(1));
  auto data = rig.memory(io, 1 << 20);
  const auto send = [&](nvme::IoOpcode opcode, std::uint64_t lba, std::uint64_t count) {
    const auto sqe = nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(count)});
    return rig.transfer(io, sqe, *data, static_cast<std::uint32_t>(count * 4096)).status().ok();
  };
  CHECK(send(nvme::IoOpcode::compare, 100, 256));
  CHECK(send(nvme::IoOpcode::verify, 100, 256));
  CHECK_FALSE(send(nvme::IoOpcode::verify, 77, 1));
  CHECK_FALSE(send(nvme::IoOpcode::read, 1 << 20, 1));
  const auto range = nvme::encode_copy_range({Lba(100), Blocks(255)});
  std::memcpy(data->bytes().data(), &range, sizeof range);
  CHECK(
      rig.transfer(io, nvme::encode_copy({.nsid = Nsid(1), .first = Lba(500), .ranges = 1}), *data, 32).status().ok());
  CHECK_FALSE(send(nvme::IoOpcode::compare, 100, 1));  // zeroes, and not what is in `data` now
  const auto log = rig.log<nvme_smart_log>(NVME_LOG_LID_SMART);
  CHECK(log.host_reads[0] == 2);
  CHECK(log.data_units_read[0] == 5);  // 2 MiB: 4096 units of 512, in thousands, rounded up
  CHECK(log.host_writes[0] == 1);
  CHECK(log.data_units_written[0] == 3);
  CHECK(log.media_errors[0] == 1);
  CHECK(log.num_err_log_entries[0] == 3);
}

TEST_CASE("The SMART log counts what was really moved") {
  AdminRig rig({.store = "ram:size=16MiB,block=4096"});
  RawQueue& io = rig.io_queue(rig.association, Qid(1));
  auto to = rig.memory(io, 1 << 20);
  const auto sqe =
      nvme::encode_block_command(nvme::IoOpcode::read, {.nsid = Nsid(1), .first = Lba(0), .count = Blocks(256)});
  REQUIRE(rig.transfer(io, sqe, *to, 1 << 20).status().ok());
  const auto log = rig.log<nvme_smart_log>(NVME_LOG_LID_SMART);
  CHECK(log.host_reads[0] == 1);
  CHECK(log.data_units_read[0] == 3);  // 2048 units of 512, in thousands, rounded up
  CHECK(log.host_writes[0] == 0);
  CHECK(rig.log_response(AdminRig::log_entry(NVME_LOG_LID_SMART, 512, 0, 1), 512).status().ok());
  CHECK(rig.log_response(AdminRig::log_entry(NVME_LOG_LID_SMART, 512, 0, 9), 512).code() ==
        StatusCode::invalid_namespace);
}

TEST_CASE("The effects log lists the commands that are served") {
  AdminRig rig;
  const auto log = rig.log<nvme_cmd_effects_log>(NVME_LOG_LID_CMD_EFFECTS);
  CHECK(from_le(log.acs[0x06]) == 1);
  CHECK(from_le(log.acs[0x80]) == 0);
  CHECK(from_le(log.iocs[0x01]) == 3);
  CHECK(from_le(log.iocs[0x02]) == 1);
  CHECK(from_le(log.iocs[0x04]) == 0);
  CHECK(from_le(log.iocs[0x05]) == 1);
  CHECK(from_le(log.iocs[0x0c]) == 1);
  CHECK(from_le(log.iocs[0x19]) == 3);
}

TEST_CASE("Log pages are read in pieces, with zeroes behind their end") {
  AdminRig rig;
  auto to = rig.memory(rig.admin, 1024);
  std::fill(to->bytes().begin(), to->bytes().end(), std::byte{0xaa});
  REQUIRE(rig.transfer(rig.admin, AdminRig::log_entry(NVME_LOG_LID_FW_SLOT, 1024, 8), *to, 1024).status().ok());
  CHECK(static_cast<char>(to->bytes()[0]) == '0');  // "0.1.0", the revision
  CHECK(to->bytes()[1023] == std::byte{0});
  CHECK(rig.log_response(AdminRig::log_entry(NVME_LOG_LID_FW_SLOT, 4, 516), 4).code() == StatusCode::invalid_field);
  CHECK(rig.log_response(AdminRig::log_entry(NVME_LOG_LID_FW_SLOT, 4, ~std::uint64_t{3}), 4).code() ==
        StatusCode::invalid_field);
}

TEST_CASE("Log pages that do not exist, lie askew or are too long are refused") {
  AdminRig rig;
  CHECK(rig.log_response(AdminRig::log_entry(0x77, 512), 512).code() == StatusCode::invalid_log_page);
  CHECK(rig.log_response(AdminRig::log_entry(NVME_LOG_LID_DISCOVER, 512), 512).code() == StatusCode::invalid_log_page);
  auto askew = AdminRig::log_entry(NVME_LOG_LID_ERROR, 512);
  askew.cdw12 = std::uint32_t{2};
  CHECK(rig.log_response(askew, 512).code() == StatusCode::invalid_field);
  auto huge = AdminRig::log_entry(NVME_LOG_LID_ERROR, 4);
  huge.cdw10 = huge.cdw10.get() | 0xffff0000u;
  huge.cdw11 = std::uint32_t{0xffff};
  CHECK(rig.log_response(huge, 4).code() == StatusCode::invalid_field);
  CHECK(rig.log_response(AdminRig::log_entry(NVME_LOG_LID_ERROR, 512), 516).code() == StatusCode::sgl_invalid_length);
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
  TargetRig rig({.allow_any_host = false, .allowed_hosts = {nqn("nqn.2024-01.example:friend")}});
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
  for (const auto fid : std::initializer_list<std::uint8_t>{0x01, 0x04, 0x0c, 0x16, 0x82, 0xff}) {
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
