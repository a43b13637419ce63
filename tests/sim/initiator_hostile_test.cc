// HOSTILE, host side: a target that lies costs its connection or gets a clear error, and nothing else.
#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using Catch::Matchers::Contains;
using initiator::Outcome;
using initiator::Submitted;
using transport::sim::Network;

namespace {

/// A live session with one queue pair and a read that the target does not answer.
struct Victim {
  Victim()
      : target(network),
        host(network),
        session(host.connect(target.uri())),
        queue(host.open(*session, {.depth = 8})),
        memory(4096) {
    target.script = [this](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
      if (link.qid() != Qid(1)) return false;
      io = &link;
      last = capsule.sqe;
      return true;
    };
    REQUIRE(queue->read(ticket.request, session->namespaces().front(), Lba(0), memory.all()) == Submitted::accepted);
    REQUIRE(queue->read(other.request, session->namespaces().front(), Lba(8), memory.all()) == Submitted::accepted);
    host.run(10ms);
    REQUIRE(io != nullptr);
  }
  [[nodiscard]] nvme::CompletionQueueEntry answer() const {
    nvme::CompletionQueueEntry cqe;
    cqe.cid = last.cid;
    cqe.sqhd = 1;
    return cqe;
  }
  /// The connection is gone for it, both requests are done once with `disconnected`, the session itself lives.
  void expect_violation(const std::string& words) {
    host.run(100ms);
    REQUIRE(queue->failure() != nullptr);
    CHECK_THAT(queue->failure()->message(), Contains(words) && Contains("I/O queue 1"));
    CHECK(queue->failure()->kind() == ErrorKind::protocol);
    CHECK(ticket.done == 1);
    CHECK(other.done == 1);
    CHECK(ticket.request.outcome == Outcome::disconnected);
    CHECK(other.request.outcome == Outcome::disconnected);
    CHECK(queue->in_flight() == 0);
    CHECK(queue->read(ticket.request, session->namespaces().front(), Lba(0), memory.all()) == Submitted::dead);
    CHECK(session->state() == initiator::SessionState::live);
    CHECK(host.log.lines.size() == 1);  // said once
    io = nullptr;
  }

  Network network;
  RawTarget target;
  Host host;
  std::unique_ptr<initiator::Session> session;
  Memory memory_before{1};
  std::unique_ptr<initiator::QueuePair> queue;
  Memory memory;
  Ticket ticket;
  Ticket other;
  RawTarget::Link* io = nullptr;
  nvme::SubmissionQueueEntry last;
};

}  // namespace

TEST_CASE("A response shorter than 16 bytes ends the connection") {
  Victim v;
  const std::size_t size = GENERATE(0u, 1u, 15u);
  const auto cqe = v.answer();
  v.io->send(nvme::wire_bytes(cqe).first(size));
  v.expect_violation("16 are needed");
}

TEST_CASE("A response for no outstanding command ends the connection") {
  Victim v;
  auto cqe = v.answer();
  SECTION("a slot that does not exist") {
    cqe.cid = static_cast<std::uint16_t>(1023);
  }
  SECTION("a slot that is free") {
    cqe.cid = static_cast<std::uint16_t>((v.last.cid.get() & ~1023) | 7);
  }
  SECTION("a former use of the slot") {
    cqe.cid = static_cast<std::uint16_t>(v.last.cid.get() + 1024);
  }
  v.io->send(nvme::wire_bytes(cqe));
  v.expect_violation("no outstanding command");
}

TEST_CASE("A second response to one command ends the connection; the first one counts") {
  Victim v;
  const auto cqe = v.answer();
  v.io->send(nvme::wire_bytes(cqe));
  v.io->send(nvme::wire_bytes(cqe));
  v.host.run(100ms);
  CHECK(v.other.request.outcome == Outcome::success);
  CHECK(v.other.done == 1);
  CHECK(v.ticket.request.outcome == Outcome::disconnected);
  CHECK(v.ticket.done == 1);
  REQUIRE(v.queue->failure() != nullptr);
  CHECK_THAT(v.queue->failure()->message(), Contains("no outstanding command"));
}

TEST_CASE("A submission queue head beyond the queue ends the connection") {
  Victim v;
  auto cqe = v.answer();
  cqe.sqhd = GENERATE(std::uint16_t{9}, std::uint16_t{0xffff});
  v.io->send(nvme::wire_bytes(cqe));
  v.expect_violation("SQHD");
}

TEST_CASE("A response that invalidates a key nobody offered ends the connection") {
  Victim v;
  const auto cqe = v.answer();
  nvme::KeyedDescriptor where;
  std::memcpy(&where, v.last.sgl.raw.data(), sizeof where);
  CHECK(where.type == 0x40);
  v.io->send_invalidating(nvme::wire_bytes(cqe), where.key.get());
  v.host.run(100ms);
  CHECK(v.ticket.request.outcome == Outcome::disconnected);
  CHECK(v.other.request.outcome == Outcome::disconnected);
  REQUIRE(v.queue->failure() != nullptr);
}

