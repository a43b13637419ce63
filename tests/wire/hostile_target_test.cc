// Targets whose responses and events lie: the end of the queue or of the session, and nobody else notices.

#include <algorithm>
#include <array>
#include <cstring>

#include "tests/wire/hostile_target.h"

using namespace rbt;
using namespace rbt::test;
using Catch::Matchers::Contains;
using initiator::Outcome;
using initiator::Submitted;

namespace {

using Link = RawTarget::Link;
using Capsule = RawTarget::Capsule;

/// In a session whose I/O queue's commands the target does not answer by itself.
struct Victim : LyingWorld {
  Victim() : session(host.connect(target.uri())), queue(host.open(*session, {.depth = 8})) {
    target.script = [this](Link& link, const Capsule& capsule) {
      if (link.qid() != Qid(1)) return false;
      io = &link;
      last = capsule.sqe;
      return true;
    };
    ask();
  }
  ~Victim() {
    target.script = nullptr;
    queue.reset();
    session.reset();
  }
  void ask() {
    REQUIRE(queue->read(ticket.request, session->namespaces().front(), Lba(0), memory.all()) == Submitted::accepted);
    host.run(10ms);
    REQUIRE(io != nullptr);
  }
  [[nodiscard]] nvme::CompletionQueueEntry answer(std::uint16_t cid) const {
    nvme::CompletionQueueEntry cqe;
    cqe.cid = cid;
    cqe.sqhd = std::uint16_t{1};
    return cqe;
  }
  [[nodiscard]] nvme::KeyedDescriptor where() const {
    nvme::KeyedDescriptor keyed;
    std::memcpy(&keyed, last.sgl.raw.data(), sizeof keyed);
    return keyed;
  }
  /// The queue is gone, its request is done once, the session lives.
  void expect_queue_lost() {
    host.run(2s);
    REQUIRE(queue->failure() != nullptr);
    CHECK_FALSE(queue->failure()->message().empty());
    CHECK(ticket.done == 1);
    CHECK(ticket.request.outcome == Outcome::disconnected);
    CHECK(queue->in_flight() == 0);
    CHECK(session->state() == initiator::SessionState::live);
    neighbour.work();
  }
  std::unique_ptr<initiator::Session> session;
  std::unique_ptr<initiator::QueuePair> queue;
  Memory memory{4096};
  Ticket ticket;
  Link* io = nullptr;
  nvme::SubmissionQueueEntry last;
};

}  // namespace

// ---- responses

TEST_CASE("Responses shorter than an entry, of every length, end their queue") {
  for (const std::size_t size : {0u, 1u, 8u, 15u}) {
    Victim victim;
    victim.io->send(nvme::wire_bytes(victim.answer(victim.last.cid.get())).first(size));
    victim.expect_queue_lost();
  }
}

TEST_CASE("A response with bytes behind its entry is its entry") {
  Victim victim;
  std::vector<std::byte> padded(64, std::byte{0xff});
  const auto cqe = victim.answer(victim.last.cid.get());
  std::memcpy(padded.data(), &cqe, sizeof cqe);
  victim.io->send(padded);
  victim.host.run(100ms);
  CHECK(victim.ticket.request.outcome == Outcome::success);
}

TEST_CASE("Responses to commands that were never sent end their queue, whichever command they name") {
  for (const unsigned difference : {1u, 7u, 8u, 1023u, 1024u, 0x8000u, 0xfc00u}) {
    Victim victim;
    victim.io->send(nvme::wire_bytes(victim.answer(static_cast<std::uint16_t>(victim.last.cid.get() ^ difference))));
    victim.expect_queue_lost();
  }
}

TEST_CASE("A response on a queue that is idle ends it") {
  Victim victim;
  const auto cqe = victim.answer(victim.last.cid.get());
  victim.io->send(nvme::wire_bytes(cqe));
  victim.host.run(100ms);
  CHECK(victim.ticket.request.outcome == Outcome::success);
  victim.io->send(nvme::wire_bytes(cqe));
  victim.host.run(100ms);
  REQUIRE(victim.queue->failure() != nullptr);
  CHECK_THAT(victim.queue->failure()->message(), Contains("no outstanding command"));
  CHECK(victim.ticket.done == 1);
}

TEST_CASE("A response on the admin queue that nobody asked for ends the session, and its queues with it") {
  Victim victim;
  victim.target.link(Qid(0))->send(nvme::wire_bytes(victim.answer(0x3ff)));
  victim.host.run(1s);
  CHECK(victim.session->state() == initiator::SessionState::lost);
  CHECK(victim.queue->failure() != nullptr);
  CHECK(victim.ticket.done == 1);
}

