// Properties and admin commands with values that no specification has.

#include <algorithm>

#include "common/nvme/recovery.h"
#include "target/opcodes.h"
#include "tests/wire/hostile_host.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using nvme::AdminOpcode;
using nvme::StatusCode;

namespace {

struct Intruder : HostileRig {
  explicit Intruder(RigOptions options = {}) : HostileRig(std::move(options)) {
    come_in();
    mine = memory(*admin, 64 * kKiB);
  }
  ~Intruder() { mine.reset(); }
  StatusCode ask(nvme::SubmissionQueueEntry sqe, std::uint32_t length = 0) {
    if (length != 0) sqe.sgl = mine->keyed(length);
    return code(*admin, sqe);
  }
  StatusCode set(std::uint32_t configuration) {
    return code(*admin, nvme::encode_property_set({.offset = 0x14, .value = configuration}));
  }
  nvme::ControllerStatus status() { return {static_cast<std::uint32_t>(get_property(*admin, nvme::Property::status))}; }
  /// Waits for the end of what a reset has closed.
  void reset() {
    CHECK(set(0) == StatusCode::success);
    expect([&] { return !status().ready() && !status().fatal(); }, "the reset is over");
  }
  std::unique_ptr<HostMemory> mine;
};

nvme::SubmissionQueueEntry with_size_code(nvme::SubmissionQueueEntry sqe, unsigned code) {
  auto command = std::bit_cast<nvme::PropertyCommand>(sqe);
  command.attributes = static_cast<std::uint8_t>(code);
  return std::bit_cast<nvme::SubmissionQueueEntry>(command);
}

constexpr std::array kLogs = {0x01, 0x02, 0x03, 0x04, 0x05, 0x0c, int{nvme::kRecoveryLogId}};

}  // namespace

// ---- properties

TEST_CASE("Properties that there are not, or not of that size, are Invalid Field, to read and to write") {
  Intruder intruder;
  using enum nvme::PropertySize;
  for (const std::uint32_t offset : DoubleWords{0x01, 0x04, 0x0c, 0x10, 0x18, 0x20, 0x24, 0x28, 0x30, 0x68, 0x1000,
                                                0x7fffffff, 0xfffffff8, 0xffffffff})
    for (const auto size : {four_bytes, eight_bytes}) {
      CHECK(intruder.ask(nvme::encode_property_get(offset, size)) == StatusCode::invalid_field);
      CHECK(intruder.ask(nvme::encode_property_set({.offset = offset, .size = size, .value = 1})) ==
            StatusCode::invalid_field);
    }
  CHECK(intruder.ask(nvme::encode_property_get(0x00, four_bytes)) == StatusCode::invalid_field);
  CHECK(intruder.ask(nvme::encode_property_get(0x14, eight_bytes)) == StatusCode::invalid_field);
  CHECK(intruder.ask(nvme::encode_property_get(0x1c, eight_bytes)) == StatusCode::invalid_field);
  for (unsigned code = 2; code < 8; ++code)
    CHECK(intruder.ask(with_size_code(nvme::encode_property_get(0x14, four_bytes), code)) == StatusCode::invalid_field);
}

TEST_CASE("What can only be read cannot be written") {
  Intruder intruder;
  using enum nvme::PropertySize;
  const auto before = intruder.get_property(*intruder.admin, nvme::Property::capabilities);
  CHECK(intruder.ask(nvme::encode_property_set({.offset = 0, .size = eight_bytes, .value = 0})) ==
        StatusCode::invalid_field);
  CHECK(intruder.ask(nvme::encode_property_set({.offset = 0x08, .value = 0})) == StatusCode::invalid_field);
  CHECK(intruder.ask(nvme::encode_property_set({.offset = 0x1c, .value = 0})) == StatusCode::invalid_field);
  CHECK(intruder.get_property(*intruder.admin, nvme::Property::capabilities) == before);
  intruder.expect_alive(*intruder.queue);
}

