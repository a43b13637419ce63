// The Linux kernel's own messages (tests/wire/golden): every one is understood, and what we would have sent for the same
// values are the same bytes.

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "common/nvme/admin_command.h"
#include "common/nvme/connect_private_data.h"
#include "common/nvme/fabrics.h"
#include "common/nvme/io_command.h"
#include "common/nvme/properties.h"
#include "common/nvme/text.h"
#include "target/admin/changed_namespaces.h"
#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;
using namespace std::chrono_literals;
using rbt::test::bytes_of;

namespace {

constexpr CapsuleLimits kKernelLimits{4096};  // what the captured target offered

std::vector<std::byte> golden(const std::string& name) {
  std::ifstream file(std::string(RBT_GOLDEN_DIR "/") + name);
  INFO(name);
  REQUIRE(file);
  std::string digits;
  for (std::string line; std::getline(file, line);)
    if (!line.starts_with('#')) digits += line;
  return test::hex(digits);
}

std::vector<std::string> names_ending_in(const std::string& suffix) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(RBT_GOLDEN_DIR))
    if (auto name = entry.path().filename().string(); name.ends_with(suffix)) names.push_back(std::move(name));
  std::sort(names.begin(), names.end());
  REQUIRE_FALSE(names.empty());
  return names;
}

struct Command {
  std::vector<std::byte> capsule;
  SubmissionQueueEntry sqe;
  DataPointer data;

  explicit Command(const std::string& name) : capsule(golden(name + ".command.hex")) {
    INFO(name);
    const auto parsed = parse_command_capsule(capsule);
    REQUIRE(parsed);
    sqe = *parsed;
    const auto pointer = parse_data_pointer(sqe, capsule.size(), kKernelLimits);
    REQUIRE(pointer);
    data = *pointer;
  }
  [[nodiscard]] std::span<const std::byte> in_capsule() const {
    const auto& place = std::get<InCapsuleData>(data);
    return std::span(capsule).subspan(sizeof(SubmissionQueueEntry) + place.offset, place.length);
  }
  /// Our encoder's entry, with the identifier and the data pointer that the kernel chose, is the kernel's.
  void expect_same(SubmissionQueueEntry ours) const {
    ours.cid = sqe.cid;
    ours.sgl = encode_data_pointer(data);
    CHECK(bytes_of(ours) == bytes_of(sqe));
  }
};

CompletionQueueEntry response(const std::string& name) {
  const auto cqe = parse_response_capsule(golden(name + ".response.hex"));
  REQUIRE(cqe);
  return *cqe;
}

}  // namespace

TEST_CASE("Every command of the kernel's host has a data pointer that is encoded as it was decoded") {
  for (const auto& file : names_ending_in(".command.hex")) {
    INFO(file);
    const Command command(file.substr(0, file.size() - std::string_view(".command.hex").size()));
    CHECK(command.sqe.fuse() == Fuse::none);
    CHECK(command.sqe.reserved_flags_clear());
    CHECK(encode_data_pointer(command.data) == command.sqe.sgl);
    const bool has_more = command.capsule.size() > sizeof(SubmissionQueueEntry);
    CHECK(std::holds_alternative<InCapsuleData>(command.data) == has_more);
    if (has_more) CHECK(length(command.data) == command.capsule.size() - sizeof(SubmissionQueueEntry));
    if (const auto* keyed = std::get_if<KeyedData>(&command.data)) CHECK(keyed->invalidate == RemoteInvalidate::yes);
  }
}

TEST_CASE("Data that the kernel's target moved are as long as the command's descriptor says") {
  for (const auto& file : names_ending_in(".data.hex")) {
    INFO(file);
    const Command command(file.substr(0, file.size() - std::string_view(".data.hex").size()));
    CHECK(std::get<KeyedData>(command.data).length == golden(file).size());
  }
}

