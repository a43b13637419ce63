// Connection requests and Connects that lie: the request is refused with a reason, or Connect with the place of the lie.

#include <algorithm>
#include <cstring>

#include "tests/wire/hostile_host.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using nvme::CmReject;
using nvme::StatusCode;

namespace {

nvme::CmRequestData decent_request(std::uint16_t qid = 0, std::uint32_t entries = 32) {
  return nvme::encode_cm_request(
      {.qid = Qid(qid), .host_receives = entries, .host_sends = entries, .cntlid = Cntlid(0)});
}

constexpr std::uint32_t in_data(std::size_t offset) {
  return 1u << 16 | static_cast<std::uint32_t>(offset);
}
constexpr std::size_t kSubsystemAt = 256;
constexpr std::size_t kHostAt = 512;

/// A Connect that can be anything, on an admin queue that is open.
struct Liar : HostileRig {
  explicit Liar(RigOptions options = {})
      : HostileRig(std::move(options)),
        open(queue_up(Qid(0))),
        sqe(std::bit_cast<nvme::ConnectCommand>(nvme::encode_connect(decent()))),
        data(nvme::encode_connect_data(decent())) {}
  [[nodiscard]] nvme::ConnectRequest decent() const { return connect_request(Qid(0), nvme::kCntlidDynamic); }
  Response say_connect() {
    return connect(open, std::bit_cast<nvme::SubmissionQueueEntry>(sqe), std::as_bytes(std::span(&data, 1)));
  }
  void expect_refused(std::uint32_t dw0) {
    const auto response = say_connect();
    CHECK(response.code() == StatusCode::connect_invalid_parameters);
    CHECK(response.cqe.dw0() == dw0);
    CHECK(target->statistics().controllers == 1);  // the neighbour's
  }
  void set_name(char (&field)[256], std::string_view text) {
    std::ranges::fill(field, '\0');
    std::ranges::copy(text, std::begin(field));
  }
  RawQueue& open;
  nvme::ConnectCommand sqe;
  nvmf_connect_data data;
};

}  // namespace

// ---- connection requests

TEST_CASE("A connection request that ends before its queue sizes is refused, whatever its length") {
  HostileRig rig;
  const auto data = decent_request();
  for (std::size_t size = 0; size < 7; ++size)
    CHECK(rig.refusal(nvme::wire_bytes(data).first(size)).has_value());
}

TEST_CASE("What stands behind the 32 bytes of a connection request is not looked at") {
  HostileRig rig;
  auto bytes = some_bytes(56, 3);
  const auto data = decent_request();
  std::memcpy(bytes.data(), &data, sizeof data);
  CHECK(rig.refusal(bytes) == std::nullopt);
}

TEST_CASE("A connection request of another record format is refused") {
  HostileRig rig;
  for (const auto format : Words{1, 0x100, 0xffff}) {
    auto data = decent_request();
    data.record_format = format;
    CHECK(rig.refusal(nvme::wire_bytes(data)) == CmReject::invalid_record_format);
  }
}

TEST_CASE("A connection request for a queue beyond those there are is refused") {
  HostileRig rig;
  for (const auto qid : Words{65, 0x7fff, 0xffff})
    CHECK(rig.refusal(nvme::wire_bytes(decent_request(qid))) == CmReject::invalid_qid);
}

TEST_CASE("A connection request for a queue of one entry, of 65536, or of more than there may be is refused") {
  HostileRig rig;
  for (const auto qid : Words{0, 1})
    for (const auto hsqsize : Words{0, 1024, 0x7fff, 0xffff}) {
      auto data = decent_request(qid);
      data.host_send_queue_size = hsqsize;
      CHECK(rig.refusal(nvme::wire_bytes(data)) == CmReject::invalid_host_send_queue_size);
    }
  auto data = decent_request();
  data.host_send_queue_size = std::uint16_t{32};  // an admin queue of 33
  CHECK(rig.refusal(nvme::wire_bytes(data)) == CmReject::invalid_host_send_queue_size);
}

