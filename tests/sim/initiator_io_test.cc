#include <numeric>

#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using Catch::Matchers::Contains;
using initiator::Outcome;
using initiator::Submitted;
using transport::sim::Network;

namespace {

struct Disk {
  Disk() : target(network), host(network), session(host.connect(target.uri())) {
    open({.depth = 16, .buffers = Bytes(4 * kMiB)});
  }
  ~Disk() { queue.reset(); }
  void open(const initiator::QueuePairOptions& options) {
    queue.reset();
    queue = host.open(*session, options);
  }
  [[nodiscard]] const initiator::Namespace& space() const { return session->namespaces().front(); }
  [[nodiscard]] std::span<std::byte> on_disk(Lba first, std::size_t bytes) {
    return std::span(target.disk).subspan(first.value() * RawTarget::kBlockSize, bytes);
  }
  /// Waits and expects `outcome`.
  void finish(Ticket& ticket, Outcome outcome = Outcome::success) {
    REQUIRE(host.wait(*queue, ticket));
    CHECK(ticket.done == 1);
    CHECK(std::string(name(ticket.request.outcome)) == std::string(name(outcome)));
  }
  Network network;
  RawTarget target;
  Host host;
  std::unique_ptr<initiator::Session> session;
  std::unique_ptr<initiator::QueuePair> queue;
};

}  // namespace

TEST_CASE("What was written is read back, in every size and from every kind of memory") {
  Disk disk;
  const std::size_t bytes = GENERATE(512u, 4096u, 4608u, 128u * 1024, 128u * 1024 + 512, 1024u * 1024);
  const bool pooled = GENERATE(false, true);
  CAPTURE(bytes, pooled);
  const std::size_t last = bytes % (128 * kKiB);  // the last command's bytes, if it is a short one
  const std::size_t tail = last <= 4096 ? last : 0;
  Memory out(bytes);
  Memory in(bytes);
  out.fill(disk.network.random());
  std::span<std::byte> buffer;
  std::span<std::byte> back;
  if (pooled) {
    buffer = disk.queue->buffers()->allocate(bytes);
    back = disk.queue->buffers()->allocate(bytes);
    std::copy(out.bytes.begin(), out.bytes.end(), buffer.begin());
    out.piece.iov_base = buffer.data();
    in.piece.iov_base = back.data();
  }
  Ticket write;
  Ticket read;
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(3), out.all()) == Submitted::accepted);
  CHECK(write.done == 0);
  disk.finish(write);
  CHECK(std::ranges::equal(out.bytes, disk.on_disk(Lba(3), bytes)));
  REQUIRE(disk.queue->read(read.request, disk.space(), Lba(3), in.all()) == Submitted::accepted);
  disk.finish(read);
  CHECK(std::memcmp(in.piece.iov_base, out.bytes.data(), bytes) == 0);
  const auto counters = disk.queue->counters();
  CHECK(counters.bytes_read == bytes);
  CHECK(counters.bytes_written == bytes);
  CHECK(counters.bytes_bounced == (pooled ? 0 : 2 * bytes));
  CHECK(counters.bytes_in_capsule == tail);
  CHECK(disk.target.in_capsule == (tail != 0 ? 1u : 0u));
  if (pooled) {
    disk.queue->buffers()->free(buffer);
    disk.queue->buffers()->free(back);
  }
}

TEST_CASE("Registered memory of the caller's is used where it lies, until it is deregistered") {
  Disk disk;
  auto arena = transport::SharedMemory::create(Bytes(kMiB), {}).value();
  auto registered = disk.session->register_buffer(arena.span());
  REQUIRE(registered);
  disk.network.random().fill({arena.data(), arena.size()});
  const iovec piece{arena.data() + 4096, 64 * 1024};
  Ticket write;
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(0), {&piece, 1}) == Submitted::accepted);
  disk.finish(write);
  CHECK(disk.queue->counters().bytes_bounced == 0);
  SECTION("small writes travel in the capsule, which costs a copy: the memory may go before the last retransmission") {
    const iovec small{arena.data(), 512};
    Ticket ticket;
    REQUIRE(disk.queue->write(ticket.request, disk.space(), Lba(0), {&small, 1}) == Submitted::accepted);
    disk.finish(ticket);
    CHECK(disk.queue->counters().bytes_bounced == 512);
  }
  SECTION("a buffer over its edge is copied") {
    const iovec edge{arena.data() + kMiB - 8192, 8192};
    Ticket ticket;
    REQUIRE(disk.queue->read(ticket.request, disk.space(), Lba(0), {&edge, 1}) == Submitted::accepted);
    disk.finish(ticket);
    CHECK(disk.queue->counters().bytes_bounced == 0);
  }
  SECTION("overlapping registrations are refused") {
    const auto again = disk.session->register_buffer({arena.data() + 4096, 4096, -1, 0});
    REQUIRE_FALSE(again);
    CHECK(again.error().kind() == ErrorKind::in_use);
  }
  registered->reset();
  Ticket after;
  const auto before = disk.queue->counters().bytes_bounced;
  REQUIRE(disk.queue->write(after.request, disk.space(), Lba(0), {&piece, 1}) == Submitted::accepted);
  disk.finish(after);
  CHECK(disk.queue->counters().bytes_bounced == before + 64 * 1024);
}

