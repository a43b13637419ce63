// How a host becomes a controller's owner: connection request, Connect, properties. WIRE: RDMA Transport 1.0, 3.3; Base
// 2.0, 6.3 and 3.1.3.

#include <catch2/catch.hpp>

#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::CmReject;
using nvme::Property;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t in_data(std::size_t offset) {
  return 1u << 16 | static_cast<std::uint32_t>(offset);
}

std::optional<CmReject> refusal_of(TargetRig& rig, const nvme::CmRequestData& data) {
  return rig.refusal(nvme::wire_bytes(data));
}

}  // namespace

TEST_CASE("A decent connection request is answered with the depth of our receive queue") {
  TargetRig rig;
  RawQueue& queue = rig.queue_up(Qid(0), 32);
  REQUIRE(queue.private_data.size() >= 32);
  CHECK(nvme::parse_cm_accept(queue.private_data) == 32);
}

TEST_CASE("A connection request that cannot be served is refused with the reason") {
  TargetRig rig;
  const auto decent =
      nvme::encode_cm_request({.qid = Qid(0), .host_receives = 32, .host_sends = 32, .cntlid = Cntlid(0)});
  const auto bytes = nvme::wire_bytes(decent);
  // Fabrics pad with zeroes, so nothing at all is a request for queues without entries.
  CHECK(rig.refusal({}).has_value());
  auto data = decent;
  data.record_format = std::uint16_t{1};
  CHECK(refusal_of(rig, data) == CmReject::invalid_record_format);
  data = decent;
  data.qid = std::uint16_t{65};
  CHECK(refusal_of(rig, data) == CmReject::invalid_qid);
  data = decent;
  data.host_send_queue_size = std::uint16_t{0};
  CHECK(refusal_of(rig, data) == CmReject::invalid_host_send_queue_size);
  data.host_send_queue_size = std::uint16_t{65535};
  CHECK(refusal_of(rig, data) == CmReject::invalid_host_send_queue_size);
  data.host_send_queue_size = std::uint16_t{32};  // 33 entries
  CHECK(refusal_of(rig, data) == CmReject::invalid_host_send_queue_size);
  data.qid = std::uint16_t{1};
  data.host_send_queue_size = std::uint16_t{1024};
  CHECK(refusal_of(rig, data) == CmReject::invalid_host_send_queue_size);
  data = decent;
  data.host_receive_queue_size = std::uint16_t{0};
  CHECK(refusal_of(rig, data) == CmReject::invalid_host_receive_queue_size);
  data = decent;
  data.qid = std::uint16_t{1};
  data.cntlid = std::uint16_t{77};
  CHECK(refusal_of(rig, data) == CmReject::invalid_controller_id);
  CHECK(rig.refusal(bytes, 0) == CmReject::invalid_responder_resources);
  CHECK(rig.target->statistics().connections_refused == 10);
}

TEST_CASE("More than 32 bytes of private data are padding") {
  TargetRig rig;
  std::array<std::byte, 56> padded{};
  const auto decent =
      nvme::encode_cm_request({.qid = Qid(0), .host_receives = 32, .host_sends = 32, .cntlid = Cntlid(0)});
  std::memcpy(padded.data(), &decent, sizeof decent);
  CHECK(rig.refusal(padded) == std::nullopt);
}

TEST_CASE("A connection that never sends Connect is closed after the half-open time") {
  TargetRig rig;
  RawQueue& queue = rig.queue_up(Qid(0));
  rig.run_for(std::chrono::milliseconds(4900));
  CHECK_FALSE(queue.ended());
  rig.expect([&] { return queue.ended(); }, "the target hangs up");
  CHECK(rig.logger.said("no Connect within 5000 ms"));
}