TEST_CASE("A message larger than any response ends the connection") {
  Victim v;
  v.io->send(std::vector<std::byte>(4096));
  v.host.run(2s);
  CHECK(v.ticket.request.outcome == Outcome::disconnected);
  CHECK(v.ticket.done == 1);
  CHECK(v.session->state() == initiator::SessionState::live);
}

TEST_CASE("The phase tag means nothing over fabrics") {
  Victim v;
  auto cqe = v.answer();
  cqe.status_field = static_cast<std::uint16_t>(1);
  v.io->send(nvme::wire_bytes(cqe));
  v.host.run(100ms);
  CHECK(v.other.request.outcome == Outcome::success);
  CHECK(v.queue->live());
}

TEST_CASE("An unknown status is passed on as it came") {
  Victim v;
  auto cqe = v.answer();
  cqe.status_field = static_cast<std::uint16_t>(0x1c5 << 1);
  v.io->send(nvme::wire_bytes(cqe));
  v.host.run(100ms);
  CHECK(v.other.request.outcome == Outcome::failed);
  CHECK(static_cast<int>(v.other.request.status.code()) == 0x1c5);
  CHECK(v.queue->live());
}

TEST_CASE("A lie in Identify Controller is refused with the field's name") {
  Network network;
  RawTarget target(network);
  Host host(network);
  std::string field;
  auto& id = target.controller;
  SECTION("CNTLID") {
    field = "CNTLID", id.cntlid = nvme::to_le(std::uint16_t{8});
  }
  SECTION("CNTRLTYPE") {
    field = "CNTRLTYPE", id.cntrltype = 2;
  }
  SECTION("SGLS") {
    field = "SGLS", id.sgls = nvme::to_le(std::uint32_t{1});
  }
  SECTION("ICDOFF") {
    field = "ICDOFF", id.icdoff = nvme::to_le(std::uint16_t{1});
  }
  SECTION("KAS") {
    field = "KAS", id.kas = 0;
  }
  SECTION("SQES too small") {
    field = "SQES", id.sqes = 0x55;
  }
  SECTION("SQES too large") {
    field = "SQES", id.sqes = 0x77;
  }
  SECTION("CQES") {
    field = "CQES", id.cqes = 0;
  }
  SECTION("IOCCSZ") {
    field = "IOCCSZ", id.ioccsz = nvme::to_le(std::uint32_t{3});
  }
  SECTION("IORCSZ") {
    field = "IORCSZ", id.iorcsz = 0;
  }
  SECTION("SUBNQN") {
    field = "SUBNQN", std::strcpy(id.subnqn, "nqn.2024-01.io.example:other");
  }
  CHECK_THAT(host.refusal(target.uri()), Contains("Identify Controller: " + field + " is"));
  host.run(1s);
  CHECK(target.links() == 0);
}

TEST_CASE("Extravagant claims in Identify are bounded, and I/O works all the same") {
  Network network;
  RawTarget target(network);
  Host host(network);
  auto& id = target.controller;
  std::uint64_t transfer = 128 * kKiB;
  SECTION("IOCCSZ 2^32 - 1") {
    id.ioccsz = nvme::to_le(~std::uint32_t{0});
  }
  SECTION("MDTS 0") {
    id.mdts = 0, transfer = kMiB;
  }
  SECTION("MDTS 255") {
    id.mdts = 255, transfer = kMiB;
  }
  SECTION("MDTS 1") {
    id.mdts = 1, transfer = 8 * kKiB;
  }
  SECTION("MSDBD 255") {
    id.msdbd = 255;
  }
  SECTION("NN 2^32 - 1") {
    id.nn = nvme::to_le(~std::uint32_t{0});
  }
  SECTION("MAXCMD 0") {
    id.maxcmd = 0;
  }
  SECTION("AERL 255") {
    id.aerl = 255;
  }
  SECTION("MPSMIN 15 with MDTS 255") {
    id.mdts = 255, target.capabilities.raw |= std::uint64_t{15} << 48, transfer = kMiB;
  }
  const auto session = host.connect(target.uri());
  CHECK(session->controller().transfer_max == Bytes(transfer));
  CHECK(session->controller().in_capsule_max == 4096);
  const auto queue = host.open(*session);
  Memory memory(2 * kMiB);
  memory.fill(network.random());
  Ticket write;
  REQUIRE(queue->write(write.request, session->namespaces().front(), Lba(0), memory.all()) == Submitted::accepted);
  REQUIRE(host.wait(*queue, write));
  CHECK(write.request.outcome == Outcome::success);
  CHECK(std::equal(memory.bytes.begin(), memory.bytes.end(), target.disk.begin()));
}

TEST_CASE("Text from the target is printable when it arrives") {
  Network network;
  RawTarget target(network);
  Host host(network);
  std::memcpy(target.controller.mn, "\x1b[2Jevil\x07", 9);
  CHECK_THAT(host.connect(target.uri())->controller().model,
             Contains("evil") && !Contains("\x1b") && !Contains("\x07"));
}