TEST_CASE(
    "A configuration with a page size, command set, arbitration or entry sizes of its own makes the controller fatal") {
  Intruder intruder;
  const std::uint32_t good = TargetRig::enabled().raw;
  for (const std::uint32_t bad :
       {good | 1u << 7, good | 15u << 7, good | 1u << 4, good | 7u << 4, good | 1u << 11, good | 7u << 11,
        (good & ~(15u << 16)) | 7u << 16, good & ~(15u << 20), 0xffffffffu}) {
    intruder.reset();
    CHECK(intruder.set(bad) == StatusCode::success);
    CHECK(intruder.status().fatal());
    CHECK_FALSE(intruder.status().ready());
    CHECK(intruder.ask(nvme::encode_plain(AdminOpcode::keep_alive)) == StatusCode::command_sequence_error);
  }
  intruder.reset();
  CHECK(intruder.set(good) == StatusCode::success);
  CHECK(intruder.status().ready());
}

TEST_CASE("A storm of enabling and disabling, with I/O queues connecting in between, ends when the host does") {
  Intruder intruder;
  for (int i = 0; i < 60; ++i) {
    intruder.admin->submit(nvme::encode_property_set({.offset = 0x14, .value = 0}));
    intruder.admin->submit(nvme::encode_property_set({.offset = 0x14, .value = TargetRig::enabled().raw}));
    if (i % 6 == 0) intruder.host->connect(intruder.address(), Qid(2), 16, intruder.association.cntlid);
    intruder.run_for(20us);
  }
  intruder.expect_closed(*intruder.queue);
  intruder.admin->responses.clear();
  intruder.expect_alive(*intruder.admin);
}

TEST_CASE("Random configurations by the hundred leave a controller that a reset makes good") {
  Intruder intruder;
  Random random(5);
  for (int i = 0; i < 300; ++i)
    CHECK(intruder.set(static_cast<std::uint32_t>(random())) == StatusCode::success);
  intruder.reset();
  CHECK(intruder.set(TargetRig::enabled().raw) == StatusCode::success);
  CHECK(intruder.status().ready());
}

TEST_CASE("A shutdown, normal, abrupt or reserved, with commands in flight answers them all") {
  for (const unsigned kind : {1u, 2u, 3u}) {
    Intruder intruder;
    auto blocks = intruder.memory(*intruder.queue, 15 * HostileRig::kBlock);
    for (std::uint32_t i = 0; i < 15; ++i) {
      auto sqe = HostileRig::entry(i % 2 == 0 ? nvme::IoOpcode::write : nvme::IoOpcode::read, i);
      sqe.sgl = blocks->keyed(HostileRig::kBlock, i * HostileRig::kBlock);
      intruder.queue->submit(sqe);
    }
    CHECK(intruder.set(TargetRig::enabled().raw | kind << 14) == StatusCode::success);
    CHECK(intruder.status().shutdown() == nvme::ShutdownStatus::complete);
    intruder.expect([&] { return intruder.queue->responses.size() == 15; }, "all are answered");
  }
}

TEST_CASE("A reset with commands in flight closes their queues and keeps nothing of them") {
  Intruder intruder;
  auto blocks = intruder.memory(*intruder.queue, 15 * HostileRig::kBlock);
  for (std::uint32_t i = 0; i < 15; ++i) {
    auto sqe = HostileRig::entry(i % 2 == 0 ? nvme::IoOpcode::write : nvme::IoOpcode::read, i);
    sqe.sgl = blocks->keyed(HostileRig::kBlock, i * HostileRig::kBlock);
    intruder.queue->submit(sqe);
  }
  intruder.reset();
  intruder.expect_closed(*intruder.queue);
}

// ---- admin commands

TEST_CASE("More event requests than the controller holds are answered, and a reset answers those that it holds") {
  Intruder intruder;
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 25; ++i)
      intruder.admin->submit(nvme::encode_plain(AdminOpcode::async_event_request));
    intruder.run_for(5ms);
  }
  CHECK(intruder.admin->responses.size() == 121);
  for (const auto& response : intruder.admin->responses)
    CHECK(response.code() == StatusCode::async_event_limit_exceeded);
  intruder.admin->responses.clear();
  intruder.admin->submit(nvme::encode_property_set({.offset = 0x14, .value = 0}));
  intruder.expect([&] { return intruder.admin->responses.size() == 5; }, "the four, and the reset");
}