TEST_CASE("Connections beyond the limit are refused for lack of resources, and may come when others have gone") {
  TargetRig rig({.limits = {.connections_max = 2}});
  RawQueue& first = rig.queue_up(Qid(0));
  rig.queue_up(Qid(0));
  const auto data =
      nvme::encode_cm_request({.qid = Qid(0), .host_receives = 32, .host_sends = 32, .cntlid = Cntlid(0)});
  CHECK(refusal_of(rig, data) == CmReject::no_resources);
  first.connection->close();
  rig.expect([&] { return rig.target->statistics().connections() == 1; }, "one is gone");
  CHECK(refusal_of(rig, data) == std::nullopt);
}

TEST_CASE("Queues of one host spread over all reactors") {
  TargetRig rig({.reactors = 3});
  const auto association = rig.associate();
  for (std::uint16_t qid = 1; qid <= 5; ++qid)
    rig.io_queue(association, Qid(qid));
  for (const auto& reactor : rig.target->statistics().reactors)
    CHECK(reactor.connections == 2);
}

TEST_CASE("Connect with a dynamic controller id yields a controller, and ids are not used again soon") {
  TargetRig rig;
  std::uint16_t last = 0;
  for (int i = 0; i < 3; ++i) {
    const auto association = rig.associate();
    CHECK(association.cntlid.value() > last);
    last = association.cntlid.value();
    association.admin->connection->close();
    rig.expect([&] { return rig.target->statistics().controllers == 0; }, "the controller goes with its queue");
  }
}

TEST_CASE("An admin Connect that is wrong is refused, and says where") {
  TargetRig rig;
  RawQueue& queue = rig.queue_up(Qid(0));
  const auto decent = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  const auto refused = [&](const nvme::ConnectRequest& request, StatusCode code, std::uint32_t dw0) {
    const auto response = rig.connect(queue, request);
    CHECK(response.code() == code);
    CHECK(response.cqe.dw0() == dw0);
  };
  auto request = decent;
  request.cntlid = Cntlid(1);
  refused(request, StatusCode::connect_invalid_parameters, in_data(16));
  request.cntlid = nvme::kCntlidAnyStatic;
  refused(request, StatusCode::connect_invalid_parameters, in_data(16));
  request = decent;
  request.subsystem_nqn = nqn("nqn.2024-01.example:another");
  refused(request, StatusCode::connect_invalid_parameters, in_data(256));
  request = decent;
  request.qid = Qid(1);
  request.cntlid = Cntlid(1);
  refused(request, StatusCode::connect_invalid_parameters, 42);
  request = decent;
  request.queue_entries = 33;  // more than the connection request said
  refused(request, StatusCode::connect_invalid_parameters, 44);

  // what a decent encoder cannot say
  auto sqe = nvme::encode_connect(decent);
  auto data = nvme::encode_connect_data(decent);
  const auto bytes = std::as_bytes(std::span(&data, 1));
  CHECK(rig.connect(queue, sqe, bytes.first(1020)).code() == StatusCode::sgl_invalid_length);
  auto command = std::bit_cast<nvme::ConnectCommand>(sqe);
  command.record_format = std::uint16_t{1};
  CHECK(rig.connect(queue, std::bit_cast<nvme::SubmissionQueueEntry>(command), bytes).code() ==
        StatusCode::connect_incompatible_format);
  command.record_format = std::uint16_t{0};
  command.sqsize = std::uint16_t{0};
  auto response = rig.connect(queue, std::bit_cast<nvme::SubmissionQueueEntry>(command), bytes);
  CHECK(response.code() == StatusCode::connect_invalid_parameters);
  CHECK(response.cqe.dw0() == 44);
  std::fill(std::begin(data.hostnqn), std::end(data.hostnqn), 'x');  // no NUL, no "nqn."
  response = rig.connect(queue, sqe, bytes);
  CHECK(response.code() == StatusCode::connect_invalid_parameters);
  CHECK(response.cqe.dw0() == in_data(512));

  // and after all that it still works
  CHECK(rig.connect(queue, decent).status().ok());
}