TEST_CASE("Every response of the kernel's target has the status that its file is named after") {
  for (const auto& file : names_ending_in(".response.hex")) {
    INFO(file);
    const auto name = file.substr(0, file.size() - std::string_view(".response.hex").size());
    const auto cqe = response(name);
    const auto at = name.find(".status_");
    const unsigned long code = at == std::string::npos ? 0 : std::stoul(name.substr(at + 8), nullptr, 16);
    CHECK(cqe.status().code() == static_cast<StatusCode>(code));
    CHECK(cqe.status().do_not_retry() == (code != 0));
    CHECK(cqe.command_id() == Command(name).sqe.command_id());
    CHECK(cqe.status().to_completion() == cqe.status_field.get());
  }
}

TEST_CASE("The kernel's connection requests are understood and encoded alike") {
  const auto admin = parse_cm_request(golden("cm_req_admin.private.hex"));
  REQUIRE(admin);
  CHECK(admin->qid == Qid(0));
  CHECK(admin->host_receives == 32);
  CHECK(admin->host_sends == 32);
  const auto io = parse_cm_request(golden("cm_req_io.private.hex"));
  REQUIRE(io);
  CHECK(io->qid == Qid(1));
  CHECK(io->host_receives == 128);
  CHECK(io->host_sends == 128);
  CHECK(io->cntlid == Cntlid(1));
  for (const auto* name : {"cm_req_admin.private.hex", "cm_req_io.private.hex"}) {
    auto bytes = golden(name);
    CHECK(bytes.size() > sizeof(CmRequestData));  // the padding of the connection manager
    bytes.resize(sizeof(CmRequestData));
    CHECK(bytes_of(encode_cm_request(*parse_cm_request(bytes))) == bytes);
  }
}

TEST_CASE("The kernel's answers to connection requests are understood and encoded alike") {
  auto accept = golden("cm_rep_io.private.hex");
  CHECK(parse_cm_accept(golden("cm_rep_admin.private.hex")) == 32);
  CHECK(parse_cm_accept(accept) == 128);
  accept.resize(sizeof(CmAcceptData));
  CHECK(bytes_of(encode_cm_accept(128)) == accept);

  auto reject = golden("cm_rej_bad_queue_size.private.hex");
  CHECK(parse_cm_reject(reject) == CmReject::invalid_host_send_queue_size);
  CHECK(parse_cm_reject(golden("cm_rej_bad_record_format.private.hex")) == CmReject::invalid_record_format);
  reject.resize(sizeof(CmRejectData));
  CHECK(bytes_of(encode_cm_reject(CmReject::invalid_host_send_queue_size)) == reject);
}

TEST_CASE("We refuse the record format that the kernel's target refuses") {
  CHECK(parse_cm_request(golden("cm_req_bad_record_format.private.hex")).error() == CmReject::invalid_record_format);
}

TEST_CASE("The kernel's Connect of an admin queue is understood and encoded alike") {
  for (const auto* name : {"connect_admin", "discovery.connect_admin"}) {
    INFO(name);
    const Command command(name);
    const auto data = golden(std::string(name) + ".data.hex");
    const auto request = parse_connect(command.sqe, data);
    REQUIRE(request);
    CHECK(request->qid == Qid(0));
    CHECK(request->queue_entries == 32);
    CHECK(request->cntlid == kCntlidDynamic);
    CHECK(request->flow_control == SqFlowControl::on);
    CHECK(request->subsystem_nqn.is_discovery() == (command.sqe.cdw12.get() == 0));  // no keep-alive there
    CHECK(parse_connect_response(response(name).dw0()).cntlid == Cntlid(1));
    // the host names a namespace's place it does not use
    command.expect_same(encode_connect(*request));
    const auto ours = encode_connect_data(*request);
    CHECK(std::memcmp(&ours, data.data(), data.size()) == 0);
  }
  const auto request = parse_connect(Command("connect_admin").sqe, golden("connect_admin.data.hex"));
  CHECK(request->keep_alive == 5000ms);
  CHECK(request->subsystem_nqn.text() == "nqn.2014-08.org.example:golden");
}

TEST_CASE("The kernel's Connect of an I/O queue has its data in the capsule") {
  const Command command("connect_io");
  const auto request = parse_connect(command.sqe, command.in_capsule());
  REQUIRE(request);
  CHECK(request->qid == Qid(1));
  CHECK(request->queue_entries == 128);
  CHECK(request->cntlid == Cntlid(1));
  command.expect_same(encode_connect(*request));
}

