#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using Catch::Matchers::Contains;
using transport::sim::Network;

namespace {

nvmf_disc_log_entry record(const char* nqn, const char* address) {
  nvmf_disc_log_entry entry{};
  entry.trtype = 1;
  entry.adrfam = 1;
  entry.subtype = 2;
  entry.portid = nvme::to_le(std::uint16_t{1});
  entry.cntlid = nvme::to_le(std::uint16_t{0xffff});
  entry.asqsz = nvme::to_le(std::uint16_t{32});
  std::strcpy(entry.subnqn, nqn);
  std::strcpy(entry.traddr, address);
  std::strcpy(entry.trsvcid, "4420");
  return entry;
}

}  // namespace

TEST_CASE("A session learns who its controller is and which namespaces it has") {
  Network network;
  RawTarget target(network);
  Host host(network);
  const auto session = host.connect(target.uri());
  CHECK(session->state() == initiator::SessionState::live);
  CHECK(session->controller().model == "raw");
  CHECK(session->controller().cntlid == Cntlid(7));
  CHECK(session->controller().transfer_max == Bytes(128 * kKiB));
  CHECK(session->controller().in_capsule_max == 4096);
  REQUIRE(session->namespaces().size() == 1);
  const initiator::Namespace& one = session->namespaces().front();
  CHECK(one.nsid == Nsid(1));
  CHECK(one.blocks == Blocks(RawTarget::kBlocks));
  CHECK(one.block_size() == 512);
  CHECK(one.nguid[0] == 0x11);
  CHECK(one.volatile_write_cache);
  CHECK(session->io_queues() == 1);
}

TEST_CASE("The admin queue's commands come in the Linux host's order") {
  Network network;
  RawTarget target(network);
  Host host(network);
  const auto session = host.connect(target.uri());
  std::vector<int> seen;
  for (const auto& sqe : target.commands)
    seen.push_back(sqe.is_fabrics() ? 0x7f00 | int(sqe.fabrics_type()) : sqe.opcode << 8 | int(sqe.cdw10.get() & 0xff));
  const std::vector<int> expected = {0x7f01, 0x7f04, 0x7f00, 0x7f04, 0x7f04,  // Connect, CAP, CC, CSTS, VS
                                     0x0601, 0x0606,                          // Identify Controller, command limits
                                     0x0907, 0x090b, 0x0c00, 0x0c00, 0x0c00, 0x0c00, 0x0602, 0x0600, 0x0603};
  CHECK(seen == expected);
}

TEST_CASE("Connect carries the host's names, the keep-alive and queue sizes one above the depth") {
  Network network;
  RawTarget target(network);
  Host host(network);
  host.options.host.nqn = nvme::Nqn::parse("nqn.2024-01.io.example:me").value();
  host.options.host.id = nvme::HostId(nvme::Uuid::parse("11111111-2222-4333-8444-555555555555").value());
  host.options.keep_alive = 7s;
  const auto session = host.connect(target.uri());
  CHECK(target.last_connect->host_nqn.text() == "nqn.2024-01.io.example:me");
  CHECK(target.last_connect->host_id == *host.options.host.id);
  CHECK(target.last_connect->keep_alive == 7000ms);
  CHECK(target.last_connect->cntlid == nvme::kCntlidDynamic);
  CHECK(target.last_connect->queue_entries == 32);
  const auto queue = host.open(*session, {.depth = 64});
  CHECK(target.last_connect->qid == Qid(1));
  CHECK(target.last_connect->cntlid == Cntlid(7));
  CHECK(target.last_connect->queue_entries == 65);
  CHECK(target.link(Qid(1))->request().host_sends == 65);
  CHECK(target.link(Qid(1))->request().host_receives == 65);
}