TEST_CASE("A host that is not on the list is refused with Invalid Host") {
  TargetRig rig({.allow_any_host = false, .allowed_hosts = {{.nqn = nqn(kHost)}}});
  RawQueue& queue = rig.queue_up(Qid(0));
  auto request = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  request.host_nqn = nqn("nqn.2024-01.example:stranger");
  const auto response = rig.connect(queue, request);
  CHECK(response.code() == StatusCode::connect_invalid_host);
  CHECK(response.cqe.dw0() == in_data(512));
  request.host_nqn = nqn(kHost);
  CHECK(rig.connect(queue, request).status().ok());
}

TEST_CASE("A host identifier of zero is accepted") {
  TargetRig rig;
  RawQueue& queue = rig.queue_up(Qid(0));
  auto request = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  request.host_id = nvme::HostId();
  CHECK(rig.connect(queue, request).status().ok());
}

TEST_CASE("An I/O queue is its controller's owner's alone") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& queue = rig.queue_up(Qid(1), 32, association.cntlid);
  const auto decent = rig.connect_request(Qid(1), association.cntlid);
  const auto refused = [&](const nvme::ConnectRequest& request, std::uint32_t dw0) {
    const auto response = rig.connect(queue, request);
    CHECK(response.code() == StatusCode::connect_invalid_parameters);
    CHECK(response.cqe.dw0() == dw0);
  };
  auto request = decent;
  request.host_nqn = nqn("nqn.2024-01.example:thief");
  refused(request, in_data(512));
  request = decent;
  request.host_id = nvme::HostId(std::array<std::uint8_t, 16>{9});
  refused(request, in_data(0));
  request = decent;
  request.cntlid = Cntlid(static_cast<std::uint16_t>(association.cntlid.value() + 1));
  refused(request, in_data(16));
  request = decent;
  request.subsystem_nqn = nvme::Nqn::discovery();
  refused(request, in_data(16));
  CHECK(rig.connect(queue, decent).status().ok());
}

TEST_CASE("A second queue of the same id is refused with Command Sequence Error") {
  TargetRig rig;
  const auto association = rig.associate();
  rig.io_queue(association, Qid(1));
  RawQueue& second = rig.queue_up(Qid(1), 32, association.cntlid);
  CHECK(rig.connect(second, rig.connect_request(Qid(1), association.cntlid)).code() ==
        StatusCode::command_sequence_error);
}

TEST_CASE("A queue id is free again when its connection has gone") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& first = rig.io_queue(association, Qid(1));
  first.connection->close();
  rig.expect([&] { return rig.target->statistics().connections() == 1; }, "the queue is gone");
  rig.io_queue(association, Qid(1));
}

TEST_CASE("Queues beyond those granted are refused") {
  TargetRig rig;
  const auto association = rig.associate();
  const auto asked =
      nvme::encode_set_features({.nsid = Nsid(0),
                                 .fid = NVME_FEAT_FID_NUM_QUEUES,
                                 .value = nvme::encode_queue_counts({.submission = 2, .completion = 3})});
  const auto response = rig.execute(*association.admin, asked);
  REQUIRE(response.status().ok());
  CHECK(response.cqe.dw0() == 0x00010001);
  rig.io_queue(association, Qid(2));
  RawQueue& third = rig.queue_up(Qid(3), 32, association.cntlid);
  const auto refused = rig.connect(third, rig.connect_request(Qid(3), association.cntlid));
  CHECK(refused.code() == StatusCode::connect_invalid_parameters);
  CHECK(refused.cqe.dw0() == 42);
  // and the number does not change while there are queues
  CHECK(rig.execute(*association.admin, asked).code() == StatusCode::command_sequence_error);
}

TEST_CASE("An I/O queue before the controller is enabled is refused") {
  TargetRig rig;
  RawQueue& admin = rig.queue_up(Qid(0));
  const auto connected = rig.connect(admin, rig.connect_request(Qid(0), nvme::kCntlidDynamic));
  const auto cntlid = nvme::parse_connect_response(connected.cqe.dw0()).cntlid;
  RawQueue& queue = rig.queue_up(Qid(1), 32, cntlid);
  CHECK(rig.connect(queue, rig.connect_request(Qid(1), cntlid)).code() == StatusCode::command_sequence_error);
}

