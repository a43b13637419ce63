// Targets that lie while a host connects or asks who is there: an error with words, in bounded time, or a session that works.

#include <algorithm>
#include <array>
#include <cstring>

#include "tests/wire/hostile_target.h"

using namespace rbt;
using namespace rbt::test;
using initiator::Outcome;
using initiator::Submitted;

namespace {

using Link = RawTarget::Link;
using Capsule = RawTarget::Capsule;

}  // namespace

// ---- connecting

TEST_CASE("Whichever command of connecting is dropped, refused or answered twice, it ends in an error or a session") {
  for (const int how : {0, 1, 2, 3})
    for (std::size_t nth = 0; nth < 18; ++nth) {
      LyingWorld world;
      std::size_t seen = 0;
      world.target.script = [&](Link& link, const Capsule& capsule) {
        if (seen++ != nth) return false;
        if (how == 0) link.drop();
        if (how == 1) link.respond(capsule.sqe, nvme::Status::permanent(nvme::StatusCode::internal_error));
        if (how == 2) link.respond(capsule.sqe), link.respond(capsule.sqe);
        if (how == 3) link.respond(capsule.sqe, {}, ~std::uint64_t{0});
        return true;
      };
      world.try_connect().reset();
      world.target.script = nullptr;
    }
}

TEST_CASE("A target that falls silent at any command of connecting costs the connect timeout") {
  for (std::size_t nth = 0; nth < 18; nth += 3) {
    LyingWorld world;
    std::size_t seen = 0;
    world.target.script = [&](Link&, const Capsule&) { return seen++ == nth; };
    world.try_connect().reset();
    world.target.script = nullptr;
  }
}

TEST_CASE(
    "Random bytes in every page that is read while connecting end in an error, or in a session that can be used") {
  Random random(23);
  for (std::uint32_t i = 0; i < 60; ++i) {
    LyingWorld world;
    const std::uint32_t which = i % 5;  // CNS, or 4 for all of them
    world.target.script = [&](Link& link, const Capsule& capsule) {
      if (link.qid() != Qid(0) || capsule.sqe.is_fabrics() || capsule.sqe.opcode != 0x06) return false;
      const std::uint32_t cns = capsule.sqe.cdw10.get() & 0xff;
      if (which != 4 && cns != which) return false;
      std::vector<std::byte> page(4096);
      random.fill(page);
      link.push(capsule.sqe, page);
      return true;
    };
    auto session = world.try_connect();
    if (session) {
      const auto queue = world.host.open(*session, {.depth = 8});
      Memory memory(8192);
      for (const initiator::Namespace& one : session->namespaces()) {
        Ticket ticket;
        if (queue->read(ticket.request, one, Lba(0), memory.all()) != Submitted::accepted) continue;
        CHECK(world.host.wait(*queue, ticket));
      }
    }
    session.reset();
    world.target.script = nullptr;
  }
}

TEST_CASE("Capabilities of any bits are refused or lived with") {
  Random random(29);
  for (int i = 0; i < 60; ++i) {
    LyingWorld world;
    world.target.capabilities.raw = random();
    if (i % 3 == 0) world.target.capabilities.raw &= ~std::uint64_t{0xffff};  // MQES 0
    if (i % 3 == 1) world.target.capabilities.raw |= std::uint64_t{1} << 37;
    auto session = world.try_connect();
    if (i % 3 == 0) CHECK(session == nullptr);
    if (session) world.host.open(*session, {.depth = 8}).reset();
  }
}

TEST_CASE("The smallest queue that may be said is a queue of one command") {
  for (const int what : {0, 1, 2}) {
    LyingWorld world;
    if (what == 0) world.target.capabilities = world.target.capabilities.with_queue_entries_max(2);
    if (what == 1) world.target.controller.maxcmd = nvme::to_le(std::uint16_t{1});
    const auto one = nvme::encode_cm_accept(1);
    const auto bytes = nvme::wire_bytes(one);
    auto session = world.host.connect(world.target.uri());
    if (what == 2) world.target.accept_data.assign(bytes.begin(), bytes.end());
    {
      const auto queue = world.host.open(*session, {.depth = 8});
      CHECK(queue->depth() == 1);
      Memory memory(4096);
      Ticket ticket;
      REQUIRE(queue->read(ticket.request, session->namespaces().front(), Lba(0), memory.all()) == Submitted::accepted);
      CHECK(world.host.wait(*queue, ticket));
      CHECK(ticket.request.outcome == Outcome::success);
    }
    session.reset();
  }
}

