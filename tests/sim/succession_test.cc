// Volumes that go on where another process's has ended. The targets are those of a script: one that knows rbt's log page and
// fence, and a foreign one. docs/recovery.md.

#include "initiator/succession.h"

#include <array>

#include "common/nvme/recovery.h"
#include "initiator/volume.h"
#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using initiator::AcceptLoss;
using initiator::MemoryKind;
using initiator::Outcome;
using initiator::Submitted;
using initiator::Succession;
using initiator::Volume;
using initiator::VolumeState;

namespace {

constexpr auto kWrite = static_cast<std::uint8_t>(nvme::IoOpcode::write);
constexpr auto kFlush = static_cast<std::uint8_t>(nvme::IoOpcode::flush);

/// Two processes, one after the other: each with a volume over a target that answers as it is told to.
struct Heirs {
  explicit Heirs(bool rbt_target = true) {
    options.session.keep_alive = 2s;
    options.session.command_timeout = 1s;
    options.on_succession = [this](const Succession& succession) -> Result<void> {
      record = succession;
      ++records;
      io_when_recorded.push_back(io_commands());
      if (refuse_record) return failure(ErrorKind::resource, "no space left");
      return {};
    };
    target.controller.vwc = 1;
    target.name_space.nguid[0] = 7;
    if (!rbt_target) return;
    target.script = [this](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
      const auto& sqe = capsule.sqe;
      if (link.qid() != Qid(0)) return hold_flushes && sqe.opcode == kFlush;
      if (static_cast<nvme::AdminOpcode>(sqe.opcode) == nvme::kFenceOpcode) {
        fenced.push_back(nvme::parse_fence(sqe));
        const bool ends = fence_polls != 0 && fence_polls-- != 0;
        link.respond(sqe, {}, ends ? 1 : 0);
        return true;
      }
      if (static_cast<nvme::AdminOpcode>(sqe.opcode) != nvme::AdminOpcode::get_log_page ||
          nvme::parse_get_log_page(sqe)->lid != nvme::kRecoveryLogId)
        return false;
      ++association;
      nvme::RecoveryInfo info;
      info.association = {.instance = instance, .number = association};
      info.incarnation = incarnation;
      const auto log = nvme::encode_recovery_log(info);
      link.push(sqe, nvme::wire_bytes(log));
      return true;
    };
  }
  ~Heirs() { volume.reset(); }

  [[nodiscard]] std::size_t io_commands() const {
    std::size_t count = 0;
    for (const auto opcode : {nvme::IoOpcode::write, nvme::IoOpcode::flush, nvme::IoOpcode::write_zeroes})
      count += target.count(static_cast<std::uint8_t>(opcode));
    return count;
  }
  Result<void> try_open() {
    auto opened = Volume::open(host.environment(), std::array{target.uri()}, *host.reactor, options);
    if (!opened) return failure(std::move(opened.error()));
    volume = std::move(*opened);
    return {};
  }
  void open() {
    const auto opened = try_open();
    if (!opened) FAIL(opened.error().message());
  }
  /// The process ends without a word to anybody, and the next is given what it wrote down.
  void kill_process() {
    network.faults().partition("host", "target");
    volume.reset();
    network.faults().join("host", "target");
    options.predecessor = record;
  }
  void write(std::uint64_t lba) {
    Ticket ticket;
    REQUIRE(volume->write(ticket.request, Lba(lba), data.all()) == Submitted::accepted);
    REQUIRE(volume->run_until([&] { return ticket.done == 1; }, now() + 30s));
    REQUIRE(ticket.request.outcome == Outcome::success);
  }
  [[nodiscard]] Outcome flush() {
    Ticket ticket;
    REQUIRE(volume->flush(ticket.request) == Submitted::accepted);
    REQUIRE(volume->run_until([&] { return ticket.done == 1; }, now() + 30s));
    return ticket.request.outcome;
  }
  void run(Duration time) {
    (void)volume->run_until([] { return false; }, now() + time);
  }
  [[nodiscard]] Instant now() { return network.clock().now(); }

  transport::sim::Network network;
  RawTarget target{network};
  Host host{network};
  Memory data{512};
  initiator::VolumeOptions options;
  std::unique_ptr<Volume> volume;