TEST_CASE("The URI's hostnqn, hostid, queues, depth and keep-alive go before the options") {
  Network network;
  RawTarget target(network);
  Host host(network);
  auto uri = target.uri();
  uri.options["hostnqn"] = "nqn.2024-01.io.example:uri";
  uri.options["hostid"] = "11111111-2222-4333-8444-555555555555";
  uri.options["queues"] = "3";
  uri.options["depth"] = "17";
  uri.options["keep-alive"] = "3";
  const auto session = host.connect(uri);
  CHECK(target.last_connect->keep_alive == 3000ms);
  CHECK(session->host_nqn().text() == "nqn.2024-01.io.example:uri");
  CHECK(session->io_queues() == 3);
  CHECK(host.open(*session)->depth() == 17);
  uri.options["depth"] = "70000";
  CHECK_THAT(host.refusal(uri), Contains("depth=70000") && Contains("1 to 1023"));
}

TEST_CASE("A session ends in order: shutdown first, then the connection") {
  Network network;
  RawTarget target(network);
  Host host(network);
  auto session = host.connect(target.uri());
  target.commands.clear();
  session->close();
  CHECK(session->state() == initiator::SessionState::closed);
  REQUIRE(target.commands.size() == 2);
  const auto access = nvme::parse_property(target.commands[0]).value();
  CHECK(nvme::Configuration{static_cast<std::uint32_t>(access.value)}.shutdown() == nvme::Shutdown::normal);
  host.run(1s);
  CHECK(target.links() == 0);
}

TEST_CASE("A controller that never finishes its shutdown holds the end up for two seconds") {
  Network network;
  RawTarget target(network);
  Host host(network);
  auto session = host.connect(target.uri());
  target.script = [](auto& link, const auto& capsule) {
    link.respond(capsule.sqe);
    return true;
  };
  const Instant before = network.clock().now();
  session->close();
  CHECK(network.clock().now() - before >= 2s);
  CHECK(network.clock().now() - before < 3s);
}

TEST_CASE("Nobody at the address is an error that says so") {
  Network network;
  Host host(network);
  const auto uri = Uri::parse("nvme+sim://nowhere/nqn.2024-01.io.example:raw").value();
  CHECK_THAT(host.refusal(uri), Contains("connecting admin queue of nvme+sim://nowhere"));
}

TEST_CASE("Nobody answering costs nearly all of the connect timeout, short or long, and the fabric says why") {
  Network network;
  RawTarget target(network);
  Host host(network);
  network.faults().kill("target");
  host.options.connect_timeout = GENERATE(2s, 20s);
  const Instant before = network.clock().now();
  CHECK_THAT(host.refusal(target.uri()), Contains("connecting admin queue of") && Contains("no answer"));
  CHECK(network.clock().now() - before >= host.options.connect_timeout * 8 / 10);
  CHECK(network.clock().now() - before <= host.options.connect_timeout);
}

TEST_CASE("A URI without a subsystem is refused with the way to find one") {
  Network network;
  RawTarget target(network);
  Host host(network);
  CHECK_THAT(host.refusal(target.discovery_uri()), Contains("rbt-connect discover"));
}

TEST_CASE("A refused connection request is explained") {
  Network network;
  RawTarget target(network);
  Host host(network);
  const auto reject = nvme::encode_cm_reject(nvme::CmReject::no_resources);
  const auto bytes = nvme::wire_bytes(reject);
  target.refuse = std::vector<std::byte>(bytes.begin(), bytes.end());
  CHECK_THAT(host.refusal(target.uri()),
             Contains("refused") && Contains(std::string(name(nvme::CmReject::no_resources))));
}

TEST_CASE("A refused Connect is explained") {
  Network network;
  RawTarget target(network);
  Host host(network);
  nvme::Status status;
  std::uint32_t dw0 = 0;
  target.script = [&](auto& link, const auto& capsule) {
    if (!capsule.sqe.is_fabrics() || capsule.sqe.fabrics_type() != nvme::FabricsType::connect) return false;
    link.respond(capsule.sqe, status, dw0);
    return true;
  };
  SECTION("with the field that the target objects to") {
    const auto wrong = nvme::invalid_connect_data(256);
    status = wrong.status;
    dw0 = wrong.dw0;
    CHECK_THAT(host.refusal(target.uri()), Contains("subsystem NQN") && Contains(kRawNqn));
  }
  SECTION("with the host that is not allowed") {
    status = nvme::Status::permanent(nvme::StatusCode::connect_invalid_host);
    auto session = host.try_connect(target.uri());
    REQUIRE_FALSE(session);
    CHECK(session.error().kind() == ErrorKind::permission);
    CHECK_THAT(session.error().message(), Contains("not allowed") && Contains("nqn.2014-08.org.nvmexpress:uuid:"));
  }
  SECTION("with authentication") {
    status = nvme::Status::permanent(nvme::StatusCode::authentication_required);
    CHECK_THAT(host.refusal(target.uri()), Contains("authentication"));
  }
  SECTION("as busy") {
    status = nvme::StatusCode::connect_controller_busy;
    CHECK_THAT(host.refusal(target.uri()), Contains("busy"));
  }
}

