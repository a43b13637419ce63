// Volumes: one transition and one promise at a time, on a simulated network with its own clock. docs/recovery.md.

#include "initiator/recovery.h"

#include <array>
#include <set>

#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using initiator::Outcome;
using initiator::Submitted;
using initiator::Volume;
using initiator::VolumeState;

namespace {

constexpr std::array kAllStates = {VolumeState::live,   VolumeState::lost,   VolumeState::reconnecting,
                                   VolumeState::fenced, VolumeState::failed, VolumeState::closed};

/// A volume on a target that knows nothing of rbt's log page and fence.
struct ForeignDisk {
  explicit ForeignDisk(std::optional<Duration> on_loss = {}) {
    options.session.keep_alive = 2s;
    options.session.command_timeout = 1s;
    options.on_loss = on_loss;
    options.on_state = [this](VolumeState state, const Error*) { states.push_back(state); };
  }
  Result<std::unique_ptr<Volume>> try_open() {
    return Volume::open(host.environment(), std::array{target.uri()}, *host.reactor, options);
  }
  void open() {
    auto opened = try_open();
    if (!opened) FAIL(opened.error().message());
    volume = std::move(*opened);
    states.clear();
  }
  void lose_path() { target.link(Qid(1))->drop(); }
  [[nodiscard]] bool run_until_done(const Ticket& ticket, Duration within) {
    return volume->run_until([&] { return ticket.done == 1; }, now() + within);
  }
  [[nodiscard]] Instant now() { return network.clock().now(); }

  transport::sim::Network network;
  RawTarget target{network};
  Host host{network};
  initiator::VolumeOptions options;
  std::vector<VolumeState> states;
  std::unique_ptr<Volume> volume;
};

/// Writes wait in the target, unanswered, until it is told otherwise.
void hold_writes(ForeignDisk& disk) {
  disk.target.script = [](RawTarget::Link&, const RawTarget::Capsule& capsule) {
    return capsule.sqe.opcode == static_cast<std::uint8_t>(nvme::IoOpcode::write);
  };
}

}  // namespace

TEST_CASE("Every state of a volume can be reached, left unless it is the last, and has a name of its own") {
  std::set<std::string_view> names;
  for (const auto state : kAllStates) {
    names.insert(name(state));
    int ways_in = 0, ways_out = 0;
    for (const auto other : kAllStates) {
      ways_in += initiator::may_follow(other, state);
      ways_out += initiator::may_follow(state, other);
    }
    INFO(name(state));
    CHECK(ways_in > 0);
    CHECK((ways_out > 0) == (state != VolumeState::closed));
  }
  CHECK(names.size() == kAllStates.size());
  CHECK_FALSE(initiator::may_follow(VolumeState::reconnecting, VolumeState::live));  // not without the fence
  CHECK_FALSE(initiator::may_follow(VolumeState::lost, VolumeState::live));
}

TEST_CASE("A request outlives its path, and is sent again only when the old association is over") {
  ForeignDisk disk;
  disk.open();
  CHECK(disk.volume->statistics().fence == initiator::FenceKind::keep_alive);
  Memory data(512);
  data.fill(disk.network.random());
  hold_writes(disk);
  Ticket write;
  REQUIRE(disk.volume->write(write.request, Lba(5), data.all()) == Submitted::accepted);
  REQUIRE_FALSE(disk.run_until_done(write, 100ms));
  const Instant lost = disk.now();
  disk.lose_path();
  disk.target.script = {};
  REQUIRE(disk.run_until_done(write, 30s));
  CHECK(write.request.outcome == Outcome::success);
  CHECK(disk.now() - lost >= 2 * disk.options.session.keep_alive);
  CHECK(std::equal(data.bytes.begin(), data.bytes.end(), disk.target.disk.begin() + 5 * 512));
  CHECK(disk.states ==
        std::vector{VolumeState::lost, VolumeState::reconnecting, VolumeState::fenced, VolumeState::live});
  CHECK(disk.volume->statistics().reissued == 1);
  CHECK(disk.volume->statistics().losses == 1);
}

TEST_CASE("Requests are sent again in the order in which they were submitted") {
  ForeignDisk disk;
  disk.open();
  hold_writes(disk);
  std::vector<std::unique_ptr<Ticket>> writes;
  Memory data(512);
  const std::array<std::uint64_t, 6> order = {9, 2, 7, 1, 30, 4};
  for (const std::uint64_t lba : order) {
    writes.push_back(std::make_unique<Ticket>());
    REQUIRE(disk.volume->write(writes.back()->request, Lba(lba), data.all()) == Submitted::accepted);
  }
  REQUIRE_FALSE(disk.run_until_done(*writes.front(), 100ms));
  disk.lose_path();
  std::vector<std::uint64_t> seen;
  disk.target.script = [&](RawTarget::Link&, const RawTarget::Capsule& capsule) {
    if (capsule.sqe.opcode == static_cast<std::uint8_t>(nvme::IoOpcode::write)) seen.push_back(capsule.sqe.cdw10.get());
    return false;
  };
  for (const auto& write : writes)
    REQUIRE(disk.run_until_done(*write, 30s));
  CHECK(seen == std::vector<std::uint64_t>(order.begin(), order.end()));
}