TEST_CASE("What the kernel's target objects to in a Connect is pointed at as we point") {
  const auto unknown = response("connect_admin.status_182");
  CHECK(unknown.dw0() == invalid_connect_data(offsetof(nvmf_connect_data, subsysnqn)).dw0);
  CHECK(describe_invalid_connect(unknown.dw0()) == "the subsystem NQN in the data");
  const auto forbidden = response("connect_admin.status_184");
  CHECK(describe_invalid_connect(forbidden.dw0()) == "the host NQN in the data");
}

TEST_CASE("The kernel's property commands are understood and encoded alike") {
  for (const auto* name :
       {"property_get_cap", "property_get_vs", "property_get_csts", "property_get_intms.status_002"}) {
    INFO(name);
    const Command command(name);
    const auto access = parse_property(command.sqe);
    REQUIRE(access);
    command.expect_same(encode_property_get(access->offset, access->size));
  }
  for (const auto* name :
       {"property_set_cc_configure", "property_set_cc_enable", "property_set_cc_shutdown", "property_set_cc_disable"}) {
    INFO(name);
    const Command command(name);
    const auto access = parse_property(command.sqe);
    REQUIRE(access);
    CHECK(access->offset == static_cast<std::uint32_t>(Property::configuration));
    CHECK(property_size(access->offset) == access->size);
    command.expect_same(encode_property_set(*access));
  }
  CHECK_FALSE(property_size(parse_property(Command("property_get_intms.status_002").sqe)->offset));
}

TEST_CASE("The kernel's properties read as what they are") {
  const Capabilities capabilities{response("property_get_cap").result.get()};
  CHECK(capabilities.queue_entries_max() == 128);
  CHECK(capabilities.timeout_half_seconds() == 15);
  CHECK(capabilities.supports_nvm_command_set());
  CHECK(capabilities.supports_command_set_selection());
  CHECK(Version{response("property_get_vs").dw0()}.minor_number() == 3);
  CHECK(ControllerStatus{response("property_get_csts").dw0()}.ready());
  const auto written = [](const char* name) {
    return Configuration{static_cast<std::uint32_t>(parse_property(Command(name).sqe)->value)};
  };
  CHECK_FALSE(written("property_set_cc_configure").enabled());
  CHECK(written("property_set_cc_enable").enabled());
  CHECK(written("property_set_cc_enable").command_set() == 6);
  CHECK(written("property_set_cc_enable").sqe_size_shift() == 6);
  CHECK(written("property_set_cc_enable").cqe_size_shift() == 4);
  CHECK(written("property_set_cc_shutdown").shutdown() == Shutdown::normal);
  CHECK_FALSE(written("property_set_cc_disable").enabled());
}

TEST_CASE("The kernel's block commands are understood and encoded alike") {
  for (const auto& [name, opcode] :
       {std::pair{"read_keyed", IoOpcode::read}, std::pair{"write_keyed", IoOpcode::write},
        std::pair{"write_in_capsule", IoOpcode::write}, std::pair{"write_zeroes", IoOpcode::write_zeroes},
        std::pair{"compare.status_001", IoOpcode::compare}}) {
    INFO(name);
    const Command command(name);
    CHECK(command.sqe.opcode == static_cast<std::uint8_t>(opcode));
    const auto block = parse_block_command(command.sqe);
    CHECK(block.nsid == Nsid(1));
    if (opcode != IoOpcode::write_zeroes) CHECK(block.count.value() * 512 == length(command.data));
    command.expect_same(encode_block_command(opcode, block));
  }
  const Command flush("flush");
  flush.expect_same(encode_flush(Nsid(1)));
}

TEST_CASE("The kernel's Dataset Management always brings a whole page of ranges") {
  const Command command("dataset_management");
  const auto dataset = parse_dataset_management(command.sqe);
  CHECK(dataset.ranges == 1);
  CHECK(dataset.deallocate == Deallocate::yes);
  CHECK(command.in_capsule().size() == 4096);
  const auto ranges = DatasetRanges::parse(dataset, command.in_capsule());
  REQUIRE(ranges);
  CHECK((*ranges)[0].count.value() > 0);
  command.expect_same(encode_dataset_management(dataset));
  const auto range = bytes_of(encode_dataset_range((*ranges)[0]));
  CHECK(std::equal(range.begin(), range.end(), command.in_capsule().begin()));
}