TEST_CASE("A target that goes silent during connect costs the connect timeout and no more") {
  Network network;
  RawTarget target(network);
  Host host(network);
  host.options.connect_timeout = 3s;
  std::size_t answered = GENERATE(0u, 1u, 2u, 4u, 6u, 8u, 14u);
  target.script = [answered](auto&, const auto&) mutable { return answered-- == 0 ? (answered = 0, true) : false; };
  const Instant before = network.clock().now();
  CHECK_THAT(host.refusal(target.uri()), Contains("not answered within"));
  CHECK(network.clock().now() - before >= 3s);
  CHECK(network.clock().now() - before < 4s);
}

TEST_CASE("More queue pairs than were granted are refused, and a closed one makes room") {
  Network network;
  RawTarget target(network);
  target.queues_granted = 2;
  Host host(network);
  host.options.io_queues = 5;
  const auto session = host.connect(target.uri());
  CHECK(session->io_queues() == 2);
  auto first = host.open(*session);
  auto second = host.open(*session);
  auto third = session->open_queue_pair(*host.reactor, {});
  REQUIRE_FALSE(third);
  CHECK(third.error().kind() == ErrorKind::resource);
  first.reset();
  CHECK(host.open(*session)->qid() == Qid(1));
}

TEST_CASE("The depth is cut to MQES, to MAXCMD and to the controller's receives") {
  Network network;
  RawTarget target(network);
  Host host(network);
  SECTION("MQES") {
    target.capabilities = target.capabilities.with_queue_entries_max(33);
  }
  SECTION("MAXCMD") {
    target.controller.maxcmd = nvme::to_le(std::uint16_t{32});
  }
  const auto session = host.connect(target.uri());
  SECTION("CRQSIZE") {
    const auto reply = nvme::encode_cm_accept(32);
    const auto bytes = nvme::wire_bytes(reply);
    target.accept_data.assign(bytes.begin(), bytes.end());
  }
  CHECK(host.open(*session, {.depth = 128})->depth() == 32);
}

TEST_CASE("Keep-alives come at half the timeout, and a target that stops answering them loses the session") {
  Network network;
  RawTarget target(network);
  Host host(network);
  host.options.keep_alive = 4s;
  std::vector<std::string> lost;
  host.options.on_lost = [&](const Error& error) { lost.push_back(error.message()); };
  const auto session = host.connect(target.uri());
  host.run(21s);
  CHECK(target.count(0x18) == 10);
  CHECK(session->state() == initiator::SessionState::live);
  target.script = [](auto&, const auto& capsule) { return capsule.sqe.opcode == 0x18; };
  host.run(8s);
  CHECK(session->state() == initiator::SessionState::lost);
  REQUIRE(lost.size() == 1);
  CHECK_THAT(session->failure()->message(),
             Contains("admin queue") && Contains("Keep Alive was not answered within 4 s;"));
}

TEST_CASE("An event is acknowledged by its log page and handed on; floods are slowed") {
  Network network;
  RawTarget target(network);
  Host host(network);
  std::vector<nvme::AsyncEvent> events;
  host.options.on_event = [&](const nvme::AsyncEvent& event) { events.push_back(event); };
  const auto session = host.connect(target.uri());
  target.raise_event(nvme::encode_async_event({.type = 2, .info = 0, .lid = NVME_LOG_LID_CHANGED_NS}));
  host.run(100ms);
  REQUIRE(events.size() == 1);
  CHECK(events[0].lid == NVME_LOG_LID_CHANGED_NS);
  CHECK(target.count(0x02) == 1);
  CHECK(target.count(0x0c) == 5);
  target.script = [](auto& link, const auto& capsule) {
    if (capsule.sqe.opcode != 0x0c || capsule.sqe.is_fabrics()) return false;
    link.respond(capsule.sqe, {}, 2);
    return true;
  };
  for (int i = 0; i < 4; ++i)
    target.raise_event(2);
  host.run(1s);
  CHECK(events.size() > 100);
  CHECK(events.size() <= 500);  // 4 requests, one event per 10 ms each
}

