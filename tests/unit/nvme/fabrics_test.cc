#include "common/nvme/fabrics.h"

#include <catch2/catch.hpp>
#include <cstring>

#include "common/nvme/properties.h"
#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;
using namespace std::chrono_literals;
using rbt::test::bytes_of;
using rbt::test::from_hex;
using rbt::test::hex;

namespace {

constexpr std::string_view kSubsystem = "nqn.2014-08.org.example:disk";
constexpr std::string_view kHost = "nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff";

/// A good I/O queue Connect, to be damaged.
struct Connect {
  ConnectCommand command = from_hex<ConnectCommand>(
      "7f 40 05 00 01 00*19  00*8 00 04 00 00 00 00 00 01  00 00 01 00 7f 00 04 00 00 00 00 00 00*12");
  std::vector<std::byte> data = hex("00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff 34 12 00*1006");

  Connect() {
    write(256, kSubsystem);
    write(512, kHost);
  }
  void write(std::size_t offset, std::string_view text) { std::memcpy(&data[offset], text.data(), text.size()); }
  [[nodiscard]] auto parse() const { return parse_connect(std::bit_cast<SubmissionQueueEntry>(command), data); }
  [[nodiscard]] ConnectFailure failure() const {
    const auto request = parse();
    REQUIRE_FALSE(request);
    CHECK(request.error().status.do_not_retry());
    return request.error();
  }
  /// DW0 of a refusal with Connect Invalid Parameters.
  [[nodiscard]] std::uint32_t points_at() const {
    CHECK(failure().status.code() == StatusCode::connect_invalid_parameters);
    return failure().dw0;
  }
};

constexpr std::uint32_t kInData = 1u << 16;

}  // namespace

TEST_CASE("Connect names queue, host, subsystem and controller") {
  const auto request = Connect().parse();
  REQUIRE(request);
  CHECK(request->qid == Qid(1));
  CHECK(request->queue_entries == 128);
  CHECK(request->flow_control == SqFlowControl::off);
  CHECK(request->keep_alive == 0ms);
  CHECK(request->host_id.to_string() == "00112233-4455-6677-8899-aabbccddeeff");
  CHECK(request->cntlid == Cntlid(0x1234));
  CHECK(request->subsystem_nqn.text() == kSubsystem);
  CHECK(request->host_nqn.text() == kHost);
}

TEST_CASE("Connect written by the encoder is what the parser read") {
  const Connect connect;
  const auto request = connect.parse();
  REQUIRE(request);
  auto sqe = encode_connect(*request);
  sqe.cid = std::uint16_t{5};
  sqe.sgl = encode_data_pointer(InCapsuleData{0, kConnectDataBytes});
  CHECK(bytes_of(sqe) == bytes_of(connect.command));
  const auto data = encode_connect_data(*request);
  CHECK(std::memcmp(&data, connect.data.data(), sizeof(data)) == 0);
}

TEST_CASE("A keep-alive timeout of 2^32 - 1 ms does not overflow") {
  Connect connect;
  connect.command.qid = std::uint16_t{0};
  connect.command.keep_alive_ms = 0xffffffffu;
  CHECK(connect.parse()->keep_alive == 4294967295ms);
}

TEST_CASE("Connect data of any length but 1024 bytes are refused") {
  for (const std::size_t length : {0u, 1u, 1023u, 1025u, 4096u}) {
    Connect connect;
    connect.data.resize(length);
    CHECK(connect.failure().status.code() == StatusCode::sgl_invalid_length);
  }
}

TEST_CASE("Connect of another record format is refused as such") {
  Connect connect;
  connect.command.record_format = std::uint16_t{1};
  CHECK(connect.failure().status.code() == StatusCode::connect_incompatible_format);
}

TEST_CASE("A queue of one entry is refused and the largest does not wrap to none") {
  Connect connect;
  connect.command.sqsize = std::uint16_t{0};
  CHECK(connect.points_at() == 44);
  connect.command.sqsize = std::uint16_t{0xffff};
  CHECK(connect.parse()->queue_entries == 65536);
}

TEST_CASE("An I/O queue cannot ask for any controller, an admin queue can") {
  Connect connect;
  for (const char* wildcard : {"\xff\xff", "\xfe\xff", "\xf0\xff"}) {
    connect.write(16, std::string_view(wildcard, 2));
    connect.command.qid = std::uint16_t{1};
    CHECK(connect.points_at() == (kInData | 16));
    connect.command.qid = std::uint16_t{0};
    CHECK(connect.parse());
  }
}

TEST_CASE("An NQN without end, too long, empty or not beginning with nqn is refused where it stands") {
  for (const std::size_t offset : {256u, 512u}) {
    for (const auto& bad :
         {std::string(256, 'x'), "nqn." + std::string(252, 'x'), "nqn." + std::string(220, 'x'), std::string(256, '\0'),
          std::string("NQN.2014-08.x\0", 14), std::string("nqn\0", 4), std::string("nqn.\x1b[2J\0", 9)}) {
      Connect connect;
      connect.write(offset, bad);
      CHECK(connect.points_at() == (kInData | offset));
    }
  }
}