TEST_CASE("Whatever ends a path, the volume comes back: connections, address, network, a deadline") {
  const auto how = GENERATE(0, 1, 2, 3, 4);
  INFO(how);
  ForeignDisk disk;
  disk.open();
  Memory data(512);
  Ticket read;
  if (how == 0) disk.lose_path();
  if (how == 1) disk.target.link(Qid(0))->drop();
  if (how == 2) disk.network.faults().change_address("host");
  if (how == 3) disk.network.faults().partition("host", "target");
  if (how == 4)  // swallows the request: its deadline ends the path
    disk.target.script = [&disk](RawTarget::Link&, const RawTarget::Capsule& capsule) {
      if (capsule.sqe.opcode != static_cast<std::uint8_t>(nvme::IoOpcode::read)) return false;
      disk.target.script = {};
      return true;
    };
  REQUIRE(disk.volume->read(read.request, Lba(0), data.all()) == Submitted::accepted);
  if (how == 3) {
    REQUIRE_FALSE(disk.run_until_done(read, 10s));
    disk.network.faults().join("host", "target");
  }
  REQUIRE(disk.run_until_done(read, 40s));
  CHECK(read.request.outcome == Outcome::success);
  const auto back = [&] {  // the admin queue alone is missed only when it is wanted
    return disk.volume->statistics().losses == 1 && disk.volume->state() == VolumeState::live;
  };
  CHECK(disk.volume->run_until(back, disk.now() + 40s));
}

TEST_CASE("An idle volume notices by its keep-alive that its path is gone") {
  ForeignDisk disk;
  disk.open();
  disk.network.faults().partition("host", "target");
  const auto lost = [&] { return disk.volume->state() != VolumeState::live; };
  CHECK(disk.volume->run_until(lost, disk.now() + 10s));
}

TEST_CASE("A volume that is to fail at once fails at once, with what waits") {
  ForeignDisk disk(Duration::zero());
  disk.open();
  hold_writes(disk);
  Memory data(512);
  Ticket write;
  REQUIRE(disk.volume->write(write.request, Lba(5), data.all()) == Submitted::accepted);
  REQUIRE_FALSE(disk.run_until_done(write, 100ms));
  disk.lose_path();
  REQUIRE(disk.run_until_done(write, 1s));
  CHECK(write.request.outcome == Outcome::disconnected);
  CHECK(disk.volume->state() == VolumeState::failed);
  REQUIRE(disk.volume->failure() != nullptr);
  CHECK_FALSE(disk.volume->failure()->message().empty());
  CHECK(disk.volume->write(write.request, Lba(5), data.all()) == Submitted::dead);
  CHECK(disk.states == std::vector{VolumeState::lost, VolumeState::failed});
}

TEST_CASE("A volume waits for a path as long as it was told to") {
  ForeignDisk disk(Duration(7s));
  disk.open();
  Memory data(512);
  Ticket read;
  const Instant lost = disk.now();
  disk.network.faults().kill("target");
  REQUIRE(disk.volume->read(read.request, Lba(0), data.all()) == Submitted::accepted);
  REQUIRE(disk.run_until_done(read, 60s));
  CHECK(read.request.outcome == Outcome::disconnected);
  CHECK(disk.now() - lost >= 7s);
  CHECK(disk.now() - lost <= 7s + disk.options.session.command_timeout + 2 * disk.options.attempt_timeout);
  CHECK(disk.volume->state() == VolumeState::failed);
}

TEST_CASE("Another disk at the same place is not written to: the volume fails and says what is there") {
  ForeignDisk disk;
  disk.open();
  hold_writes(disk);
  Memory data(512);
  Ticket write;
  REQUIRE(disk.volume->write(write.request, Lba(5), data.all()) == Submitted::accepted);
  REQUIRE_FALSE(disk.run_until_done(write, 100ms));
  disk.target.script = {};
  disk.target.name_space.nguid[3] = static_cast<std::uint8_t>(disk.target.name_space.nguid[3] + 1);
  disk.lose_path();
  const std::size_t writes = disk.target.count(static_cast<std::uint8_t>(nvme::IoOpcode::write));
  REQUIRE(disk.run_until_done(write, 60s));
  CHECK(write.request.outcome == Outcome::disconnected);
  REQUIRE(disk.volume->state() == VolumeState::failed);
  CHECK(disk.volume->failure()->kind() == ErrorKind::mismatch);
  CHECK(disk.target.count(static_cast<std::uint8_t>(nvme::IoOpcode::write)) == writes);
}