TEST_CASE("A connection request without a receive for any response is refused") {
  HostileRig rig;
  auto data = decent_request();
  data.host_receive_queue_size = std::uint16_t{0};
  CHECK(rig.refusal(nvme::wire_bytes(data)) == CmReject::invalid_host_receive_queue_size);
}

TEST_CASE("A host that serves no RDMA READs is refused") {
  HostileRig rig;
  CHECK(rig.refusal(nvme::wire_bytes(decent_request()), 0) == CmReject::invalid_responder_resources);
}

TEST_CASE("A connection request for a controller that does not exist is refused") {
  HostileRig rig;
  for (const auto cntlid : Words{77, 0xffef, 0xffff}) {
    auto data = decent_request(1);
    data.cntlid = cntlid;
    CHECK(rig.refusal(nvme::wire_bytes(data)) == CmReject::invalid_controller_id);
  }
}

TEST_CASE("A queue for a neighbour's controller gets a connection, and nothing of the controller") {
  HostileRig rig;
  const Cntlid neighbours(1);  // it came first
  RawQueue& queue = rig.queue_up(Qid(2), 16, neighbours);
  auto request = rig.connect_request(Qid(2), neighbours, 16);
  auto response = rig.connect(queue, request);
  CHECK(response.code() == StatusCode::connect_invalid_parameters);  // not even its subsystem is said
  CHECK(response.cqe.dw0() == in_data(16));
  request.subsystem_nqn = nqn(HostileRig::kNeighbours);
  request.host_nqn = nqn("nqn.2024-01.example:thief");
  response = rig.connect(queue, request);
  CHECK(response.code() == StatusCode::connect_invalid_parameters);
  CHECK(response.cqe.dw0() == in_data(kHostAt));
}

TEST_CASE("Requests beyond the connections that there may be are refused, and those there are go on") {
  HostileRig rig({.limits = {.connections_max = 6}});
  int refused = 0;
  for (int i = 0; i < 20; ++i)
    refused += rig.refusal(nvme::wire_bytes(decent_request())) == CmReject::no_resources;
  CHECK(refused == 16);  // the neighbour has two
}

TEST_CASE("A host that has as many connections as one may have is refused, and other hosts come in") {
  HostileRig rig({.limits = {.connections_max = 100, .connections_per_host = 6}});
  int refused = 0;
  for (int i = 0; i < 10; ++i)
    refused += rig.refusal(nvme::wire_bytes(decent_request())) == CmReject::no_resources;
  CHECK(refused == 4);
  CHECK(rig.logger.said("host has 6 connections, which is the most that one host may have"));
  rig.as_another_host([&] { CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == std::nullopt); });
  rig.host->close_all();
  rig.expect([&] { return rig.target->statistics().connections() == 2; }, "they are gone");
  CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == std::nullopt);
}

TEST_CASE("A host that connects queues and never their controllers keeps others from nothing") {
  HostileRig rig({.limits = {.half_open_max = 8, .half_open_per_host = 4}});
  rig.come_in();  // no connection of these is half open
  for (int i = 0; i < 4; ++i)
    CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == std::nullopt);
  CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == CmReject::no_resources);
  CHECK(rig.logger.said("host has 4 connections without a successful Connect"));
  rig.as_another_host([&] { rig.expect_alive(rig.io_queue(rig.associate(), Qid(1))); });
  rig.expect([&] { return rig.target->statistics().connections() == 4; }, "the half open ones are gone");
  rig.expect_alive(rig.io_queue(rig.association, Qid(2)));
}

TEST_CASE("However many hosts connect queues and nothing more, there is a most of them, and their time ends") {
  HostileRig rig({.limits = {.half_open_max = 5, .half_open_per_host = 4}});
  for (int i = 0; i < 4; ++i)
    CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == std::nullopt);
  rig.as_another_host([&] {
    CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == std::nullopt);
    CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == CmReject::no_resources);
    CHECK(rig.logger.said("there are 5 connections without a successful Connect"));
    rig.run_for(6s);
    CHECK(rig.refusal(nvme::wire_bytes(decent_request())) == std::nullopt);
  });
}