TEST_CASE("Commands before Connect, and a second Connect, are Command Sequence Errors") {
  TargetRig rig;
  RawQueue& queue = rig.queue_up(Qid(0));
  CHECK(rig.execute(queue, nvme::encode_plain(nvme::AdminOpcode::keep_alive)).code() ==
        StatusCode::command_sequence_error);
  CHECK(rig.execute(queue, nvme::encode_property_get(0, nvme::PropertySize::eight_bytes)).code() ==
        StatusCode::command_sequence_error);
  const auto request = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  CHECK(rig.connect(queue, request).status().ok());
  CHECK(rig.connect(queue, request).code() == StatusCode::command_sequence_error);
}

TEST_CASE("An I/O queue's Connect may carry its data in the capsule") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& queue = rig.queue_up(Qid(1), 32, association.cntlid);
  const auto request = rig.connect_request(Qid(1), association.cntlid);
  auto sqe = nvme::encode_connect(request);
  const auto data = nvme::encode_connect_data(request);
  sqe.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, nvme::kConnectDataBytes});
  CHECK(rig.execute(queue, sqe, std::as_bytes(std::span(&data, 1))).status().ok());
}

TEST_CASE("Properties read as they should, and only with their own size") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& admin = *association.admin;
  const nvme::Capabilities capabilities{rig.get_property(admin, Property::capabilities)};
  CHECK(capabilities.queue_entries_max() == 1024);
  CHECK(capabilities.supports_nvm_command_set());
  CHECK(capabilities.timeout_half_seconds() > 0);
  CHECK(rig.get_property(admin, Property::version) == 0x00010400);
  CHECK(nvme::Configuration{static_cast<std::uint32_t>(rig.get_property(admin, Property::configuration))}.enabled());
  CHECK(nvme::ControllerStatus{static_cast<std::uint32_t>(rig.get_property(admin, Property::status))}.ready());

  using enum nvme::PropertySize;
  for (const auto& sqe : {nvme::encode_property_get(0x00, four_bytes), nvme::encode_property_get(0x14, eight_bytes),
                          nvme::encode_property_get(0x18, four_bytes), nvme::encode_property_get(0x20, four_bytes),
                          nvme::encode_property_get(0xfffffff8, eight_bytes),
                          nvme::encode_property_set({.offset = 0x00, .size = eight_bytes, .value = 1}),
                          nvme::encode_property_set({.offset = 0x1c, .value = 1})})
    CHECK(rig.execute(admin, sqe).code() == StatusCode::invalid_field);
}

TEST_CASE("A configuration that cannot be served makes the controller fatal until it is reset") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& admin = *association.admin;
  const auto status = [&] {
    return nvme::ControllerStatus{static_cast<std::uint32_t>(rig.get_property(admin, Property::status))};
  };
  for (const auto wrong : {TargetRig::enabled().with_entry_size_shifts(5, 4), TargetRig::enabled().with_command_set(3),
                           nvme::Configuration{TargetRig::enabled().raw | 1u << 7}}) {  // MPS
    REQUIRE(rig.set_configuration(admin, {}).status().ok());
    REQUIRE(rig.set_configuration(admin, wrong).status().ok());
    CHECK(status().fatal());
    CHECK_FALSE(status().ready());
    CHECK(rig.execute(admin, nvme::encode_plain(nvme::AdminOpcode::keep_alive)).code() ==
          StatusCode::command_sequence_error);
  }
  REQUIRE(rig.set_configuration(admin, {}).status().ok());
  REQUIRE(rig.set_configuration(admin, TargetRig::enabled()).status().ok());
  CHECK(status().ready());
}