TEST_CASE("A log page from behind its end, askew, or by an index is refused, of every log") {
  Intruder intruder;
  for (const int lid : kLogs) {
    auto sqe = nvme::encode_get_log_page({.lid = static_cast<std::uint8_t>(lid), .length = Bytes(4096)});
    for (const std::uint64_t offset : {std::uint64_t{1} << 30, std::uint64_t{1} << 63, ~std::uint64_t{0} - 3,
                                       std::uint64_t{0xfffffffc}, std::uint64_t{1}, std::uint64_t{2}}) {
      sqe.cdw12 = static_cast<std::uint32_t>(offset & 0xffffffff);
      sqe.cdw13 = static_cast<std::uint32_t>(offset >> 32);
      CHECK(intruder.ask(sqe, 4096) == StatusCode::invalid_field);
    }
    sqe.cdw12 = sqe.cdw13 = 0u;
    sqe.cdw14 = 1u << 23;  // OT
    CHECK(intruder.ask(sqe, 4096) == StatusCode::invalid_field);
  }
}

TEST_CASE("Lengths of log pages from one dword to 16 GiB are answered, and what is too long is refused") {
  Intruder intruder;
  for (const int lid : kLogs)
    for (const std::uint32_t numd : DoubleWords{0, 1, 1023, 16383, 0x40000, 0x3fffff, 0x7fffffff, 0xffffffff}) {
      auto sqe = nvme::encode_get_log_page({.lid = static_cast<std::uint8_t>(lid), .length = Bytes(4)});
      sqe.cdw10 = static_cast<std::uint32_t>(lid) | (numd & 0xffff) << 16;
      sqe.cdw11 = numd >> 16;
      const std::uint64_t bytes = (std::uint64_t{numd} + 1) * 4;
      const auto code = intruder.ask(sqe, static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes, 64 * kKiB)));
      if (bytes <= 64 * kKiB)
        CHECK(code == StatusCode::success);
      else
        CHECK((code == StatusCode::invalid_field || code == StatusCode::sgl_invalid_length));
    }
}

TEST_CASE("A log page whose data pointer is shorter or longer than its length moves nothing") {
  Intruder intruder;
  const auto sqe = nvme::encode_get_log_page({.lid = 0x02, .length = Bytes(512)});
  for (const std::uint32_t length : DoubleWords{4, 508, 516, 4096})
    CHECK(intruder.ask(sqe, length) == StatusCode::sgl_invalid_length);
  CHECK(intruder.ask(sqe) == StatusCode::sgl_invalid_length);
}

TEST_CASE("Every log page number is answered, with every command set and namespace") {
  Intruder intruder;
  for (unsigned lid = 0; lid < 256; ++lid)
    for (const std::uint32_t nsid : DoubleWords{0, 1, 2, 0xfffffffe, 0xffffffff})
      static_cast<void>(intruder.ask(
          nvme::encode_get_log_page({.nsid = Nsid(nsid), .lid = static_cast<std::uint8_t>(lid), .length = Bytes(64)}),
          64));
  intruder.expect_alive(*intruder.admin);
}

TEST_CASE("Identify of every structure, namespace and command set is answered with data or with what is wrong") {
  Intruder intruder;
  for (unsigned cns = 0; cns < 256; ++cns)
    for (const std::uint32_t nsid : DoubleWords{0, 1, 2, 4097, 0xfffffffe, 0xffffffff})
      for (const auto csi : std::initializer_list<std::uint8_t>{0, 1, 255}) {
        const auto code = intruder.ask(nvme::encode_identify({.nsid = Nsid(nsid),
                                                              .cns = static_cast<std::uint8_t>(cns),
                                                              .cntlid = Cntlid(0xffff),
                                                              .cns_specific = 0xffff,
                                                              .command_set = csi}),
                                       nvme::kIdentifyBytes);
        const bool known =
            code == StatusCode::success || code == StatusCode::invalid_field || code == StatusCode::invalid_namespace;
        CHECK(known);
      }
}