  // What the target says, and what it was asked.
  nvme::InstanceId instance{1};
  std::uint64_t association = 0;
  nvme::Incarnation incarnation{.medium = {9}, .losses = 3};
  std::uint32_t fence_polls = 0;  ///< so often it is not done yet
  bool hold_flushes = false;
  std::vector<nvme::AssociationId> fenced;

  // What was written down.
  std::optional<Succession> record;
  int records = 0;
  std::vector<std::size_t> io_when_recorded;
  bool refuse_record = false;
};

}  // namespace

TEST_CASE("What a successor has to know is told before the first command, and is what the volume says of itself") {
  Heirs heirs;
  heirs.open();
  REQUIRE(heirs.record);
  CHECK(heirs.io_when_recorded.front() == 0);
  CHECK(heirs.records == 1);  // nothing has changed until it was live
  CHECK(*heirs.record == heirs.volume->succession());
  CHECK(heirs.record->association == nvme::AssociationId{heirs.instance, 1});
  CHECK(heirs.record->uri == heirs.target.uri().to_string());
  CHECK(heirs.record->host_nqn == heirs.target.last_connect->host_nqn.text());
  CHECK(heirs.record->host_id == heirs.target.last_connect->host_id);
  CHECK(heirs.record->keep_alive == 2s);
  CHECK(heirs.record->memory == MemoryKind::on);
  CHECK(heirs.record->incarnation == heirs.incarnation);
  CHECK(heirs.record->disk.nguid[0] == 7);
  CHECK(heirs.record->disk.block_size == RawTarget::kBlockSize);
  CHECK(heirs.record->disk.blocks == Blocks(RawTarget::kBlocks));
}

TEST_CASE("What is const of a volume may be called from on_state, and says what on_succession was told") {
  Heirs heirs;
  heirs.open();
  heirs.volume.reset();
  std::vector<std::uint64_t> associations;
  heirs.options.on_state = [&](VolumeState state, const Error*) {
    if (!heirs.volume || (state != VolumeState::fenced && state != VolumeState::live)) return;
    CHECK(heirs.volume->state() == state);
    CHECK(heirs.volume->disk().blocks == Blocks(RawTarget::kBlocks));
    CHECK(heirs.volume->statistics().losses == 1);
    CHECK(heirs.volume->succession() == *heirs.record);
    associations.push_back(heirs.volume->succession().association.number);
  };
  heirs.open();
  heirs.target.link(Qid(1))->drop();
  REQUIRE(heirs.volume->run_until([&] { return associations.size() == 2; }, heirs.now() + 10s));
  CHECK(associations == std::vector<std::uint64_t>{3, 3});
}

TEST_CASE(
    "A successor fences its predecessor off before its first command, however long that takes, as the same host") {
  Heirs heirs;
  heirs.open();
  heirs.write(1);
  const Succession first = *heirs.record;
  heirs.kill_process();
  heirs.fence_polls = 5;
  heirs.records = 0;
  const std::size_t before = heirs.io_commands();
  heirs.io_when_recorded.clear();
  heirs.open();
  CHECK(heirs.fenced == std::vector<nvme::AssociationId>(6, first.association));
  CHECK(heirs.target.last_connect->host_nqn.text() == first.host_nqn);
  CHECK(heirs.target.last_connect->host_id == first.host_id);
  CHECK(heirs.io_when_recorded.front() == before);
  CHECK(heirs.record->association.number == first.association.number + 1);
  CHECK(heirs.volume->statistics().fence == initiator::FenceKind::target);
}

TEST_CASE("The predecessor of a process that died before it had fenced is fenced by the next") {
  Heirs heirs;
  heirs.open();
  const Succession first = *heirs.record;
  heirs.kill_process();
  heirs.fence_polls = ~std::uint32_t{0};
  const auto opened = heirs.try_open();  // never gets as far as to write down itself
  REQUIRE_FALSE(opened);
  CHECK(opened.error().kind() == ErrorKind::in_use);
  CHECK(*heirs.record == first);
  heirs.fence_polls = 0;
  heirs.fenced.clear();
  heirs.open();
  CHECK(heirs.fenced == std::vector{first.association});
}

TEST_CASE("Another instance at the same address has no association to fence") {
  Heirs heirs;
  heirs.open();
  heirs.kill_process();
  heirs.instance = {2};
  const Instant began = heirs.now();
  heirs.open();
  CHECK(heirs.fenced.empty());
  CHECK(heirs.now() - began < 1s);
}