TEST_CASE("A flood from one host, as large as it may be, leaves another's I/O and the next one's Connect alone") {
  HostileRig rig({.limits = {.connections_max = 64, .connections_per_host = 32, .half_open_per_host = 16}});
  rig.come_in();
  for (int round = 0; round < 200; ++round) {
    rig.host->connect(rig.address(), Qid(static_cast<std::uint16_t>(round % 3)), 32);
    if (!rig.queue->ended()) rig.queue->submit(nvme::encode_flush(Nsid(1)));
    if (round % 10 == 9) rig.let_neighbour_work(1);
    rig.queue->responses.clear();
  }
  rig.as_another_host([&] { rig.expect_alive(rig.io_queue(rig.associate(), Qid(1))); });
}

TEST_CASE("A flood of connection requests of every kind ends with the half-open time") {
  HostileRig rig;
  for (int round = 0; round < 4; ++round) {
    for (std::uint16_t i = 0; i < 60; ++i) {
      auto data = decent_request(i % 4);
      if (i % 5 == 0) data.record_format = std::uint16_t{7};
      rig.host->connect(rig.address(), nvme::wire_bytes(data));
    }
    rig.let_neighbour_work();
  }
  rig.run_for(8s);
  CHECK(rig.target->statistics().connections() == 2);
  rig.come_in();
  rig.expect_alive(*rig.queue);
}

TEST_CASE("A host that asks for a connection and is never heard of again is forgotten") {
  HostileRig rig;
  for (int i = 0; i < 20; ++i)
    rig.host->connect(rig.address(), Qid(0), 32);
  rig.run_for(3us);  // the requests are on their way, the answers are not
  rig.network.faults().partition("host", "target");
  rig.run_for(12s);
  CHECK(rig.target->statistics().connections() == 2);
}

TEST_CASE("A host that hangs up before its connection is established leaves nothing behind") {
  HostileRig rig;
  for (int i = 0; i < 60; ++i) {
    RawQueue& queue = rig.host->connect(rig.address(), Qid(0), 32);
    rig.run_for(std::chrono::nanoseconds(400 * i));
    if (queue.connection != nullptr) queue.connection->close();
  }
  rig.expect([&] { return rig.target->statistics().connections() == 2; }, "they are gone");
}

TEST_CASE("A command that is there as soon as the connection is waits for the connection") {
  HostileRig rig;
  for (int i = 0; i < 20; ++i) {
    RawQueue& queue = rig.host->connect(rig.address(), Qid(0), 32);
    REQUIRE(rig.network.run_for(1s, [&] { return queue.established; }) == transport::sim::Network::Outcome::done);
    const std::uint16_t cid = queue.submit(nvme::encode_plain(nvme::AdminOpcode::keep_alive));
    rig.expect([&] { return !queue.responses.empty(); }, "it is answered");
    CHECK(queue.take(cid)->code() == StatusCode::command_sequence_error);
    queue.connection->close();
  }
}

TEST_CASE("Connects that are refused do not make a connection live longer") {
  Liar liar;
  liar.sqe.record_format = std::uint16_t{1};
  for (int i = 0; i < 4; ++i) {
    CHECK(liar.say_connect().code() == StatusCode::connect_incompatible_format);
    liar.run_for(1s);
  }
  CHECK_FALSE(liar.open.ended());
  liar.run_for(1500ms);
  CHECK(liar.open.ended());
}

// ---- Connect

TEST_CASE("A subsystem or host name that is none is pointed at") {
  Liar liar;
  const std::string longest = "nqn." + std::string(220, 'x');  // 224: one too many
  for (const std::string& bad : {std::string(), std::string("n"), std::string("iqn.2024-01.example:disk"), longest,
                                 std::string("nqn.2024-01.example:\n\x1b[2J"), std::string(256, 'q')}) {
    liar.set_name(liar.data.subsysnqn, bad);
    liar.expect_refused(in_data(kSubsystemAt));
    liar.set_name(liar.data.subsysnqn, kSubsystem);
    liar.set_name(liar.data.hostnqn, bad);
    liar.expect_refused(in_data(kHostAt));
    liar.set_name(liar.data.hostnqn, kHost);
  }
  CHECK(liar.say_connect().status().ok());
}

