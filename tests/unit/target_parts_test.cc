// The parts of the target that need no fabric: state table, transfers, registers, the controller table.

#include <array>
#include <catch2/catch.hpp>
#include <numeric>
#include <set>

#include "common/random.h"
#include "target/command_state.h"
#include "target/controller_table.h"
#include "target/credits.h"
#include "target/opcodes.h"
#include "target/registers.h"
#include "target/status.h"
#include "target/transfer.h"

using namespace rbt;
using namespace rbt::target;
using nvme::Configuration;
using nvme::PropertySize;
using nvme::StatusCode;

namespace {

constexpr std::array kAllStates = {CommandState::free,
                                   CommandState::decoding,
                                   CommandState::awaiting_second,
                                   CommandState::acquiring,
                                   CommandState::awaiting_read_credit,
                                   CommandState::pulling,
                                   CommandState::executing,
                                   CommandState::held,
                                   CommandState::awaiting_send_credit,
                                   CommandState::responding,
                                   CommandState::abandoned};
static_assert(kAllStates.size() == kCommandStates);

nvme::Nqn nqn(const char* text) {
  return *nvme::Nqn::parse(text);
}

}  // namespace

TEST_CASE("Every state of a command can be reached, left, and has a name of its own") {
  std::set<std::string_view> names;
  for (const auto state : kAllStates) {
    names.insert(name(state));
    int ways_in = 0, ways_out = 0;
    for (const auto other : kAllStates) {
      ways_in += may_follow(other, state);
      ways_out += may_follow(state, other);
    }
    INFO(name(state));
    CHECK(ways_in > 0);
    CHECK(ways_out > 0);
    CHECK_FALSE(may_follow(state, state));
    if (state != CommandState::free && state != CommandState::abandoned)
      CHECK(may_follow(state, CommandState::abandoned));
  }
  CHECK(names.size() == kCommandStates);
}

TEST_CASE("Nothing is executed before its data is there, and nothing is free before its response is out") {
  CHECK_FALSE(may_follow(CommandState::awaiting_read_credit, CommandState::executing));
  CHECK_FALSE(may_follow(CommandState::decoding, CommandState::executing));
  for (const auto state : kAllStates)
    CHECK(may_follow(state, CommandState::free) ==
          (state == CommandState::responding || state == CommandState::abandoned));
}

TEST_CASE("A transfer's work requests cover every byte once, in order, within the connection's limits") {
  const auto seed = GENERATE(range(0u, 50u));
  Random random(seed);
  std::vector<std::byte> memory(1 << 16);
  std::vector<transport::Segment> segments;
  for (std::size_t at = 0; at < memory.size();) {
    const auto length = std::min<std::size_t>(1 + random.below(6000), memory.size() - at);
    segments.push_back({memory.data() + at, static_cast<std::uint32_t>(length), 7});
    at += length;
  }
  transport::ConnectionLimits limits;
  limits.segments_max = static_cast<std::uint32_t>(1 + random.below(5));
  limits.message_max = 1 + random.below(20000);
  const std::uint64_t bytes = memory.size() - random.below(100);
  Transfer transfer(segments, bytes, 0x1000, 9);
  const std::byte* expected = memory.data();
  std::uint64_t remote = 0x1000;
  while (!transfer.done()) {
    Batch batch;
    const auto room = static_cast<std::uint32_t>(1 + random.below(10));
    transfer.fill(batch, transport::Opcode::rdma_write, limits, room);
    REQUIRE(batch.size() > 0);
    REQUIRE(batch.size() <= std::min(room, Batch::kRequestsMax));
    batch.finish(42);
    for (const auto& request : batch.requests()) {
      CHECK(request.remote_address == remote);
      CHECK(request.rkey == 9);
      CHECK(request.wr_id == 42);
      CHECK(request.signaled == (&request == &batch.requests().back()));
      CHECK(request.segments.size() <= limits.segments_max);
      std::uint64_t length = 0;
      for (const auto& segment : request.segments) {
        CHECK(segment.length > 0);
        CHECK(segment.data == expected);
        expected += segment.length;
        length += segment.length;
      }
      CHECK(length <= limits.message_max);
      remote += length;
    }
  }
  CHECK(expected == memory.data() + bytes);
}

TEST_CASE("Credits know whether they are whole") {
  Credits credits(3);
  CHECK(credits.whole());
  credits.take(2);
  CHECK(credits.free() == 1);
  CHECK_FALSE(credits.whole());
  credits.give(2);
  CHECK(credits.whole());
}

