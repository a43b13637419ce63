// Log pages of I/O controllers: errors, health, effects, and how any of them is read.

#include <catch2/catch.hpp>

#include "tests/sim/admin_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AdminOpcode;
using nvme::from_le;
using nvme::StatusCode;

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
  CHECK(from_le(log.acs[0x80]) == 0x10007);  // Format NVM: alone in its namespace, which it changes
  CHECK(from_le(log.acs[0x84]) == 0);
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