TEST_CASE("Pieces that adjoin in memory are one; others are gathered and scattered through a buffer") {
  Disk disk;
  const auto buffer = disk.queue->buffers()->allocate(64 * 1024);
  disk.network.random().fill(buffer);
  std::byte* const b = buffer.data();
  std::vector<iovec> pieces;
  std::uint64_t bounced = 0;
  SECTION("adjoining") {
    pieces = {{b, 1000}, {b + 1000, 7192}, {nullptr, 0}, {b + 8192, 8192}};
  }
  SECTION("in any order, of any size") {
    pieces = {{b + 30000, 1}, {b, 511}, {b + 1024, 7000}, {nullptr, 0}, {b + 20000, 680}};
    bounced = 8192;
  }
  std::vector<std::byte> expected;
  for (const iovec& piece : pieces) {
    const auto* const from = static_cast<const std::byte*>(piece.iov_base);
    expected.insert(expected.end(), from, from + piece.iov_len);
  }
  Ticket write;
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(5), pieces) == Submitted::accepted);
  disk.finish(write);
  CHECK(std::ranges::equal(expected, disk.on_disk(Lba(5), expected.size())));
  CHECK(disk.queue->counters().bytes_bounced == bounced);
  std::ranges::fill(buffer, std::byte{0});
  Ticket read;
  REQUIRE(disk.queue->read(read.request, disk.space(), Lba(5), pieces) == Submitted::accepted);
  disk.finish(read);
  std::vector<std::byte> got;
  for (const iovec& piece : pieces) {
    const auto* const from = static_cast<const std::byte*>(piece.iov_base);
    got.insert(got.end(), from, from + piece.iov_len);
  }
  CHECK(got == expected);
  disk.queue->buffers()->free(buffer);
}

TEST_CASE("A request beyond MDTS becomes as many commands as it takes, in order") {
  Disk disk;
  disk.open({.depth = 3});
  Memory memory(2 * kMiB);
  memory.fill(disk.network.random());
  disk.target.commands.clear();
  Ticket write;
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(0), memory.all(), nvme::ForceUnitAccess::yes) ==
          Submitted::accepted);
  disk.finish(write);
  REQUIRE(disk.target.commands.size() == 16);
  std::uint64_t next = 0;
  for (const auto& sqe : disk.target.commands) {
    const auto command = nvme::parse_block_command(sqe);
    CHECK(command.first == Lba(next));
    CHECK(command.count == Blocks(256));
    CHECK(command.fua == nvme::ForceUnitAccess::yes);
    next += 256;
  }
  CHECK(std::equal(memory.bytes.begin(), memory.bytes.end(), disk.target.disk.begin()));
}

TEST_CASE("Of a split request's failures the lowest LBA's is reported, and nothing more is sent") {
  Disk disk;
  disk.open({.depth = 3});
  disk.target.commands.clear();
  std::vector<nvme::SubmissionQueueEntry> held;
  disk.target.script = [&](auto& link, const auto& capsule) {
    if (link.qid() == Qid(0)) return false;
    held.push_back(capsule.sqe);
    if (held.size() < 3) return true;
    link.respond(held[2], nvme::StatusCode::write_fault);
    link.respond(held[1], nvme::StatusCode::capacity_exceeded);
    link.respond(held[0]);
    return true;
  };
  Memory memory(kMiB);
  Ticket write;
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  disk.finish(write, Outcome::failed);
  CHECK(write.request.status.code() == nvme::StatusCode::capacity_exceeded);
  CHECK(disk.target.commands.size() == 3);
  disk.target.script = nullptr;
  Ticket flush;
  REQUIRE(disk.queue->flush(flush.request, disk.space()) == Submitted::accepted);
  disk.finish(flush);
}