TEST_CASE("What a host calls itself is printed escaped") {
  HostileRig rig({.allow_any_host = false, .allowed_hosts = {{.nqn = nqn(kHost)}}});
  RawQueue& queue = rig.queue_up(Qid(0));
  auto request = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  request.host_nqn =
      nqn("nqn.2024-01.example:\xc2\x9b"
          "2J");  // CSI, as UTF-8
  CHECK(rig.connect(queue, request).code() == StatusCode::connect_invalid_host);
  CHECK(rig.logger.said("may not connect"));
  CHECK_FALSE(rig.logger.said("\xc2\x9b"));
}

TEST_CASE("An unknown subsystem is pointed at") {
  Liar liar;
  liar.set_name(liar.data.subsysnqn, "nqn.2024-01.example:another");
  liar.expect_refused(in_data(kSubsystemAt));
}

TEST_CASE("A host cannot choose its controller") {
  Liar liar;
  for (const auto cntlid : Words{0, 1, 0xffef, 0xfff0, 0xfffe}) {
    liar.data.cntlid = nvme::to_le(cntlid);
    liar.expect_refused(in_data(16));
  }
}

TEST_CASE("A host identifier of zero is a host without identity, and gets its controller") {
  Liar liar;
  std::ranges::fill(liar.data.hostid, std::uint8_t{0});
  CHECK(liar.say_connect().status().ok());
}

TEST_CASE("The longest keep-alive timeout is seven weeks, not a moment") {
  Liar liar;
  liar.sqe.keep_alive_ms = 0xffffffffu;
  CHECK(liar.say_connect().status().ok());
  liar.run_for(10s);
  CHECK_FALSE(liar.open.ended());
}

TEST_CASE("The shortest keep-alive timeout ends its own controller") {
  Liar liar;
  liar.sqe.keep_alive_ms = 1u;
  CHECK(liar.say_connect().status().ok());
  liar.expect_closed(liar.open);
}

TEST_CASE("A queue size of one entry, or of more than the connection has, is pointed at") {
  Liar liar;
  for (const auto sqsize : Words{0, 32, 1023, 1024, 0xffff}) {
    liar.sqe.sqsize = sqsize;
    liar.expect_refused(44);
  }
}

TEST_CASE("A Connect for another queue than its connection's is pointed at") {
  Liar liar;
  for (const auto qid : Words{1, 64, 0xffff}) {
    liar.sqe.qid = qid;
    liar.data.cntlid = nvme::to_le(std::uint16_t{1});  // an I/O queue's names one
    liar.expect_refused(42);
  }
}

TEST_CASE("Another record format of Connect is refused as such") {
  Liar liar;
  for (const auto format : Words{1, 0x8000}) {
    liar.sqe.record_format = format;
    CHECK(liar.say_connect().code() == StatusCode::connect_incompatible_format);
  }
}

TEST_CASE("Connect data of any length but 1024 bytes are refused") {
  Liar liar;
  HostMemory memory(liar.open.connection->domain(), 2048);
  for (const std::uint32_t length : {0u, 1u, 1023u, 1025u, 2048u, 0xffffffu}) {
    auto sqe = std::bit_cast<nvme::SubmissionQueueEntry>(liar.sqe);
    sqe.sgl = memory.keyed(length);
    CHECK(liar.code(liar.open, sqe) == StatusCode::sgl_invalid_length);
    sqe.sgl = HostileRig::in_capsule(0, length);
    CHECK(liar.code(liar.open, sqe, some_bytes(1000, 1)) == StatusCode::sgl_invalid_length);
  }
}

TEST_CASE("Connect data that cannot be fetched cost the connection, and make no controller") {
  Liar liar;
  auto sqe = std::bit_cast<nvme::SubmissionQueueEntry>(liar.sqe);
  sqe.sgl = nvme::encode_data_pointer(nvme::KeyedData{0x1000, nvme::kConnectDataBytes, 0xbad});
  liar.open.submit(sqe);
  liar.expect_closed(liar.open);
  CHECK(liar.target->statistics().controllers == 1);
}

