#include "tests/wire/hostile_host.h"

#include <algorithm>
#include <array>
#include <exception>

#include "target/store/spec.h"

namespace rbt::test {

using nvme::IoOpcode;

namespace {

// The neighbour's queue can take all receive buffers of the target at once.
constexpr std::uint32_t kNeighboursEntries = HostileRig::kReceives + 1;
constexpr std::uint64_t kNeighboursBlocks = 256;
// Blocks at once, and what it rests between: seconds of virtual time are not to be millions of commands.
constexpr std::uint64_t kBurst = 4;
constexpr Duration kRest = std::chrono::milliseconds(50);

}  // namespace

RigOptions HostileRig::with_neighbours(RigOptions options, HostileRig* self) {
  if (options.reactors == RigOptions{}.reactors) options.reactors = 1;
  if (options.store == RigOptions{}.store) options.store = "ram:size=4MiB,block=4096";
  options.limits.receive_depth = kReceives;
  options.configure = [self, configure = options.configure](target::Target& target) {
    REQUIRE(target.add_subsystem(nqn(kNeighbours), {.allow_any_host = true, .serial = "SN2"}));
    self->neighbours_gate.open = true;
    auto store =
        target::make_store("ram:size=1MiB,block=4096",
                           {.clock = self->network.clock(), .random = self->neighbours_random, .logger = self->logger});
    REQUIRE(store.has_value());
    REQUIRE(target.add_namespace(nqn(kNeighbours), make_gated_store(std::move(*store), self->neighbours_gate)));
    if (configure) configure(target);
  };
  return options;
}

HostileRig::HostileRig(RigOptions options) : TargetRig(with_neighbours(std::move(options), this)) {
  auto reactor = transport::Reactor::create(network.clock(), logger, {.waiter = &network});
  REQUIRE(reactor.has_value());
  neighbours_reactor_ = std::move(*reactor);
  neighbour_ = std::make_unique<RawHost>(network.fabric("neighbour"), *neighbours_reactor_);
  host.swap(neighbour_);
  neighbours_queue_ = &io_queue(associate(kNeighbours), Qid(1), kNeighboursEntries, kNeighbours);
  host.swap(neighbour_);
  neighbours_memory_ = memory(*neighbours_queue_, kBlock);
  before_ = standing();
  meanwhile = [this] { be_neighbour(); };
  let_neighbour_work(1);
}

HostileRig::~HostileRig() {
  if (std::uncaught_exceptions() == 0) {
    network.faults().heal();
    let_neighbour_work();
    host->close_all();
    CHECK(run_until([&] { return standing() == before_; }));
    check_receive_buffers();
    let_neighbour_work();
    CHECK_FALSE(neighbour_hurt);
  }
  meanwhile = {};
  neighbours_memory_.reset();
  neighbour_->close_all();
  CHECK(run_until([&] { return neighbour_->connections() == 0; }));
  neighbour_.reset();
}

void HostileRig::come_in() {
  association = associate();
  admin = association.admin;
  queue = &io_queue(association, Qid(1), 16);
}

HostileRig::Standing HostileRig::standing() const {
  const auto statistics = target->statistics();
  Standing now{statistics.connections(), statistics.controllers, {}};
  for (const auto& reactor : statistics.reactors)
    now.buffers_free.push_back(reactor.buffers_free.value());
  return now;
}

// ---- the neighbour

void HostileRig::let_neighbour_work(std::uint64_t blocks) {
  const std::uint64_t wanted = verified + blocks;
  const bool went_on = run_until([&] { return verified >= wanted || neighbour_hurt; });
  CHECK(went_on);
  CHECK_FALSE(neighbour_hurt);
}

// Takes what has come and sends the next: a block is written, every other one out of the capsule, and read back.
void HostileRig::be_neighbour() {
  if (neighbour_hurt) return;
  if (awaited_) {
    const auto response = neighbours_queue_->take(*awaited_);
    if (!response) {
      neighbour_hurt = neighbours_queue_->ended();
      return;
    }
    awaited_.reset();
    neighbour_hurt = !response->status().ok();
    if (reading_) {
      neighbour_hurt |= !std::ranges::equal(written_, neighbours_memory_->bytes());
      if (++verified % kBurst == 0) {
        goes_on_ = network.clock().now() + kRest;
        network.at(goes_on_, [] {});
      }
    }
    reading_ = !reading_;
  }
  if (!reading_ && (resting_ || network.clock().now() < goes_on_)) return;
  auto sqe = entry(reading_ ? IoOpcode::read : IoOpcode::write, verified % kNeighboursBlocks);
  sqe.sgl = neighbours_memory_->keyed(kBlock);
  if (reading_) {
    std::ranges::fill(neighbours_memory_->bytes(), std::byte{0});
    awaited_ = neighbours_queue_->submit(sqe);
    return;
  }
  written_ = some_bytes(kBlock, verified);
  if (verified % 2 == 0) {
    sqe.sgl = in_capsule(0, kBlock);
    awaited_ = neighbours_queue_->submit(sqe, written_);
    return;
  }
  std::ranges::copy(written_, neighbours_memory_->bytes().begin());
  awaited_ = neighbours_queue_->submit(sqe);
}

// As many commands as the target has receive buffers, each kept in its own by a store that does not let it go on: none
// finds that somebody has not given one back.
void HostileRig::check_receive_buffers() {
  resting_ = true;
  CHECK(run_until([&] { return !awaited_; }));
  const auto stalled = [&] {
    std::uint64_t sum = 0;
    for (const auto& reactor : target->statistics().reactors)
      for (const auto& group : reactor.groups)
        sum += group.counters.receives_stalled;
    return sum;
  };
  const std::uint64_t stalled_before = stalled();
  neighbours_gate.open = false;
  for (std::uint32_t i = 0; i < kReceives; ++i) {
    auto sqe = entry(IoOpcode::write, i);
    sqe.sgl = in_capsule(0, kBlock);
    neighbours_queue_->submit(sqe, some_bytes(kBlock, i));
  }
  CHECK(run_until([&] { return neighbours_gate.waiting() == kReceives; }));
  CHECK(stalled() == stalled_before);
  neighbours_gate.open = true;
  neighbours_gate.let_all_through();
  CHECK(run_until([&] { return neighbours_queue_->responses.size() == kReceives; }));
  neighbours_queue_->responses.clear();
  resting_ = false;
}

void HostileRig::as_another_host(const std::function<void()>& what) {
  auto reactor = transport::Reactor::create(network.clock(), logger, {.waiter = &network});
  REQUIRE(reactor.has_value());
  auto other = std::make_unique<RawHost>(network.fabric("another"), **reactor);
  host.swap(other);
  what();
  host->close_all();
  expect([&] { return host->connections() == 0; }, "the other host goes");
  host.swap(other);
}

// ---- what comes back

nvme::StatusCode HostileRig::code(RawQueue& on, const nvme::SubmissionQueueEntry& sqe,
                                  std::span<const std::byte> data) {
  return execute(on, sqe, data).code();
}

void HostileRig::expect_closed(RawQueue& which) {
  expect([&] { return which.ended(); }, "the hostile connection is closed");
}

void HostileRig::expect_alive(RawQueue& which) {
  REQUIRE_FALSE(which.ended());
  const bool is_admin = &which == admin;
  const auto sqe = is_admin ? nvme::encode_abort({.qid = Qid(0), .cid = Cid(0xffff)}) : nvme::encode_flush(Nsid(1));
  CHECK(code(which, sqe) == nvme::StatusCode::success);
}

void HostileRig::say(RawQueue& on, const nvme::SubmissionQueueEntry& sqe, std::span<const std::byte> data) {
  const std::uint16_t cid = on.submit(sqe, data);
  expect([&] { return on.take(cid).has_value() || on.ended(); }, "answered or closed");
}

nvme::SglDescriptor HostileRig::in_capsule(std::uint64_t offset, std::uint32_t length) {
  nvme::OffsetDescriptor descriptor;
  descriptor.offset = offset;
  descriptor.length = length;
  descriptor.type = static_cast<std::uint8_t>(nvme::SglType::data_block_offset);
  return std::bit_cast<nvme::SglDescriptor>(descriptor);
}

nvme::SglDescriptor HostileRig::typed(nvme::SglDescriptor sgl, std::uint8_t type) {
  sgl.raw[15] = static_cast<std::byte>(type);
  return sgl;
}

}  // namespace rbt::test