TEST_CASE("What a target says with its yes or its no to a connection may be anything") {
  Random random(31);
  for (int i = 0; i < 24; ++i) {
    LyingWorld world;
    std::vector<std::byte> bytes(static_cast<std::size_t>(i % 12) * 5);
    random.fill(bytes);
    if (i >= 12)
      world.target.refuse = bytes;
    else
      world.target.accept_data = bytes;
    auto session = world.try_connect();
    if (i >= 12) CHECK(session == nullptr);
  }
}

TEST_CASE("Connect answered with every status is a refusal with words") {
  LyingWorld world;
  for (unsigned status = 1; status < 0x400; status += 13) {
    world.target.script = [&](Link& link, const Capsule& capsule) {
      if (!capsule.sqe.is_fabrics() || capsule.sqe.fabrics_type() != nvme::FabricsType::connect) return false;
      link.respond(capsule.sqe, nvme::Status::permanent(static_cast<nvme::StatusCode>(status)), 0xffffffff);
      return true;
    };
    CHECK(world.try_connect() == nullptr);
  }
  world.target.script = nullptr;
}

TEST_CASE("A grant of no queues, or of all there can be, is a grant of what was asked for at the most") {
  LyingWorld world;
  for (const std::uint64_t granted : {std::uint64_t{0}, std::uint64_t{0xfffefffe}, std::uint64_t{0xffffffff},
                                      std::uint64_t{0x0000ffff}, ~std::uint64_t{0}}) {
    world.target.script = [&](Link& link, const Capsule& capsule) {
      if (capsule.sqe.is_fabrics() || capsule.sqe.opcode != 0x09) return false;
      link.respond(capsule.sqe, {}, granted);
      return true;
    };
    if (auto session = world.try_connect()) CHECK(session->io_queues() == 1);
  }
  world.target.script = nullptr;
}

TEST_CASE("Another controller's number in an I/O queue's Connect changes nothing") {
  LyingWorld world;
  auto session = world.host.connect(world.target.uri());
  world.target.cntlid = 8;
  {
    const auto queue = world.host.open(*session, {.depth = 8});
    Memory memory(4096);
    Ticket ticket;
    REQUIRE(queue->read(ticket.request, session->namespaces().front(), Lba(0), memory.all()) == Submitted::accepted);
    CHECK(world.host.wait(*queue, ticket));
    CHECK(world.target.last_connect->cntlid == Cntlid(7));
  }
  session.reset();
}

// ---- discovery

TEST_CASE("Discovery records of any bytes come back as text that can be printed") {
  LyingWorld world;
  Random random(37);
  world.target.controller.cntrltype = NVME_CTRL_CNTRLTYPE_DISCOVERY;
  for (int i = 0; i < 40; ++i) {
    nvmf_disc_log_entry entry{};
    random.fill(std::as_writable_bytes(std::span(&entry, 1)));
    world.target.records.push_back(entry);
  }
  const auto log = initiator::discover(world.host.environment(), world.target.discovery_uri(),
                                       {.management = world.host.reactor.get()});
  REQUIRE(log);
  CHECK(log->entries.size() == 40);
  for (const auto& entry : log->entries)
    for (const std::string* text : {&entry.address, &entry.service, &entry.subsystem_nqn})
      CHECK(std::ranges::all_of(*text, [](char c) { return c >= 0x20 && c < 0x7f; }));
}

TEST_CASE("A discovery log of another format, without end, or ever changing is given up") {
  for (const int how : {0, 1, 2}) {
    LyingWorld world;
    world.target.controller.cntrltype = NVME_CTRL_CNTRLTYPE_DISCOVERY;
    if (how == 1) world.target.claimed_records = ~std::uint64_t{0};
    world.target.script = [&](Link& link, const Capsule& capsule) {
      if (capsule.sqe.is_fabrics() || capsule.sqe.opcode != 0x02) return false;
      ++world.target.generation;
      if (how != 0) return false;
      std::vector<std::byte> page(1024, std::byte{1});
      link.push(capsule.sqe, page);
      return true;
    };
    const auto log = initiator::discover(world.host.environment(), world.target.discovery_uri(),
                                         {.management = world.host.reactor.get()});
    CHECK_FALSE(log);
    world.target.script = nullptr;
  }
}