TEST_CASE("Identify into more or fewer bytes than it has is refused") {
  Intruder intruder;
  for (const std::uint32_t length : DoubleWords{1, 4092, 4095, 4097, 8192, 0xffffff})
    CHECK(intruder.ask(nvme::encode_identify({.cns = NVME_IDENTIFY_CNS_CTRL}), length) ==
          StatusCode::sgl_invalid_length);
  CHECK(intruder.ask(nvme::encode_identify({.cns = NVME_IDENTIFY_CNS_CTRL})) == StatusCode::sgl_invalid_length);
}

TEST_CASE(
    "Every feature, known or not, is answered to every way of asking, with data that fits and data that does not") {
  Intruder intruder;
  for (unsigned fid = 0; fid < 256; ++fid)
    for (const std::uint32_t length : DoubleWords{0, 8, 16, 4096}) {
      for (unsigned select = 0; select < 8; ++select) {
        auto sqe = nvme::encode_get_features({.fid = static_cast<std::uint8_t>(fid), .value = 1});
        sqe.cdw10 = fid | select << 8;
        const auto code = intruder.ask(sqe, length);
        if (select > 3) CHECK(code == StatusCode::invalid_field);
      }
      if (fid == NVME_FEAT_FID_KATO) continue;
      static_cast<void>(intruder.ask(
          nvme::encode_set_features({.fid = static_cast<std::uint8_t>(fid), .value = 0xffffffff, .value2 = 0xffffffff}),
          length));
    }
  intruder.expect_alive(*intruder.admin);
}

TEST_CASE("Features cannot be saved, and the host identifier cannot be changed") {
  Intruder intruder;
  CHECK(intruder.ask(nvme::encode_set_features({.fid = NVME_FEAT_FID_VOLATILE_WC, .save = nvme::SaveFeature::yes})) ==
        StatusCode::feature_not_saveable);
  CHECK(intruder.ask(nvme::encode_set_features({.fid = NVME_FEAT_FID_HOST_ID, .value = 1}), 16) ==
        StatusCode::command_sequence_error);
}

TEST_CASE("As many queues as a field can say are granted as many as there are, and none beyond") {
  HostileRig rig;
  rig.association = rig.associate();
  rig.admin = rig.association.admin;
  for (const std::uint32_t value : DoubleWords{0xffffffff, 0x0000ffff, 0xffff0000})
    CHECK(rig.code(*rig.admin, nvme::encode_set_features({.fid = NVME_FEAT_FID_NUM_QUEUES, .value = value})) ==
          StatusCode::invalid_field);
  const auto response =
      rig.execute(*rig.admin, nvme::encode_set_features({.fid = NVME_FEAT_FID_NUM_QUEUES, .value = 0xfffefffe}));
  CHECK(response.status().ok());
  CHECK(response.cqe.dw0() == 0x003f003f);
}

TEST_CASE("Abort of commands that are not there, of itself, and of other hosts' queues, aborts nothing") {
  Intruder intruder;
  for (const std::uint16_t qid : Words{0, 1, 2, 64, 65, 0xffff})
    for (const std::uint16_t cid : Words{0, 1, 0x7fff, 0xffff}) {
      auto sqe = nvme::encode_abort({.qid = Qid(qid), .cid = Cid(cid)});
      sqe.cid = cid != 0 ? cid : std::uint16_t{77};
      const auto response = intruder.execute(*intruder.admin, sqe);
      CHECK(response.status().ok());
      CHECK((response.cqe.dw0() & 1) == 1);  // not aborted
    }
}

TEST_CASE("Keep Alive of a controller that is disabled, or that has none, is refused") {
  Intruder intruder;
  CHECK(intruder.ask(nvme::encode_plain(AdminOpcode::keep_alive)) == StatusCode::keep_alive_invalid);
  intruder.reset();
  CHECK(intruder.ask(nvme::encode_plain(AdminOpcode::keep_alive)) == StatusCode::command_sequence_error);
}

TEST_CASE("A disabled controller carries out nothing but property commands") {
  Intruder intruder;
  intruder.reset();
  for (unsigned opcode = 0; opcode < 256; ++opcode) {
    if (!target::find_operation(target::QueueKind::admin, static_cast<std::uint8_t>(opcode))) continue;
    nvme::SubmissionQueueEntry sqe;
    sqe.opcode = static_cast<std::uint8_t>(opcode);
    CHECK(intruder.ask(sqe, 4096) == StatusCode::command_sequence_error);
  }
}