TEST_CASE("Flush, discard, write zeroes and compare do what they say") {
  Disk disk;
  Memory memory(4096);
  memory.fill(disk.network.random());
  Ticket write;
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(8), memory.all()) == Submitted::accepted);
  disk.finish(write);
  SECTION("flush") {
    Ticket flush;
    REQUIRE(disk.queue->flush(flush.request, disk.space()) == Submitted::accepted);
    disk.finish(flush);
    CHECK(disk.target.count(0x00) == 1);
  }
  SECTION("compare: equal") {
    Ticket compare;
    REQUIRE(disk.queue->compare(compare.request, disk.space(), Lba(8), memory.all()) == Submitted::accepted);
    disk.finish(compare);
  }
  SECTION("compare: different") {
    memory.bytes[4095] ^= std::byte{1};
    Ticket compare;
    REQUIRE(disk.queue->compare(compare.request, disk.space(), Lba(8), memory.all()) == Submitted::accepted);
    disk.finish(compare, Outcome::failed);
    CHECK(compare.request.status.code() == nvme::StatusCode::compare_failure);
  }
  SECTION("write zeroes") {
    Ticket zeroes;
    REQUIRE(disk.queue->write_zeroes(zeroes.request, disk.space(), {Lba(9), Blocks(2)}, nvme::Deallocate::yes,
                                     nvme::ForceUnitAccess::yes) == Submitted::accepted);
    disk.finish(zeroes);
    const auto command = nvme::parse_block_command(disk.target.commands.back());
    CHECK(command.deallocate == nvme::Deallocate::yes);
    CHECK(command.fua == nvme::ForceUnitAccess::yes);
    std::fill_n(memory.bytes.begin() + 512, 1024, std::byte{0});
    CHECK(std::ranges::equal(memory.bytes, disk.on_disk(Lba(8), 4096)));
  }
  SECTION("discard of 300 ranges takes two commands") {
    const std::size_t before = disk.target.count(0x09);
    std::vector<BlockRange> ranges;
    for (std::uint64_t i = 0; i < 300; ++i)
      ranges.push_back({Lba(1000 + 3 * i), Blocks(1 + i % 3)});
    ranges[0] = {Lba(9), Blocks(1)};
    Ticket discard;
    REQUIRE(disk.queue->discard(discard.request, disk.space(), ranges) == Submitted::accepted);
    disk.finish(discard);
    CHECK(disk.target.count(0x09) == before + 2);
    std::fill_n(memory.bytes.begin() + 512, 512, std::byte{0});
    CHECK(std::ranges::equal(memory.bytes, disk.on_disk(Lba(8), 4096)));
  }
}

TEST_CASE("A request that cannot be carried out is refused before anything is sent") {
  Disk disk;
  disk.target.commands.clear();
  Memory memory(4096);
  Ticket t;
  const auto& space = disk.space();
  const auto expect = [&](Submitted submitted, Outcome outcome) {
    CHECK(submitted == Submitted::refused);
    CHECK(t.request.outcome == outcome);
  };
  expect(disk.queue->read(t.request, space, Lba(RawTarget::kBlocks - 7), memory.all()), Outcome::out_of_range);
  expect(disk.queue->read(t.request, space, Lba(~0ull - 3), memory.all()), Outcome::out_of_range);
  expect(disk.queue->write(t.request, space, Lba(RawTarget::kBlocks), memory.all()), Outcome::out_of_range);
  expect(disk.queue->write_zeroes(t.request, space, {Lba(1), Blocks(~0ull)}), Outcome::out_of_range);
  expect(disk.queue->write_zeroes(t.request, space, {Lba(1), Blocks(0)}), Outcome::misaligned);
  const BlockRange outside{Lba(RawTarget::kBlocks), Blocks(1)};
  expect(disk.queue->discard(t.request, space, {&outside, 1}), Outcome::out_of_range);
  expect(disk.queue->discard(t.request, space, {}), Outcome::misaligned);
  memory.piece.iov_len = 4095;
  expect(disk.queue->read(t.request, space, Lba(0), memory.all()), Outcome::misaligned);
  memory.piece.iov_len = 0;
  expect(disk.queue->read(t.request, space, Lba(0), memory.all()), Outcome::misaligned);
  initiator::Namespace limited = space;
  limited.abilities = {};
  memory.piece.iov_len = 4096;
  expect(disk.queue->compare(t.request, limited, Lba(0), memory.all()), Outcome::unsupported);
  expect(disk.queue->write_zeroes(t.request, limited, {Lba(0), Blocks(1)}), Outcome::unsupported);
  limited.read_only = true;
  expect(disk.queue->write(t.request, limited, Lba(0), memory.all()), Outcome::unsupported);
  disk.host.run(10ms);
  CHECK(disk.target.commands.empty());
  CHECK(t.done == 0);
}