TEST_CASE("Disabling the controller closes its I/O queues, and CSTS.RDY goes to 0 when they are gone") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& io = rig.io_queue(association, Qid(1));
  RawQueue& admin = *association.admin;
  const std::uint16_t held = admin.submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
  REQUIRE(rig.set_configuration(admin, {}).status().ok());
  const auto aborted = admin.take(held);
  REQUIRE(aborted);
  CHECK(aborted->code() == StatusCode::aborted_queue_deleted);
  rig.expect([&] { return io.ended(); }, "the I/O queue is closed");
  rig.expect([&] { return (rig.get_property(admin, Property::status) & 1) == 0; }, "the controller is not ready");
  CHECK_FALSE(admin.ended());
  REQUIRE(rig.set_configuration(admin, TargetRig::enabled()).status().ok());
  rig.io_queue(association, Qid(1));
}

TEST_CASE("A shutdown is complete at once") {
  TargetRig rig;
  const auto association = rig.associate();
  REQUIRE(rig.set_configuration(*association.admin, TargetRig::enabled().with_shutdown(nvme::Shutdown::normal))
              .status()
              .ok());
  const nvme::ControllerStatus status{
      static_cast<std::uint32_t>(rig.get_property(*association.admin, Property::status))};
  CHECK(status.shutdown() == nvme::ShutdownStatus::complete);
}

TEST_CASE("Fabrics commands other than Connect do not exist on I/O queues") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& io = rig.io_queue(association, Qid(1));
  CHECK(rig.execute(io, nvme::encode_property_get(0, nvme::PropertySize::eight_bytes)).code() ==
        StatusCode::invalid_opcode);
}

TEST_CASE("The host's admin queue takes all its queues along") {
  TargetRig rig({.reactors = 3});
  const auto association = rig.associate();
  RawQueue& one = rig.io_queue(association, Qid(1));
  RawQueue& two = rig.io_queue(association, Qid(2));
  const auto other = rig.associate();
  association.admin->connection->close();
  rig.expect([&] { return one.ended() && two.ended(); }, "the I/O queues are closed");
  rig.expect([&] { return rig.target->statistics().controllers == 1; }, "the controller is gone");
  CHECK_FALSE(other.admin->ended());
  CHECK(rig.get_property(*other.admin, Property::version) == 0x00010400);
}

TEST_CASE("A target that drains closes a connection when the host has its answers, not when they are on their way") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& io = rig.io_queue(association, Qid(1));
  rig.network.faults().exhaust_receives("host", std::chrono::milliseconds(100));
  const auto cid = io.submit(nvme::encode_flush(Nsid(1)));
  rig.run_for(std::chrono::milliseconds(20));  // carried out, answered, and the answer not taken
  rig.target->drain(std::chrono::seconds(10));
  rig.expect([&] { return io.ended(); }, "the connection is closed");
  const auto answer = io.take(cid);
  REQUIRE(answer.has_value());
  CHECK(answer->status().ok());
}

TEST_CASE("A listener whose address goes away is opened again when the address is back") {
  TargetRig rig;
  const auto before = rig.associate();
  rig.network.faults().change_address("target");
  rig.expect([&] { return before.admin->ended(); }, "the connection over that address ends");
  CHECK(rig.logger.said("it is tried again every second"));
  rig.expect([&] { return rig.logger.said("hosts can connect there again"); }, "the listener is opened again");
  const auto after = rig.associate();
  CHECK(rig.get_property(*after.admin, Property::version) == 0x00010400);
}

TEST_CASE("A listener whose device is gone for good is tried until the target leaves") {
  TargetRig rig;
  rig.network.faults().remove_device("target");
  rig.run_for(std::chrono::seconds(10));
  CHECK(rig.logger.said("it is tried again every second"));
  CHECK_FALSE(rig.logger.said("hosts can connect there again"));
  rig.target->drain(std::chrono::seconds(1));
  rig.expect([&] { return rig.target->drained(); }, "the target leaves");
  rig.run_for(std::chrono::seconds(3));  // and nothing is tried any more
  CHECK_FALSE(rig.logger.said("hosts can connect there again"));
}