TEST_CASE("A controller id out of range in the answer to Connect is refused") {
  Network network;
  RawTarget target(network);
  target.cntlid = 0xfff0;
  Host host(network);
  CHECK_THAT(host.refusal(target.uri()), Contains("ffef"));
}

TEST_CASE("A controller that fails or never becomes ready is given up") {
  Network network;
  RawTarget target(network);
  Host host(network);
  SECTION("fatal") {
    target.controller_status = 2;
    CHECK_THAT(host.refusal(target.uri()), Contains("CSTS.CFS"));
  }
  SECTION("never ready: CAP.TO is the bound") {
    target.controller_status = 0;
    const Instant before = network.clock().now();
    CHECK_THAT(host.refusal(target.uri()), Contains("CAP.TO"));
    CHECK(network.clock().now() - before < 3s);
  }
}

TEST_CASE("A list of namespaces that does not ascend is refused; one that never ends, too") {
  Network network;
  RawTarget target(network);
  Host host(network);
  SECTION("backwards") {
    target.active.ns[0] = nvme::to_le(std::uint32_t{5});
    target.active.ns[1] = nvme::to_le(std::uint32_t{4});
    CHECK_THAT(host.refusal(target.uri()), Contains("does not ascend"));
  }
  SECTION("twice the same") {
    target.active.ns[1] = nvme::to_le(std::uint32_t{1});
    CHECK_THAT(host.refusal(target.uri()), Contains("does not ascend"));
  }
  SECTION("the broadcast NSID") {
    target.active.ns[1] = nvme::to_le(~std::uint32_t{0});
    CHECK_THAT(host.refusal(target.uri()), Contains("does not ascend"));
  }
  SECTION("full for ever") {
    for (std::uint32_t i = 0; i < 1024; ++i)
      target.active.ns[i] = nvme::to_le(i + 1);
    CHECK_THAT(host.refusal(target.uri()), Contains("does not ascend") || Contains("more than 1024"));
  }
}

TEST_CASE("A namespace that cannot be used is left out, and the log says why") {
  Network network;
  RawTarget target(network);
  Host host(network);
  std::string why;
  auto& ns = target.name_space;
  SECTION("block size 256") {
    why = "2^8", ns.lbaf[0].ds = 8;
  }
  SECTION("block size 2^255") {
    why = "2^255", ns.lbaf[0].ds = 255;
  }
  SECTION("metadata") {
    why = "metadata", ns.lbaf[0].ms = nvme::to_le(std::uint16_t{8});
  }
  SECTION("protection information") {
    why = "protection", ns.dps = 1;
  }
  SECTION("a format it does not have") {
    why = "LBA format 3", ns.flbas = 3;
  }
  SECTION("a size of 2^64 - 1 blocks") {
    why = "does not fit", ns.nsze = nvme::to_le(~std::uint64_t{0});
  }
  const auto session = host.connect(target.uri());
  CHECK(session->namespaces().empty());
  REQUIRE(host.log.lines.size() == 1);
  CHECK_THAT(host.log.lines.front(), Contains("namespace 1 cannot be used") && Contains(why));
  CHECK_THAT(session->find(std::nullopt).error().message(), Contains("none that can be used"));
}

TEST_CASE("Descriptors of a namespace that run past their page are refused, whatever their lengths") {
  Network network;
  RawTarget target(network);
  Host host(network);
  std::vector<std::byte> list(4096);
  SECTION("longer than the page") {
    for (std::size_t at = 0; at + 4 < list.size(); at += 4 + 255)
      list[at] = std::byte{9}, list[at + 1] = std::byte{255};
  }
  SECTION("a UUID of 3 bytes") {
    list[0] = std::byte{3}, list[1] = std::byte{3};
  }
  SECTION("another command set") {
    list[0] = std::byte{4}, list[1] = std::byte{1}, list[4] = std::byte{2};
  }
  target.script = [&](auto& link, const auto& capsule) {
    if (link.qid() != Qid(0) || capsule.sqe.opcode != 0x06 || (capsule.sqe.cdw10.get() & 0xff) != 3) return false;
    link.push(capsule.sqe, list);
    return true;
  };
  CHECK(host.connect(target.uri())->namespaces().empty());
}

TEST_CASE("Data that the target takes from memory it was not offered cost it the connection, not us ours") {
  Victim v;
  auto forged = v.last;
  nvme::KeyedDescriptor where;
  std::memcpy(&where, forged.sgl.raw.data(), sizeof where);
  SECTION("behind the end") {
    where.address = where.address.get() + 8 * kMiB;
  }
  SECTION("another key") {
    where.key = where.key.get() + 0x1000;
  }
  std::memcpy(forged.sgl.raw.data(), &where, sizeof where);
  v.io->fetch(forged, {});
  v.host.run(2s);
  CHECK(v.ticket.done == 1);
  CHECK(v.ticket.request.outcome == Outcome::disconnected);
  CHECK(v.session->state() == initiator::SessionState::live);
}