TEST_CASE("A full queue says so, takes nothing, and has room again after a completion") {
  Disk disk;
  disk.open({.depth = 4});
  Memory memory(512);
  std::array<Ticket, 5> tickets;
  for (int i = 0; i < 4; ++i)
    REQUIRE(disk.queue->read(tickets[static_cast<std::size_t>(i)].request, disk.space(), Lba(0), memory.all()) ==
            Submitted::accepted);
  CHECK(disk.queue->read(tickets[4].request, disk.space(), Lba(0), memory.all()) == Submitted::full);
  CHECK(disk.queue->in_flight() == 4);
  disk.finish(tickets[0]);
  REQUIRE(disk.queue->read(tickets[4].request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  disk.finish(tickets[4]);
  CHECK(disk.target.links() == 2);
}

TEST_CASE("A request that waits for slots goes before later ones") {
  Disk disk;
  disk.open({.depth = 2});
  Memory large(kMiB);
  Memory small(512);
  Ticket first;
  Ticket second;
  REQUIRE(disk.queue->write(first.request, disk.space(), Lba(0), large.all()) == Submitted::accepted);
  CHECK(disk.queue->read(second.request, disk.space(), Lba(0), small.all()) == Submitted::full);
  disk.finish(first);
  REQUIRE(disk.queue->read(second.request, disk.space(), Lba(0), small.all()) == Submitted::accepted);
  disk.finish(second);
}

TEST_CASE("A bounce pool smaller than what is asked for slows down, and nothing else") {
  Disk disk;
  disk.open({.depth = 64, .bounce = Bytes(2 * kMiB)});
  std::vector<std::unique_ptr<Ticket>> tickets;
  std::vector<std::unique_ptr<Memory>> memories;
  for (std::uint64_t i = 0; i < 3; ++i) {
    tickets.push_back(std::make_unique<Ticket>());
    memories.push_back(std::make_unique<Memory>(kMiB));
    memories.back()->fill(disk.network.random());
    while (disk.queue->write(tickets[i]->request, disk.space(), Lba(2048 * i), memories[i]->all()) == Submitted::full)
      disk.host.run(1ms);
  }
  for (std::uint64_t i = 0; i < 3; ++i) {
    disk.finish(*tickets[i]);
    CHECK(std::ranges::equal(memories[i]->bytes, disk.on_disk(Lba(2048 * i), kMiB)));
  }
}

TEST_CASE("A request may be submitted again from within its own completion") {
  Disk disk;
  struct Loop {
    Disk* disk;
    Memory memory{512};
    int left = 1000;
    initiator::Request request{};
  } loop{&disk};
  loop.request.context = &loop;
  loop.request.done = [](initiator::Request& request) {
    auto& self = *static_cast<Loop*>(request.context);
    if (--self.left > 0) CHECK(self.disk->queue->submit(request) == Submitted::accepted);
  };
  REQUIRE(disk.queue->read(loop.request, disk.space(), Lba(0), loop.memory.all()) == Submitted::accepted);
  REQUIRE(disk.host.reactor->run_until([&] { return loop.left == 0; }, disk.network.clock().now() + 10s));
  CHECK(disk.queue->in_flight() == 0);
}

TEST_CASE("More commands than the send queue holds between two signals all arrive") {
  Disk disk;
  disk.open({.depth = 1023});
  Memory memory(512);
  std::vector<std::unique_ptr<Ticket>> tickets;
  for (int i = 0; i < 3000; ++i) {
    tickets.push_back(std::make_unique<Ticket>());
    while (disk.queue->read(tickets.back()->request, disk.space(), Lba(0), memory.all()) == Submitted::full)
      disk.host.run(10us);
  }
  for (auto& ticket : tickets)
    REQUIRE(disk.host.wait(*disk.queue, *ticket));
  CHECK(std::accumulate(tickets.begin(), tickets.end(), 0, [](int sum, const auto& t) { return sum + t->done; }) ==
        3000);
}

TEST_CASE("A command that is not answered in its time ends the connection, and says so") {
  Disk disk;
  disk.target.script = [](auto& link, const auto& capsule) {
    return link.qid() != Qid(0) && capsule.sqe.opcode == 0x02;
  };
  Memory memory(512);
  Ticket slow;
  Ticket patient;
  Ticket flush;
  slow.request.timeout = 2s;
  const Instant before = disk.network.clock().now();
  REQUIRE(disk.queue->read(slow.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  REQUIRE(disk.queue->read(patient.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  REQUIRE(disk.queue->flush(flush.request, disk.space()) == Submitted::accepted);
  disk.finish(flush);
  disk.finish(slow, Outcome::timed_out);
  disk.finish(patient, Outcome::disconnected);
  CHECK(disk.network.clock().now() - before >= 2s);
  CHECK(disk.network.clock().now() - before < 2100ms);
  CHECK_THAT(disk.queue->failure()->message(), Contains("Read was not answered within 2 s;"));
  CHECK(disk.queue->failure()->kind() == ErrorKind::timed_out);
}

TEST_CASE("An answer that is there counts, however late the caller turns its reactor") {
  Disk disk;
  disk.target.script = [&](auto& link, const auto& capsule) {
    if (link.qid() == Qid(0)) return false;
    link.respond(capsule.sqe);
    // Between the answer's departure and its arrival the host sleeps for ten seconds; then timer and answer are both due.
    disk.network.at(disk.network.clock().now() + 1us, [&] { disk.network.clock().advance(10s); });
    return true;
  };
  Memory memory(512);
  Ticket read;
  read.request.timeout = 2s;
  REQUIRE(disk.queue->read(read.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  disk.finish(read);
}

TEST_CASE("A lost connection fails every command once, and says what happened") {
  Disk disk;
  Memory memory(512);
  Memory large(kMiB);
  disk.open({.depth = 4});
  disk.target.script = [](auto& link, const auto&) { return link.qid() != Qid(0); };
  Ticket split;
  Ticket single;
  REQUIRE(disk.queue->read(single.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  REQUIRE(disk.queue->write(split.request, disk.space(), Lba(0), large.all()) == Submitted::accepted);
  disk.host.run(10ms);
  std::string words;
  SECTION("closed by the target") {
    disk.target.link(Qid(1))->drop();
    words = "closed the connection";
  }
  SECTION("the target's process killed") {
    disk.network.faults().kill_process("target");
    words = "closed the connection";
  }
  SECTION("our device removed") {
    disk.network.faults().remove_device("host");
    words = "device was removed";
  }
  SECTION("our address changed") {
    disk.network.faults().change_address("host");
    words = "address went away";
  }
  disk.finish(single, Outcome::disconnected);
  disk.finish(split, Outcome::disconnected);
  REQUIRE(disk.queue->failure() != nullptr);
  CHECK_THAT(disk.queue->failure()->message(), Contains(words) && Contains("I/O queue"));
  CHECK(disk.queue->submit(single.request) == Submitted::dead);
  disk.queue.reset();
  disk.session.reset();
  disk.network.faults().revive("target");
}

TEST_CASE("A session whose admin queue is lost fails its queue pairs, too") {
  Disk disk;
  disk.target.script = [](auto& link, const auto&) { return link.qid() != Qid(0); };
  Memory memory(512);
  Ticket read;
  REQUIRE(disk.queue->read(read.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  disk.host.run(10ms);
  disk.target.link(Qid(0))->drop();
  disk.finish(read, Outcome::disconnected);
  CHECK(disk.session->state() == initiator::SessionState::lost);
  CHECK_THAT(disk.queue->failure()->message(), Contains("session is lost") && Contains("admin queue"));
  const auto another = disk.session->open_queue_pair(*disk.host.reactor, {});
  REQUIRE_FALSE(another);
  CHECK(another.error().kind() == ErrorKind::disconnected);
}

TEST_CASE("Destroying a queue pair ends what is outstanding as aborted") {
  Disk disk;
  Memory memory(512);
  Memory large(kMiB);
  disk.open({.depth = 4});
  disk.target.script = [](auto& link, const auto&) { return link.qid() != Qid(0); };
  Ticket read;
  Ticket write;
  REQUIRE(disk.queue->read(read.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(0), large.all()) == Submitted::accepted);
  disk.queue.reset();
  CHECK(read.done == 1);
  CHECK(write.done == 1);
  CHECK(read.request.outcome == Outcome::aborted);
  CHECK(write.request.outcome == Outcome::aborted);
}

TEST_CASE("Memory that the fabric cannot register is told so, and bounces") {
  Disk disk;
  Memory memory(8192);
  disk.network.faults().fail_nth(transport::sim::Operation::register_memory, 0);
  const auto registered = disk.session->register_buffer({memory.bytes.data(), memory.bytes.size(), -1, 0});
  REQUIRE_FALSE(registered);
  CHECK_THAT(registered.error().message(), Contains("registering a buffer of 8192 bytes"));
  Ticket write;
  REQUIRE(disk.queue->write(write.request, disk.space(), Lba(0), memory.all()) == Submitted::accepted);
  disk.finish(write);
  CHECK(disk.queue->counters().bytes_bounced == 8192);
}