TEST_CASE("The kernel's Identify and Get Log Page are understood and encoded alike") {
  for (const auto& file : names_ending_in(".command.hex")) {
    INFO(file);
    const Command command(file.substr(0, file.size() - std::string_view(".command.hex").size()));
    if (file.find("identify_") != std::string::npos) {
      CHECK(length(command.data) == kIdentifyBytes);
      command.expect_same(encode_identify(parse_identify(command.sqe)));
    }
    if (file.find("get_log_page_") != std::string::npos) {
      const auto log = parse_get_log_page(command.sqe);
      REQUIRE(log);
      CHECK(log->length.value() == length(command.data));
      command.expect_same(encode_get_log_page(*log));
    }
  }
}

TEST_CASE("The kernel's feature commands are understood and encoded alike") {
  for (const auto& file : names_ending_in(".command.hex")) {
    INFO(file);
    const Command command(file.substr(0, file.size() - std::string_view(".command.hex").size()));
    if (file.find("set_features_") != std::string::npos)
      command.expect_same(encode_set_features(parse_set_features(command.sqe)));
    if (file.find("get_features_") != std::string::npos) {
      const auto get = parse_get_features(command.sqe);
      REQUIRE(get);
      command.expect_same(encode_get_features(*get));
    }
  }
  const Command queues("set_features_number_of_queues");
  CHECK(parse_queue_counts(parse_set_features(queues.sqe).value)->submission == 2);
  CHECK(parse_queue_counts(response("set_features_number_of_queues").dw0())->submission == 128);
  Command("keep_alive").expect_same(encode_plain(AdminOpcode::keep_alive));
  Command("async_event_request").expect_same(encode_plain(AdminOpcode::async_event_request));
}

TEST_CASE("The kernel's events read as what they are") {
  const auto event = parse_async_event(response("async_event_request").dw0());
  CHECK(event.type == NVME_AER_NOTICE);
  CHECK(event.info == 0);
  CHECK(event.lid == NVME_LOG_LID_CHANGED_NS);
}

TEST_CASE("What the kernel's target says of a namespace that came, ours says in the same bytes") {
  // It added namespace 2: one event, and one log page, which the host reads without asking for it to be retained.
  const auto read = parse_get_log_page(Command("get_log_page_changed_namespaces").sqe);
  REQUIRE(read);
  CHECK(read->lid == NVME_LOG_LID_CHANGED_NS);
  CHECK(read->nsid == kNsidAll);
  CHECK(read->retain == RetainEvent::no);
  CHECK(read->offset == Bytes(0));
  target::ChangedNamespaces changed;
  changed.note(Nsid(2));
  CHECK(changed.event_due());
  const auto page = changed.page();
  const auto bytes = std::as_bytes(std::span(page));
  CHECK(std::vector(bytes.begin(), bytes.end()) == golden("get_log_page_changed_namespaces.data.hex"));
  const auto event = response("async_event_request");
  CHECK(event.dw0() == encode_async_event({.type = NVME_AER_NOTICE, .info = 0, .lid = NVME_LOG_LID_CHANGED_NS}));
  CHECK(event.status().ok());
}

TEST_CASE("The kernel's controller data read through libnvme's structure") {
  const auto bytes = golden("identify_controller.data.hex");
  nvme_id_ctrl controller;
  REQUIRE(bytes.size() == sizeof(controller));
  std::memcpy(&controller, bytes.data(), sizeof(controller));
  CHECK(from_le(controller.cntlid) == 1);
  CHECK(from_le(controller.ioccsz) == (64 + 4096) / 16);
  CHECK(from_le(controller.iorcsz) == 1);
  CHECK(get_padded(controller.mn) == "Linux");
  CHECK(std::string_view(controller.subnqn) == "nqn.2014-08.org.example:golden");
}
