// Targets that lie to a host: an error that says what, or the end of that session, and a second session of the same thread,
// with an honest target, goes on writing and reading back.

#include <algorithm>
#include <array>
#include <cstring>

#include "tests/sim/initiator_rig.h"
#include "transport/reactor/timer.h"

using namespace rbt;
using namespace rbt::test;
using Catch::Matchers::Contains;
using initiator::Outcome;
using initiator::Submitted;
using transport::sim::Network;

namespace {

using Link = RawTarget::Link;
using Capsule = RawTarget::Capsule;

/// A session whose requests are each other's successors: a block is written, read back and compared, without end.
class Neighbour {
 public:
  Neighbour(Host& host, RawTarget& honest)
      : host_(host),
        honest_(honest),
        session_(host.connect(honest.uri())),
        queue_(host.open(*session_, {.depth = 4})),
        rest_(host.reactor->timers(), [this] { begin(); }) {
    request_.context = this;
    request_.done = [](initiator::Request& request) { static_cast<Neighbour*>(request.context)->on_done(); };
    begin();
  }
  ~Neighbour() {
    rest_.cancel();
    queue_.reset();
  }
  /// Blocks more than there were are verified, and none was wrong.
  void work() {
    const std::uint64_t wanted = verified_ + 4;
    CHECK(host_.reactor->run_until([&] { return verified_ >= wanted || hurt_; }, host_.network.clock().now() + 10s));
    CHECK_FALSE(hurt_);
    CHECK(honest_.links() == 2);
  }

 private:
  void begin() {
    block_ = (block_ + 1) % 64;
    written_.fill(host_.network.random());
    reading_ = false;
    submit();
  }
  void submit() {
    const initiator::Namespace& disk = session_->namespaces().front();
    const auto done = reading_ ? queue_->read(request_, disk, Lba(block_), read_.all())
                               : queue_->write(request_, disk, Lba(block_), written_.all());
    hurt_ |= done != Submitted::accepted;
  }
  void on_done() {
    if (request_.outcome == Outcome::aborted) return;  // the end
    hurt_ |= request_.outcome != Outcome::success;
    if (hurt_) return;
    if (!reading_) {
      reading_ = true;
      return submit();
    }
    hurt_ |= read_.bytes != written_.bytes;
    ++verified_;
    verified_ % 4 != 0 ? begin() : rest_.arm(host_.reactor->clock().now() + 50ms);
  }

  Host& host_;
  RawTarget& honest_;
  std::unique_ptr<initiator::Session> session_;
  std::unique_ptr<initiator::QueuePair> queue_;
  transport::Timer rest_;
  initiator::Request request_;
  Memory written_{RawTarget::kBlockSize};
  Memory read_{RawTarget::kBlockSize};
  std::uint64_t block_ = 0;
  std::uint64_t verified_ = 0;
  bool reading_ = false;
  bool hurt_ = false;
};

struct World {
  World() {
    host.options.connect_timeout = 5s;
    neighbour.work();
  }
  ~World() {
    if (std::uncaught_exceptions() == 0) {
      neighbour.work();
      host.run(100ms);
      CHECK(target.links() == 0);  // whoever had a session has let it go
    }
  }
  /// Whatever becomes of it: a session, or an error with words; in bounded time, and the neighbour did not notice.
  std::unique_ptr<initiator::Session> try_connect() {
    const Instant before = network.clock().now();
    auto session = host.try_connect(target.uri());
    CHECK(network.clock().now() - before < 11s);
    if (!session) {
      CHECK_FALSE(session.error().message().empty());
      return nullptr;
    }
    return std::move(*session);
  }
  Network network;
  RawTarget target{network};
  RawTarget honest{network, "honest"};
  Host host{network};
  Neighbour neighbour{host, honest};
};

/// In a session whose I/O queue's commands the target does not answer by itself.
struct Victim : World {
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
  World world;
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
  World world;
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

// ---- connecting

TEST_CASE("Whichever command of connecting is dropped, refused or answered twice, it ends in an error or a session") {
  for (const int how : {0, 1, 2, 3})
    for (std::size_t nth = 0; nth < 18; ++nth) {
      World world;
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
    World world;
    std::size_t seen = 0;
    world.target.script = [&](Link&, const Capsule&) { return seen++ == nth; };
    world.try_connect().reset();
    world.target.script = nullptr;
  }
}

TEST_CASE(
    "Random bytes in every page that is read while connecting end in an error, or in a session that can be used") {
  Random random(23);
  for (int i = 0; i < 60; ++i) {
    World world;
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
    World world;
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
    World world;
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
    World world;
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
  World world;
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
  World world;
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
  World world;
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
  World world;
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
    World world;
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