TEST_CASE("A submission queue head that the queue does not have ends it") {
  for (const std::uint16_t head : std::initializer_list<std::uint16_t>{9, 0x7fff, 0xfffe, 0xffff}) {
    Victim victim;
    auto cqe = victim.answer(victim.last.cid.get());
    cqe.sqhd = head;
    victim.io->send(nvme::wire_bytes(cqe));
    victim.expect_queue_lost();
  }
}

TEST_CASE("Whatever status a response carries is passed on, and the queue goes on") {
  Victim victim;
  for (unsigned status = 1; status < 0x8000; status += status < 0x800 ? 7 : 1021) {
    auto cqe = victim.answer(victim.last.cid.get());
    cqe.status_field = static_cast<std::uint16_t>(status << 1);
    const bool failed = (status & 0x7ff) != 0;
    victim.ticket.done = 0;
    victim.io->send(nvme::wire_bytes(cqe));
    victim.host.run(1ms);
    CHECK(victim.ticket.done == 1);
    CHECK(victim.ticket.request.outcome == (failed ? Outcome::failed : Outcome::success));
    victim.ask();
  }
  CHECK(victim.queue->live());
}

TEST_CASE("A response that takes away a key, the command's or anybody's, ends its queue") {
  for (const std::uint32_t difference : {0u, 1u, 0x100u, 0xdeadbeefu}) {
    Victim victim;
    victim.io->send_invalidating(nvme::wire_bytes(victim.answer(victim.last.cid.get())),
                                 victim.where().key.get() ^ difference);
    victim.expect_queue_lost();
  }
}

TEST_CASE("A message that fits no receive buffer ends its queue") {
  Victim victim;
  victim.io->send(std::vector<std::byte>(65));
  victim.expect_queue_lost();
}

TEST_CASE("A flood of responses, on either queue, ends what it came on") {
  Victim victim;
  for (int i = 0; i < 500; ++i) {
    victim.io->send(nvme::wire_bytes(victim.answer(static_cast<std::uint16_t>(i))));
    victim.target.link(Qid(0))->send(nvme::wire_bytes(victim.answer(static_cast<std::uint16_t>(i * 31))));
  }
  victim.host.run(1s);
  CHECK(victim.queue->failure() != nullptr);
  CHECK(victim.session->state() == initiator::SessionState::lost);
  CHECK(victim.ticket.done == 1);
}

TEST_CASE("A target that takes or writes memory that it was not offered loses the queue") {
  for (const bool reads : {true, false})
    for (const int lie : {0, 1, 2}) {
      Victim victim;
      auto forged = victim.last;
      auto where = victim.where();
      if (lie == 0) where.address = where.address.get() + 64 * kMiB;
      if (lie == 1) where.key = where.key.get() ^ 0x5a5a5a;
      if (lie == 2) where.address = ~std::uint64_t{0} - 100;
      std::memcpy(forged.sgl.raw.data(), &where, sizeof where);
      if (reads)
        victim.io->fetch(forged, {});
      else
        victim.io->push(forged, std::vector<std::byte>(4096));
      victim.expect_queue_lost();
    }
}

TEST_CASE("A target that never answers loses the queue after the command's time, and nothing waits longer") {
  Victim victim;
  victim.host.run(victim.host.options.command_timeout + 2s);
  CHECK(victim.ticket.done == 1);
  CHECK(victim.ticket.request.outcome != Outcome::success);
  CHECK(victim.queue->failure() != nullptr);
}

TEST_CASE("Events of every type, about every log, are read and handed on, and nothing more") {
  LyingWorld world;
  int events = 0;
  world.host.options.on_event = [&](const nvme::AsyncEvent&) { ++events; };
  {
    const auto session = world.host.connect(world.target.uri());
    for (unsigned lid = 0; lid < 256; ++lid) {
      world.target.raise_event((lid % 8) | lid << 8 | lid << 16);
      world.host.run(15ms);
    }
    CHECK(events == 256);
    CHECK(session->state() == initiator::SessionState::live);
  }
}

TEST_CASE("A Keep Alive that is answered with an error ends the session") {
  LyingWorld world;
  world.host.options.keep_alive = 2s;
  {
    const auto session = world.host.connect(world.target.uri());
    world.target.script = [](Link& link, const Capsule& capsule) {
      if (capsule.sqe.opcode != 0x18) return false;
      link.respond(capsule.sqe, nvme::StatusCode::keep_alive_invalid);
      return true;
    };
    world.host.run(3s);
    CHECK(session->state() == initiator::SessionState::lost);
  }
}