TEST_CASE("Without a keep-alive a target that cannot fence is refused") {
  ForeignDisk disk;
  disk.options.session.keep_alive = Duration::zero();
  const auto opened = disk.try_open();
  REQUIRE_FALSE(opened);
  CHECK(opened.error().kind() == ErrorKind::unsupported);
}

TEST_CASE("A closed volume has told everyone, wherever it was") {
  const bool lost = GENERATE(false, true);
  ForeignDisk disk;
  disk.open();
  hold_writes(disk);
  Memory data(512);
  Ticket write;
  REQUIRE(disk.volume->write(write.request, Lba(5), data.all()) == Submitted::accepted);
  if (lost) {
    disk.lose_path();
    REQUIRE_FALSE(disk.run_until_done(write, 500ms));
    REQUIRE(disk.volume->state() == VolumeState::reconnecting);
  }
  disk.volume->close();
  CHECK(write.done == 1);
  CHECK(write.request.outcome == Outcome::aborted);
  CHECK(disk.volume->state() == VolumeState::closed);
}

TEST_CASE("What can never be is refused at once, also without a path") {
  ForeignDisk disk;
  disk.open();
  disk.lose_path();
  Memory data(512);
  Ticket read;
  REQUIRE_FALSE(disk.volume->run_until([] { return false; }, disk.now() + 500ms));
  CHECK(disk.volume->read(read.request, Lba(RawTarget::kBlocks), data.all()) == Submitted::refused);
  CHECK(read.request.outcome == Outcome::out_of_range);
  CHECK(read.done == 0);
}

TEST_CASE("No more requests are taken than were asked for") {
  ForeignDisk disk;
  disk.options.requests = 2;
  disk.open();
  hold_writes(disk);
  Memory data(512);
  Ticket one, two, three;
  REQUIRE(disk.volume->write(one.request, Lba(1), data.all()) == Submitted::accepted);
  REQUIRE(disk.volume->write(two.request, Lba(2), data.all()) == Submitted::accepted);
  CHECK(disk.volume->write(three.request, Lba(3), data.all()) == Submitted::full);
  CHECK(disk.volume->in_flight() == 2);
  disk.volume->close();
  CHECK(disk.volume->in_flight() == 0);
}

