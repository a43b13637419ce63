// N-th failure sweeps: the same scenario with the 0th, 1st, 2nd … operation of each kind failing, until a run is clean.
#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using initiator::Outcome;
using initiator::Submitted;
using transport::sim::Network;
using transport::sim::Operation;

namespace {

constexpr std::size_t kTickets = 6;

/// Everything that a session can be asked for, once. Returns true if all of it went well. Whatever fails says why, and
/// every accepted request is done exactly once.
bool scenario(Host& host, const RawTarget& target) {
  auto session = host.try_connect(target.uri());
  if (!session) {
    CHECK_FALSE(session.error().message().empty());
    return false;
  }
  auto opened = (*session)->open_queue_pair(*host.reactor, {.depth = 4, .buffers = Bytes(2 * kMiB)});
  if (!opened) {
    CHECK_FALSE(opened.error().message().empty());
    return false;
  }
  initiator::QueuePair& queue = **opened;
  REQUIRE((*session)->namespaces().size() == 1);
  const initiator::Namespace& space = (*session)->namespaces().front();
  auto arena = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
  auto registered = (*session)->register_buffer(arena.span());
  bool good = registered.has_value();

  const iovec registered_piece{arena.data(), arena.size()};
  const auto pooled = queue.buffers()->allocate(32 * kKiB);
  const iovec pooled_piece{pooled.data(), pooled.size()};
  Memory large(kMiB);
  Memory small(4096);
  std::vector<BlockRange> ranges = {{Lba(1), Blocks(2)}, {Lba(7), Blocks(9)}};
  std::array<Ticket, kTickets> tickets;
  const std::array<std::function<Submitted()>, kTickets> calls = {
      [&] { return queue.write(tickets[0].request, space, Lba(0), large.all()); },
      [&] { return queue.write(tickets[1].request, space, Lba(9), small.all()); },
      [&] {
        return queue.read(tickets[2].request, space, Lba(0), {&registered_piece, 1});
      },
      [&] {
        return queue.read(tickets[3].request, space, Lba(0), {&pooled_piece, 1});
      },
      [&] { return queue.discard(tickets[4].request, space, ranges); },
      [&] { return queue.flush(tickets[5].request, space); }};
  for (std::size_t i = 0; i < kTickets; ++i) {
    Submitted submitted = calls[i]();
    for (int tries = 0; submitted == Submitted::full && tries < 20'000; ++tries) {
      host.run(1ms);
      submitted = calls[i]();
    }
    if (submitted != Submitted::accepted) {
      CHECK(submitted == Submitted::dead);
      CHECK(queue.failure() != nullptr);
      tickets[i].done = -1;
      good = false;
    }
  }
  for (Ticket& ticket : tickets) {
    if (ticket.done < 0) continue;
    REQUIRE(host.wait(queue, ticket));
    CHECK(ticket.done == 1);
    if (ticket.request.outcome != Outcome::success) {
      CHECK(ticket.request.outcome == Outcome::disconnected);
      CHECK(queue.failure() != nullptr);
      good = false;
    }
  }
  CHECK(queue.in_flight() == 0);
  queue.buffers()->free(pooled);
  CHECK(queue.buffers()->free_bytes() == queue.buffers()->size());
  return good && (*session)->state() == initiator::SessionState::live;
}

}  // namespace

TEST_CASE(
    "Whichever operation fails, everything ends: an error with words, each request done once, no connection left") {
  const auto kind = static_cast<Operation>(GENERATE(range(0, static_cast<int>(transport::sim::kOperations))));
  const std::uint64_t silent = GENERATE(0u, 1u);
  CAPTURE(name(kind), silent);
  std::uint64_t n = 0;
  for (bool clean = false; !clean; ++n) {
    REQUIRE(n < 2000);
    CAPTURE(n);
    Network network({.seed = 1 + n, .silent_failure = silent});
    RawTarget target(network);
    Host host(network);
    host.options.command_timeout = 5s;
    host.options.connect_timeout = 5s;
    network.faults().fail_nth(kind, n);
    const bool good = scenario(host, target);
    clean = network.faults().pending(kind);
    if (clean) CHECK(good);
    host.run(10s);
    CHECK(target.links() == 0);
    CHECK(network.deadlocks() == 0);
  }
  if (kind != Operation::listen && kind != Operation::post_full) CHECK(n > 1);  // something did fail
}

TEST_CASE("After a failure a new session works") {
  Network network;
  RawTarget target(network);
  Host host(network);
  network.faults().fail_nth(Operation::post, 30);
  CHECK_FALSE(scenario(host, target));
  CHECK(scenario(host, target));
}