TEST_CASE("Random bytes as Connect data, and random Connects, make no controller") {
  Liar liar;
  Random random(11);
  for (int i = 0; i < 200; ++i) {
    auto data = some_bytes(nvme::kConnectDataBytes, random());
    if (i % 2 == 0) std::memcpy(data.data() + kSubsystemAt, kSubsystem, sizeof("nqn.2024-01.example:disk"));
    auto sqe = std::bit_cast<nvme::SubmissionQueueEntry>(liar.sqe);
    sqe.cdw11 = static_cast<std::uint32_t>(random());
    if (liar.open.ended()) break;
    CHECK_FALSE(liar.connect(liar.open, sqe, data).status().ok());
    CHECK(liar.target->statistics().controllers == 1);
  }
}

TEST_CASE("An I/O queue's Connect before the controller is enabled is a sequence error") {
  Liar liar;
  const auto cntlid = nvme::parse_connect_response(liar.say_connect().cqe.dw0()).cntlid;
  RawQueue& queue = liar.queue_up(Qid(1), 16, cntlid);
  CHECK(liar.connect(queue, liar.connect_request(Qid(1), cntlid, 16)).code() == StatusCode::command_sequence_error);
}

TEST_CASE("An I/O queue with other names than its controller's host is refused") {
  HostileRig rig;
  rig.come_in();
  RawQueue& queue = rig.queue_up(Qid(2), 16, rig.association.cntlid);
  const auto decent = rig.connect_request(Qid(2), rig.association.cntlid, 16);
  auto request = decent;
  request.host_nqn = nqn("nqn.2024-01.example:other");
  CHECK(rig.connect(queue, request).cqe.dw0() == in_data(kHostAt));
  request = decent;
  request.host_id = nvme::HostId(std::array<std::uint8_t, 16>{1, 2, 4});
  CHECK(rig.connect(queue, request).cqe.dw0() == in_data(0));
  request = decent;
  request.subsystem_nqn = nqn(HostileRig::kNeighbours);
  CHECK(rig.connect(queue, request).cqe.dw0() == in_data(16));
  CHECK(rig.connect(queue, decent).status().ok());
}

TEST_CASE("Of two connections for one queue id one becomes the queue") {
  HostileRig rig;
  rig.come_in();
  RawQueue& first = rig.queue_up(Qid(2), 16, rig.association.cntlid);
  RawQueue& second = rig.queue_up(Qid(2), 16, rig.association.cntlid);
  const auto request = rig.connect_request(Qid(2), rig.association.cntlid, 16);
  CHECK(rig.connect(second, request).status().ok());
  CHECK(rig.connect(first, request).code() == StatusCode::command_sequence_error);
  rig.expect_alive(second);
}

TEST_CASE("A second Connect on a queue, and two at once, make one controller") {
  Liar liar;
  HostMemory memory(liar.open.connection->domain(), sizeof liar.data);
  std::memcpy(memory.bytes().data(), &liar.data, sizeof liar.data);
  auto sqe = std::bit_cast<nvme::SubmissionQueueEntry>(liar.sqe);
  sqe.sgl = memory.keyed(sizeof liar.data);
  for (int i = 0; i < 8; ++i)
    liar.open.submit(sqe);
  liar.expect([&] { return liar.open.responses.size() == 8; }, "all are answered");
  const auto good = std::ranges::count_if(liar.open.responses, [](const Response& r) { return r.status().ok(); });
  CHECK(good == 1);
  CHECK(liar.target->statistics().controllers == 2);
  liar.open.responses.clear();
  CHECK(liar.say_connect().code() == StatusCode::command_sequence_error);
}

TEST_CASE("Controllers that come and go by the hundred leave nothing behind") {
  HostileRig rig;
  for (int i = 0; i < 150; ++i) {
    const auto association = rig.associate();
    if (i % 3 == 0) rig.io_queue(association, Qid(1), 16);
    association.admin->connection->close();
    if (i % 10 == 0) rig.let_neighbour_work(1);
  }
}