TEST_CASE("A volume counts requests, bytes, errors and latencies by kind, as the caller sees them") {
  ForeignDisk disk;
  disk.open();
  Memory data(1024);
  Ticket read, flush, discard, zeroes, write;
  const std::array<BlockRange, 2> ranges = {BlockRange{Lba(1), Blocks(3)}, BlockRange{Lba(9), Blocks(4)}};
  REQUIRE(disk.volume->read(read.request, Lba(0), data.all()) == Submitted::accepted);
  REQUIRE(disk.volume->flush(flush.request) == Submitted::accepted);
  REQUIRE(disk.volume->discard(discard.request, ranges) == Submitted::accepted);
  REQUIRE(disk.volume->write_zeroes(zeroes.request, {Lba(0), Blocks(8)}) == Submitted::accepted);
  for (const Ticket* ticket : {&read, &flush, &discard, &zeroes})
    REQUIRE(disk.run_until_done(*ticket, 1s));

  disk.target.script = [&disk](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
    if (capsule.sqe.opcode != static_cast<std::uint8_t>(nvme::IoOpcode::write)) return false;
    link.drop();
    disk.target.script = [](RawTarget::Link& later, const RawTarget::Capsule& again) {
      if (again.sqe.opcode != static_cast<std::uint8_t>(nvme::IoOpcode::write)) return false;
      later.respond(again.sqe, nvme::Status(nvme::StatusCode::write_fault));
      return true;
    };
    return true;
  };
  REQUIRE(disk.volume->write(write.request, Lba(3), data.all()) == Submitted::accepted);
  REQUIRE(disk.run_until_done(write, 30s));
  CHECK(write.request.outcome == Outcome::failed);

  const initiator::VolumeStatistics& counted = disk.volume->statistics();
  CHECK(counted.read.requests == 1);
  CHECK(counted.read.bytes == 1024);
  CHECK(counted.flush.requests == 1);
  CHECK(counted.flush.bytes == 0);
  CHECK(counted.discard.requests == 2);
  CHECK(counted.discard.bytes == 15 * 512);
  CHECK(counted.write.requests == 1);
  CHECK(counted.write.bytes == 1024);
  CHECK(counted.write.errors == 1);
  CHECK(counted.read.errors + counted.flush.errors + counted.discard.errors == 0);
  CHECK(counted.read.latency.count() == 1);
  CHECK(counted.read.latency.max_us() > 0);
  CHECK(counted.read.latency.max_us() < 100'000);
  CHECK(counted.write.latency.max_us() >= 4e6);  // the fence of a foreign target took as long as that
}

TEST_CASE("What happened to a disk while its path was lost is told when the path is back: size, and who may write") {
  ForeignDisk disk;
  std::vector<initiator::DiskChange> changes;
  disk.options.on_change = [&](initiator::DiskChange change) { changes.push_back(change); };
  disk.open();
  disk.target.name_space.nsze = disk.target.name_space.ncap = nvme::to_le(RawTarget::kBlocks - 1);
  disk.target.name_space.nsattr = 1;
  disk.lose_path();
  REQUIRE(disk.volume->run_until([&] { return changes.size() == 2; }, disk.now() + 30s));
  CHECK(changes == std::vector{initiator::DiskChange::shrunk, initiator::DiskChange::read_only});
  CHECK(disk.volume->disk().blocks == Blocks(RawTarget::kBlocks - 1));
  Memory data(512);
  Ticket one;
  CHECK(disk.volume->read(one.request, Lba(RawTarget::kBlocks - 1), data.all()) == Submitted::refused);
  CHECK(one.request.outcome == Outcome::out_of_range);
  CHECK(disk.volume->write(one.request, Lba(1), data.all()) == Submitted::refused);
  CHECK(one.request.outcome == Outcome::unsupported);
}

TEST_CASE("A command that did not reach its namespace is sent again, over another path") {
  ForeignDisk disk;
  disk.open();
  int refused = 0;
  disk.target.script = [&](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
    if (capsule.sqe.opcode != static_cast<std::uint8_t>(nvme::IoOpcode::write) || refused == 3) return false;
    ++refused;
    link.respond(capsule.sqe, nvme::Status(nvme::StatusCode::internal_path_error));
    return true;
  };
  Memory data(512);
  Ticket write;
  REQUIRE(disk.volume->write(write.request, Lba(5), data.all()) == Submitted::accepted);
  REQUIRE(disk.run_until_done(write, 60s));
  CHECK(write.request.outcome == Outcome::success);
  CHECK(disk.volume->statistics().losses == 3);
}

TEST_CASE("A path that is there and of no use is no path: attempts pause, and the volume fails in its time") {
  ForeignDisk disk;
  disk.options.on_loss = 5s;
  disk.options.fencing = initiator::Fencing::off;  // else it pauses for the keep-alive
  auto opened = Volume::open(disk.host.environment(), std::array{disk.target.uri(), disk.target.uri()},
                             *disk.host.reactor, disk.options);
  REQUIRE(opened);
  disk.volume = std::move(*opened);
  disk.target.script = [](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
    if (capsule.sqe.opcode != static_cast<std::uint8_t>(nvme::IoOpcode::write)) return false;
    link.respond(capsule.sqe, nvme::Status(nvme::StatusCode::internal_path_error));
    return true;
  };
  Memory data(512);
  Ticket write;
  REQUIRE(disk.volume->write(write.request, Lba(5), data.all()) == Submitted::accepted);
  const Instant began = disk.now();
  REQUIRE(disk.run_until_done(write, 60s));
  CHECK(write.request.outcome == Outcome::disconnected);
  CHECK(disk.volume->state() == VolumeState::failed);
  CHECK(disk.now() - began >= 5s);
  CHECK(disk.now() - began < 7s);
  CHECK(disk.volume->statistics().attempts > 5);
  CHECK(disk.volume->statistics().attempts < 40);
}

TEST_CASE(
    "An attempt by way of a network that is not there is short, but now and then, and the network is found when it "
    "is") {
  ForeignDisk disk;
  disk.open();
  disk.network.faults().partition("host", "target");
  Memory data(512);
  Ticket read;
  REQUIRE(disk.volume->read(read.request, Lba(0), data.all()) == Submitted::accepted);
  REQUIRE_FALSE(disk.run_until_done(read, 30s));  // 7 of which have passed when the first attempt may be made
  // A second and a pause each, every eighth takes three; it were six if all took as long as they may.
  CHECK(disk.volume->statistics().attempts >= 11);
  CHECK(disk.volume->statistics().attempts <= 30);
  disk.network.faults().join("host", "target");
  const Instant back = disk.now();
  REQUIRE(disk.run_until_done(read, 30s));
  CHECK(disk.now() - back < 2s);
}