TEST_CASE("A reset is over when it is finished, or when the host enables again") {
  const auto write = [](Registers& registers, Configuration configuration) {
    return *registers.set({.offset = 0x14, .size = PropertySize::four_bytes, .value = configuration.raw});
  };
  const auto ready = [](const Registers& registers) {
    return (*registers.get({.offset = 0x1c, .size = PropertySize::four_bytes, .value = 0}) & 1) != 0;
  };
  const auto enabled = Configuration{}.with_enabled(true).with_entry_size_shifts(6, 4);
  Registers registers(ControllerKind::io, 64);
  CHECK(write(registers, Configuration{}.with_entry_size_shifts(6, 4)) == Registers::Effect::none);
  CHECK_FALSE(registers.ready());
  CHECK(write(registers, enabled) == Registers::Effect::enabled);
  CHECK(registers.ready());
  CHECK(write(registers, enabled.with_enabled(false)) == Registers::Effect::reset);
  CHECK_FALSE(registers.ready());
  CHECK(ready(registers));  // CSTS.RDY, until the queues are gone
  registers.finish_reset();
  CHECK_FALSE(ready(registers));
  CHECK(write(registers, enabled) == Registers::Effect::enabled);
  CHECK(write(registers, enabled.with_enabled(false)) == Registers::Effect::reset);
  CHECK(write(registers, enabled) == Registers::Effect::enabled);
  registers.finish_reset();  // comes late and changes nothing
  CHECK(registers.ready());
}

TEST_CASE("A discovery controller does not mind the sizes of entries it never sees") {
  Registers discovery(ControllerKind::discovery, 64);
  const auto enabled = Configuration{}.with_enabled(true);
  CHECK(discovery.set({.offset = 0x14, .size = PropertySize::four_bytes, .value = enabled.raw}) ==
        Registers::Effect::enabled);
  CHECK(discovery.ready());
}

TEST_CASE("Controller ids go round, skip those in use, and run out") {
  ControllerTable table;
  Subsystem subsystem(0, {.nqn = nqn("nqn.2024-01.example:a"),
                          .kind = ControllerKind::discovery,
                          .allowed_hosts = {},
                          .serial = "",
                          .model = ""});
  ManualClock clock;
  transport::TimerQueue timers;
  const ControllerTable::Factory make = [&](Cntlid id) {
    return std::make_unique<Controller>(Controller::Identity{id, nqn("nqn.2024-01.example:h"), {}}, subsystem,
                                        Controller::Offer{64, 4, false}, timers, clock, [] {});
  };
  std::vector<Controller*> all;
  for (std::uint32_t i = 1; i <= nvme::kCntlidMax.value(); ++i) {
    all.push_back(table.create(make, {}));
    REQUIRE(all.back() != nullptr);
    REQUIRE(all.back()->identity().cntlid.value() == i);
  }
  CHECK(table.create(make, {}) == nullptr);
  table.detach(*all[4], Qid(0));
  CHECK_FALSE(table.contains(Cntlid(5)));
  CHECK(table.create(make, {})->identity().cntlid == Cntlid(5));
  table.detach(*all[0], Qid(0));
  table.detach(*all[9], Qid(0));
  CHECK(table.create(make, {})->identity().cntlid == Cntlid(10));  // behind the last one given
  CHECK(table.create(make, {})->identity().cntlid == Cntlid(1));
}

TEST_CASE("Every served opcode is found where it belongs, and nowhere else") {
  for (const Operation& operation : operations()) {
    CHECK(find_operation(operation.kind, operation.opcode) == &operation);
    CHECK((operation.effects != 0) == (operation.kind != QueueKind::fabrics));
  }
  CHECK(find_operation(QueueKind::io, 0x06) == nullptr);
  CHECK(find_operation(QueueKind::admin, 0x84) == nullptr);
  CHECK(find_operation(QueueKind::fabrics, 0xff) == nullptr);
}

TEST_CASE("Only success is success") {
  for (const auto status :
       {StoreStatus::read_error, StoreStatus::write_error, StoreStatus::no_space, StoreStatus::read_only,
        StoreStatus::out_of_range, StoreStatus::unsupported, StoreStatus::unavailable})
    CHECK_FALSE(status_of(status).ok());
  CHECK(status_of(StoreStatus::ok).ok());
}