TEST_CASE("Format, namespace management, firmware, security and sanitize do nothing, with whatever namespace") {
  Intruder intruder;
  for (const auto opcode : {AdminOpcode::format_nvm, AdminOpcode::namespace_management,
                            AdminOpcode::namespace_attachment, AdminOpcode::firmware_commit,
                            AdminOpcode::firmware_download, AdminOpcode::security_send, AdminOpcode::sanitize})
    for (const std::uint32_t nsid : DoubleWords{0, 1, 0xfffffffe, 0xffffffff}) {
      if (target::find_operation(target::QueueKind::admin, static_cast<std::uint8_t>(opcode))) continue;
      auto sqe = nvme::encode_plain(opcode);
      sqe.nsid = nsid;
      CHECK(intruder.ask(sqe, 4096) == StatusCode::invalid_opcode);
    }
}

TEST_CASE("Nobody fences off a neighbour, whatever association he guesses") {
  Intruder intruder;
  auto page = nvme::encode_get_log_page(
      {.nsid = nvme::kNsidAll, .lid = nvme::kRecoveryLogId, .length = Bytes(sizeof(nvme::RecoveryLog))});
  REQUIRE(intruder.ask(page, sizeof(nvme::RecoveryLog)) == StatusCode::success);
  const auto mine = nvme::parse_recovery_log(intruder.mine->bytes().first(sizeof(nvme::RecoveryLog)));
  REQUIRE(mine.has_value());
  for (std::uint64_t number = 0; number < mine->association.number; ++number) {
    const auto response = intruder.execute(
        *intruder.admin, nvme::encode_fence({.instance = mine->association.instance, .number = number}));
    // Another's is refused; what is not there is gone.
    if (response.status().ok()) CHECK(response.cqe.dw0() == static_cast<std::uint32_t>(nvme::FenceResult::gone));
  }
  CHECK(intruder.target->statistics().controllers == 2);
}

TEST_CASE("A discovery controller has none of the I/O controller's commands, logs and queues") {
  HostileRig rig;
  rig.association = rig.associate(nvme::Nqn::discovery().text());
  rig.admin = rig.association.admin;
  auto memory = rig.memory(*rig.admin, 4096);
  auto sqe = nvme::encode_identify({.nsid = Nsid(1), .cns = NVME_IDENTIFY_CNS_NS});
  sqe.sgl = memory->keyed(4096);
  CHECK(rig.code(*rig.admin, sqe) == StatusCode::invalid_field);
  for (const int lid : {0x02, 0x03, 0x04, 0x05, 0x0c}) {
    sqe = nvme::encode_get_log_page({.lid = static_cast<std::uint8_t>(lid), .length = Bytes(512)});
    sqe.sgl = memory->keyed(512);
    CHECK(rig.code(*rig.admin, sqe) == StatusCode::invalid_log_page);
  }
  RawQueue& queue = rig.queue_up(Qid(1), 16, rig.association.cntlid);
  auto request = rig.connect_request(Qid(1), rig.association.cntlid, 16);
  request.subsystem_nqn = nvme::Nqn::discovery();
  CHECK(rig.connect(queue, request).code() == StatusCode::connect_invalid_parameters);
}

TEST_CASE("The discovery log is zeroes behind its end, from wherever it is read") {
  HostileRig rig;
  rig.association = rig.associate(nvme::Nqn::discovery().text());
  auto memory = rig.memory(*rig.association.admin, 4096);
  for (const std::uint64_t offset : {std::uint64_t{1} << 20, std::uint64_t{1} << 63, ~std::uint64_t{0} - 3}) {
    std::ranges::fill(memory->bytes(), std::byte{0xff});
    auto sqe =
        nvme::encode_get_log_page({.lid = NVME_LOG_LID_DISCOVER, .offset = Bytes(offset), .length = Bytes(4096)});
    sqe.sgl = memory->keyed(4096);
    CHECK(rig.code(*rig.association.admin, sqe) == StatusCode::success);
    CHECK(std::ranges::all_of(memory->bytes(), [](std::byte each) { return each == std::byte{0}; }));
  }
}
