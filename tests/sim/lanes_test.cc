// A volume's lanes: who carries what, and what becomes of all when one is lost. docs/recovery.md.

#include <array>

#include "initiator/volume.h"
#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using initiator::Outcome;
using initiator::Submitted;
using initiator::Volume;
using initiator::VolumeState;

namespace {

/// A volume with a second lane on a reactor of its own, on a target that does what it is told.
struct TwoLanes {
  TwoLanes() {
    network.add(*second);
    options.session.keep_alive = 2s;
    options.session.command_timeout = 1s;
    options.lane_reactors = {second.get()};
    options.on_state = [this](VolumeState state, const Error*) { states.push_back(state); };
  }
  ~TwoLanes() {
    volume.reset();
    network.remove(*second);
  }
  TwoLanes(const TwoLanes&) = delete;
  TwoLanes& operator=(const TwoLanes&) = delete;
  void open() {
    auto opened = Volume::open(host.environment(), std::array{target.uri()}, *host.reactor, options);
    if (!opened) FAIL(opened.error().message());
    volume = std::move(*opened);
    states.clear();
  }
  [[nodiscard]] bool run_until_done(const Ticket& ticket, Duration within) {
    return volume->run_until([&] { return ticket.done == 1; }, now() + within);
  }
  /// Writes wait in the target, unanswered.
  void hold_writes() {
    target.script = [](RawTarget::Link&, const RawTarget::Capsule& capsule) {
      return capsule.sqe.opcode == static_cast<std::uint8_t>(nvme::IoOpcode::write);
    };
  }
  [[nodiscard]] Instant now() { return network.clock().now(); }

  transport::sim::Network network;
  RawTarget target{network};
  Host host{network};
  std::unique_ptr<transport::Reactor> second =
      transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network}).value();
  initiator::VolumeOptions options;
  std::vector<VolumeState> states;
  std::unique_ptr<Volume> volume;
};

Submitted submit(initiator::VolumeLane& lane, Ticket& ticket, initiator::Operation operation, Lba first,
                 std::span<const iovec> data) {
  ticket.request.operation = operation;
  ticket.request.range = {first, Blocks(0)};
  ticket.request.data = data;
  return lane.submit(ticket.request);
}

}  // namespace

TEST_CASE("Each lane's requests go through a queue of its own, and the statistics have all of them") {
  TwoLanes disk;
  disk.open();
  REQUIRE(disk.volume->lanes() == 2);
  std::array<std::vector<Qid>, 2> seen;
  disk.target.script = [&](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
    if (capsule.sqe.opcode == static_cast<std::uint8_t>(nvme::IoOpcode::write) && link.qid() != Qid(0))
      seen.at(capsule.sqe.cdw10.get()).push_back(link.qid());
    return false;
  };
  Memory data(512);
  for (std::size_t i = 0; i < 2; ++i) {
    for (int times = 0; times < 3; ++times) {
      Ticket write;
      REQUIRE(submit(disk.volume->lane(i), write, initiator::Operation::write, Lba(i), data.all()) ==
              Submitted::accepted);
      REQUIRE(disk.run_until_done(write, 1s));
    }
  }
  CHECK(seen[0] == std::vector<Qid>(3, seen[0].front()));
  CHECK(seen[1] == std::vector<Qid>(3, seen[1].front()));
  CHECK(seen[0].front() != seen[1].front());
  CHECK(disk.volume->statistics().write.requests == 6);
  CHECK(disk.volume->statistics().write.latency.count() == 6);
}

TEST_CASE("A lane that loses its queue takes the path of all, and what each had out is sent again by it") {
  const auto lost = GENERATE(1, 2);
  INFO("queue " << lost);
  TwoLanes disk;
  disk.open();
  disk.hold_writes();
  Memory data(512);
  data.fill(disk.network.random());
  std::array<Ticket, 2> writes;
  for (std::size_t i = 0; i < 2; ++i)
    REQUIRE(submit(disk.volume->lane(i), writes.at(i), initiator::Operation::write, Lba(i), data.all()) ==
            Submitted::accepted);
  REQUIRE_FALSE(disk.run_until_done(writes[0], 100ms));
  disk.target.link(Qid(static_cast<std::uint16_t>(lost)))->drop();
  disk.target.script = {};
  for (Ticket& write : writes) {
    REQUIRE(disk.run_until_done(write, 30s));
    CHECK(write.request.outcome == Outcome::success);
  }
  CHECK(disk.volume->statistics().losses == 1);
  CHECK(disk.volume->statistics().reissued == 2);
  CHECK(disk.states ==
        std::vector{VolumeState::lost, VolumeState::reconnecting, VolumeState::fenced, VolumeState::live});
}

TEST_CASE("An idle lane's queue is missed, too") {
  TwoLanes disk;
  disk.open();
  disk.target.link(Qid(2))->drop();
  const auto back = [&] { return disk.volume->statistics().losses == 1 && disk.volume->state() == VolumeState::live; };
  CHECK(disk.volume->run_until(back, disk.now() + 30s));
}

TEST_CASE("There are as many lanes as the first path grants queues; a later one that grants fewer is not used") {
  TwoLanes disk;
  disk.target.queues_granted = 1;
  disk.open();
  CHECK(disk.volume->lanes() == 1);
  disk.volume->close();
  disk.target.queues_granted = 2;
  disk.open();
  REQUIRE(disk.volume->lanes() == 2);
  disk.target.queues_granted = 1;
  disk.target.link(Qid(1))->drop();
  CHECK_FALSE(disk.volume->run_until(
      [&] { return disk.volume->statistics().attempts >= 2 && disk.volume->state() == VolumeState::live; },
      disk.now() + 20s));
  disk.target.queues_granted = 2;
  CHECK(disk.volume->run_until([&] { return disk.volume->state() == VolumeState::live; }, disk.now() + 20s));
}

TEST_CASE("Closed, a volume ends what waits on every lane, and takes no more") {
  TwoLanes disk;
  disk.open();
  disk.hold_writes();
  Memory data(512);
  std::array<Ticket, 2> writes;
  for (std::size_t i = 0; i < 2; ++i)
    REQUIRE(submit(disk.volume->lane(i), writes.at(i), initiator::Operation::write, Lba(i), data.all()) ==
            Submitted::accepted);
  REQUIRE_FALSE(disk.run_until_done(writes[1], 100ms));
  disk.volume->close();
  for (const Ticket& write : writes) {
    CHECK(write.done == 1);
    CHECK(write.request.outcome == Outcome::aborted);
  }
  Ticket late;
  CHECK(submit(disk.volume->lane(1), late, initiator::Operation::read, Lba(0), data.all()) == Submitted::dead);
}