TEST_CASE("Another instance at another address is waited for, and so is a foreign target, twice the old keep-alive") {
  const bool foreign = GENERATE(false, true);
  Heirs heirs(!foreign);
  heirs.open();
  CHECK((heirs.record->association.number == 0) == foreign);
  heirs.kill_process();
  if (!foreign) heirs.options.predecessor->uri = "nvme+sim://elsewhere/nqn.2024-01.io.example:raw";
  heirs.instance = {2};
  heirs.options.predecessor->keep_alive = 3s;
  const Instant began = heirs.now();
  heirs.open();
  CHECK(heirs.now() - began >= 6s);
  CHECK(heirs.now() - began < 8s);
  CHECK(heirs.fenced.empty());
}

TEST_CASE("A successor finds the disk of its predecessor, or nothing is written") {
  Heirs heirs;
  heirs.open();
  heirs.kill_process();
  heirs.target.name_space.nguid[3] ^= 1;
  const std::size_t before = heirs.io_commands();
  const auto opened = heirs.try_open();
  REQUIRE_FALSE(opened);
  CHECK(opened.error().kind() == ErrorKind::mismatch);
  CHECK(heirs.io_commands() == before);
}

TEST_CASE("Unflushed writes that went with the process and with the target are missed, unless that is accepted") {
  const auto accept = GENERATE(AcceptLoss::no, AcceptLoss::yes);
  Heirs heirs;
  heirs.open();
  heirs.write(1);
  heirs.kill_process();
  heirs.options.accept_loss = accept;
  ++heirs.incarnation.losses;
  heirs.instance = {2};
  const auto opened = heirs.try_open();
  REQUIRE(opened.has_value() == (accept == AcceptLoss::yes));
  if (!opened) {
    CHECK(opened.error().kind() == ErrorKind::mismatch);
    CHECK(opened.error().message().find("accepting the loss") != std::string::npos);
  } else {
    CHECK(heirs.record->incarnation == heirs.incarnation);
  }
}

TEST_CASE("What cannot have been lost with the process is not missed: no memory, nothing kept") {
  const auto kind = GENERATE(MemoryKind::off, MemoryKind::not_needed, MemoryKind::foreign);
  Heirs heirs;
  heirs.open();
  heirs.kill_process();
  heirs.options.predecessor->memory = kind;
  ++heirs.incarnation.losses;
  CHECK(heirs.try_open());
}

TEST_CASE("A successor flushes what it has inherited, and until that is done a new incarnation is a loss") {
  const bool flushed = GENERATE(false, true);
  Heirs heirs;
  heirs.open();
  heirs.write(1);
  heirs.kill_process();
  heirs.hold_flushes = !flushed;
  const std::size_t flushes = heirs.target.count(kFlush);
  heirs.open();
  heirs.run(100ms);
  CHECK(heirs.target.count(kFlush) == flushes + 1);
  heirs.hold_flushes = false;
  ++heirs.incarnation.losses;
  heirs.target.link(Qid(1))->drop();
  const auto settled = [&] {
    return heirs.volume->statistics().losses == 1 &&
           (heirs.volume->state() == VolumeState::live || heirs.volume->state() == VolumeState::failed);
  };
  REQUIRE(heirs.volume->run_until(settled, heirs.now() + 10s));
  CHECK((heirs.volume->state() == VolumeState::live) == flushed);
  if (!flushed) CHECK(heirs.volume->failure()->kind() == ErrorKind::mismatch);
}

TEST_CASE("If what was inherited cannot be flushed, the next flush says so, once") {
  Heirs heirs;
  heirs.open();
  heirs.write(1);
  heirs.kill_process();
  bool fails = true;
  heirs.target.script = [&, before = heirs.target.script](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
    if (link.qid() == Qid(0) || capsule.sqe.opcode != kFlush || !std::exchange(fails, false))
      return before(link, capsule);
    link.respond(capsule.sqe, nvme::Status(nvme::StatusCode::write_fault));
    return true;
  };
  heirs.open();
  heirs.run(100ms);
  REQUIRE_FALSE(fails);
  CHECK(heirs.flush() == Outcome::failed);
  CHECK(heirs.flush() == Outcome::success);
}