TEST_CASE("An NQN of exactly 223 bytes is taken") {
  Connect connect;
  connect.write(256, "nqn." + std::string(219, 'x') + '\0');
  CHECK(connect.parse()->subsystem_nqn.text().size() == 223);
}

TEST_CASE("What a failed Connect points at is said in words") {
  CHECK(describe_invalid_connect(kInData | 256) == "the subsystem NQN in the data");
  CHECK(describe_invalid_connect(44) == "the queue size in the command");
  CHECK(describe_invalid_connect(kInData | 17) == "byte 17 of the data");
}

TEST_CASE("The Connect response carries controller and authentication bits") {
  const auto response = parse_connect_response(0x0002'0042);
  CHECK(response.cntlid == Cntlid(0x42));
  CHECK(response.authentication_required);
  CHECK_FALSE(response.secure_channel_required);
  CHECK(encode_connect_response(response) == 0x0002'0042);
}

TEST_CASE("Property Get and Set have size, offset and value in their places") {
  CHECK(bytes_of(encode_property_get(0x00, PropertySize::eight_bytes)) ==
        hex("7f 40 00 00 04 00*34 40 01 00 00 00 00 00 00 00 00*16"));
  CHECK(bytes_of(encode_property_set({0x14, PropertySize::four_bytes, 0x460001})) ==
        hex("7f 40 00 00 00 00*34 40 00 00 00 00 14 00 00 00 01 00 46 00 00 00 00 00 00*8"));
  const auto set = parse_property(encode_property_set({0x14, PropertySize::four_bytes, 0x460001}));
  REQUIRE(set);
  CHECK(set->offset == 0x14);
  CHECK(set->size == PropertySize::four_bytes);
  CHECK(set->value == 0x460001);
}

TEST_CASE("Property sizes other than four and eight bytes are refused") {
  PropertyCommand command;
  for (unsigned attributes = 2; attributes < 8; ++attributes) {
    command.attributes = static_cast<std::uint8_t>(attributes);
    CHECK(parse_property(std::bit_cast<SubmissionQueueEntry>(command)).error() ==
          Status::permanent(StatusCode::invalid_field));
  }
}

TEST_CASE("A four-byte property drops what stands above four bytes") {
  PropertyCommand command;
  command.value = ~std::uint64_t{0};
  CHECK(parse_property(std::bit_cast<SubmissionQueueEntry>(command))->value == 0xffffffff);
}

TEST_CASE("Only the properties that exist over fabrics have a size") {
  CHECK(property_size(0x00) == PropertySize::eight_bytes);
  CHECK(property_size(0x14) == PropertySize::four_bytes);
  for (const std::uint32_t offset : {0x04u, 0x0cu, 0x28u, 0x1000u, 0xffffffffu})
    CHECK_FALSE(property_size(offset));
}

TEST_CASE("Capabilities are where the specification has them") {
  const auto capabilities = Capabilities{}
                                .with_queue_entries_max(1024)
                                .with_contiguous_queues_required()
                                .with_timeout_half_seconds(15)
                                .with_nvm_command_set()
                                .with_command_set_selection()
                                .with_ready_with_media();
  CHECK(capabilities.raw == 0x0800'0820'0f01'03ff);
  CHECK(capabilities.queue_entries_max() == 1024);
  CHECK(capabilities.timeout_half_seconds() == 15);
  CHECK(Capabilities{~std::uint64_t{0}}.queue_entries_max() == 65536);
  CHECK(Capabilities{std::uint64_t{3} << 48}.page_shift_min() == 3);
}

TEST_CASE("The kernel's way of enabling a controller is understood") {
  const Configuration written{0x00460001};  // IOCQES 4, IOSQES 6, EN
  CHECK(written.enabled());
  CHECK(written.sqe_size_shift() == 6);
  CHECK(written.cqe_size_shift() == 4);
  CHECK(written.page_shift() == 0);
  CHECK(written.shutdown() == Shutdown::none);
  CHECK(Configuration{}.with_entry_size_shifts(6, 4).with_enabled(true).raw == written.raw);
  CHECK(written.with_shutdown(Shutdown::normal).raw == 0x00464001);
  CHECK(written.with_enabled(false).raw == 0x00460000);
  CHECK(Configuration{}.with_command_set(6).raw == 0x60);
}

TEST_CASE("Controller status and version are where the specification has them") {
  CHECK(ControllerStatus{}.with_ready(true).raw == 1);
  CHECK(ControllerStatus{}.with_fatal().raw == 2);
  CHECK(ControllerStatus{}.with_shutdown(ShutdownStatus::complete).raw == 8);
  CHECK(ControllerStatus{9}.shutdown() == ShutdownStatus::complete);
  CHECK(Version::of(2, 0).raw == 0x20000);
  CHECK(Version{0x10300}.minor_number() == 3);
}