TEST_CASE("An admin command of the caller's goes out and its data come back") {
  Network network;
  RawTarget target(network);
  Host host(network);
  const auto session = host.connect(target.uri());
  nvme_id_ctrl data{};
  auto answer = session->admin(nvme::encode_identify({.cns = 1}), std::as_writable_bytes(std::span(&data, 1)));
  REQUIRE(answer);
  CHECK(answer->status().ok());
  CHECK(data.cntlid == target.controller.cntlid);
  answer = session->admin(nvme::encode_plain(nvme::AdminOpcode::self_test), {});
  REQUIRE(answer);
  CHECK(answer->status().code() == nvme::StatusCode::invalid_opcode);
}

TEST_CASE("Discovery returns every record, in pieces, from an untouched log") {
  Network network;
  RawTarget target(network);
  target.controller.cntrltype = NVME_CTRL_CNTRLTYPE_DISCOVERY;
  for (int i = 0; i < 9; ++i)
    target.records.push_back(record(("nqn.2024-01.io.example:" + std::to_string(i)).c_str(), "10.0.0.1"));
  Host host(network);
  auto log = initiator::discover(host.environment(), target.discovery_uri(), {.management = host.reactor.get()});
  if (!log) FAIL(log.error().message());
  REQUIRE(log->entries.size() == 9);
  CHECK(log->entries[8].subsystem_nqn == "nqn.2024-01.io.example:8");
  CHECK(log->entries[0].address == "10.0.0.1");
  CHECK(log->entries[0].service == "4420");
  CHECK(target.last_connect->subsystem_nqn.is_discovery());
  CHECK(target.count(0x02) == 5);  // header, three chunks, header
  CHECK(target.links() == 0);
}

TEST_CASE("A discovery log that changes while it is read is read again") {
  Network network;
  RawTarget target(network);
  target.controller.cntrltype = NVME_CTRL_CNTRLTYPE_DISCOVERY;
  target.records = {record("nqn.2024-01.io.example:old", "10.0.0.1")};
  Host host(network);
  SECTION("once") {
    int reads = 0;
    target.script = [&](auto&, const auto& capsule) {
      if (capsule.sqe.opcode == 0x02 && ++reads == 3) {
        ++target.generation;
        target.records.push_back(record("nqn.2024-01.io.example:new", "10.0.0.1"));
      }
      return false;
    };
    auto log = initiator::discover(host.environment(), target.discovery_uri(), {.management = host.reactor.get()});
    REQUIRE(log);
    CHECK(log->entries.size() == 2);
    CHECK(log->generation == 2);
  }
  SECTION("for ever: given up after eight rounds") {
    target.script = [&](auto&, const auto& capsule) {
      if (capsule.sqe.opcode == 0x02) ++target.generation;
      return false;
    };
    auto log = initiator::discover(host.environment(), target.discovery_uri(), {.management = host.reactor.get()});
    REQUIRE_FALSE(log);
    CHECK_THAT(log.error().message(), Contains("changed each of the 8 times"));
    CHECK(target.count(0x02) == 17);
  }
}

TEST_CASE("A discovery log that claims a billion records is refused before any is read") {
  Network network;
  RawTarget target(network);
  target.controller.cntrltype = NVME_CTRL_CNTRLTYPE_DISCOVERY;
  target.claimed_records = GENERATE(4097ull, 1'000'000'000ull, ~0ull);
  Host host(network);
  auto log = initiator::discover(host.environment(), target.discovery_uri(), {.management = host.reactor.get()});
  REQUIRE_FALSE(log);
  CHECK_THAT(log.error().message(), Contains("4096 are accepted"));
  CHECK(target.count(0x02) == 1);
}