TEST_CASE("A new incarnation is told when everything kept is written again to it, the new association before") {
  Heirs heirs;
  heirs.open();
  const nvme::Incarnation old = heirs.incarnation;
  heirs.write(1);
  ++heirs.incarnation.losses;
  heirs.records = 0;
  std::vector<Succession> told;
  std::vector<std::size_t> writes;
  const std::size_t before = heirs.target.count(kWrite);
  // The options were copied: what they refer to is what can be looked at.
  heirs.io_when_recorded.clear();
  heirs.target.link(Qid(1))->drop();
  const auto seen = [&] {
    if (heirs.record && (told.empty() || !(told.back() == *heirs.record))) told.push_back(*heirs.record);
    return heirs.volume->statistics().losses == 1 && heirs.volume->state() == VolumeState::live;
  };
  REQUIRE(heirs.volume->run_until(seen, heirs.now() + 10s));
  CHECK(heirs.records == 2);
  CHECK(heirs.io_when_recorded == std::vector<std::size_t>{before, before + 1});
  REQUIRE(told.size() >= 2);
  CHECK(told.front().incarnation == old);
  CHECK(told.back().incarnation == heirs.incarnation);
  CHECK(told.back().association.number == 2);
}

TEST_CASE("A path whose succession cannot be written down is not used, and is tried again") {
  Heirs heirs;
  heirs.open();
  heirs.refuse_record = true;
  heirs.target.link(Qid(1))->drop();
  heirs.run(3s);
  CHECK(heirs.volume->state() == VolumeState::reconnecting);
  REQUIRE(heirs.volume->failure() != nullptr);
  CHECK(heirs.volume->failure()->message().find("no space left") != std::string::npos);
  heirs.refuse_record = false;
  CHECK(heirs.volume->run_until([&] { return heirs.volume->state() == VolumeState::live; }, heirs.now() + 10s));
}

TEST_CASE("A successor that would be another host is refused before it has done anything") {
  Heirs heirs;
  heirs.open();
  heirs.kill_process();
  auto uri = heirs.target.uri();
  uri.options["hostid"] = "6b0c6a92-2f2c-4c5e-9a53-0a4a1ea0e4a1";
  const auto opened = Volume::open(heirs.host.environment(), std::array{uri}, *heirs.host.reactor, heirs.options);
  REQUIRE_FALSE(opened);
  CHECK(opened.error().kind() == ErrorKind::invalid_argument);
  CHECK(heirs.fenced.empty());
}

TEST_CASE("A record that cannot be one is refused") {
  Heirs heirs;
  heirs.open();
  heirs.kill_process();
  Succession& record = *heirs.options.predecessor;
  SECTION("a host without a name") {
    record.host_nqn.clear();
  }
  SECTION("a host without an identifier") {
    record.host_id = {};
  }
  SECTION("not a URI") {
    record.uri = "elsewhere";
  }
  SECTION("no block size") {
    record.disk.block_size = 0;
  }
  SECTION("no blocks") {
    record.disk.blocks = Blocks(0);
  }
  SECTION("an association that nothing ends") {
    record.association = {};
    record.keep_alive = {};
  }
  const auto opened = heirs.try_open();
  REQUIRE_FALSE(opened);
  CHECK(opened.error().kind() == ErrorKind::invalid_argument);
}

TEST_CASE("With patience a volume is opened when its target comes") {
  Heirs heirs;
  heirs.network.faults().partition("host", "target");
  heirs.options.open_patience = 30s;
  heirs.options.attempt_timeout = 1s;
  heirs.network.at(heirs.now() + 7s, [&] { heirs.network.faults().join("host", "target"); });
  const Instant began = heirs.now();
  heirs.open();
  CHECK(heirs.now() - began >= 7s);
  CHECK(heirs.now() - began < 12s);
}

TEST_CASE("Patience ends") {
  Heirs heirs;
  heirs.network.faults().partition("host", "target");
  heirs.options.open_patience = 5s;
  heirs.options.attempt_timeout = 1s;
  const Instant began = heirs.now();
  CHECK_FALSE(heirs.try_open());
  CHECK(heirs.now() - began >= 5s);
  CHECK(heirs.now() - began < 10s);
}

TEST_CASE("A target that is away is not waited for until the predecessor's keep-alive has passed") {
  Heirs heirs;
  heirs.options.session.keep_alive = 60s;
  heirs.open();
  heirs.kill_process();
  heirs.network.faults().partition("host", "target");
  const Instant began = heirs.now();
  CHECK_FALSE(heirs.try_open());
  CHECK(heirs.now() - began < 60s);
}
