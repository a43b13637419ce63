// An old write is in the target's store when the path of its volume is lost. The volume comes back by a new one, and a newer write of the
// same block is done: the old one must not land on top of it. Between two devices whose packets cross a wire: --topology veth.
#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <memory>
#include <string>
#include <thread>

#include "initiator/volume.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/softroce/held_store.h"
#include "tests/softroce/process.h"
#include "tests/softroce/verbs_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using initiator::Fencing;
using initiator::Outcome;
using initiator::Request;
using initiator::Submitted;
using initiator::Volume;
using initiator::VolumeState;

namespace {

constexpr const char* kNqn = "nqn.2026-01.io.example:fenced";
constexpr const char* kUri = "nvme+rdma://10.1.2.1/nqn.2026-01.io.example:fenced/1";  // from v1 over the wire to v2
constexpr std::size_t kBlock = 4096;
constexpr int kRounds = 10;
constexpr Duration kPatience = 30s;
constexpr Duration kStraggling = 1s;  // that the old write stays in the store after the host has come back

/// RoCE's packets are dropped where they arrive, so that nobody is told, while this lives.
struct CutWire {
  CutWire() {
    (void)shell(
        "for link in v1 v2; do tc qdisc add dev $link ingress && tc filter add dev $link ingress protocol ip u32 "
        "match ip protocol 17 0xff match ip dport 4791 0xffff action drop || exit 1; done");
  }
  ~CutWire() { (void)shell("for link in v1 v2; do tc qdisc del dev $link ingress || exit 1; done"); }
  CutWire(const CutWire&) = delete;
  CutWire& operator=(const CutWire&) = delete;
};

/// The host's address goes while the wire is cut: the host notices at once and the target not at all.
void lose_the_path() {
  const CutWire cut;
  (void)shell("ip address del 10.1.1.1/32 dev v1");
}
/// Routes went with the address.
void give_the_path_back() {
  (void)shell(
      "ip address add 10.1.1.1/32 dev v1 && ip route replace 10.1.2.1/32 dev v1 src 10.1.1.1 table 101 &&"
      "ip route replace 10.1.1.1/32 dev v2 src 10.1.2.1 table 102");
}

/// A target with a thread of its own, whose store can hold a write, and a volume on it.
class World {
 public:
  explicit World(Fencing fencing) : fencing_(fencing) {
    auto fabric = transport::verbs::Fabric::open(*logger_);
    if (!fabric) FAIL(fabric.error().message());
    fabric_ = std::move(*fabric);
    // Shadow blocks: a write is there when it is committed, not as its data comes, and waits for no other.
    auto store = target::make_store("ram:size=64KiB,block=4096,atomic=shadow",
                                    {.clock = clock_, .random = random_, .logger = *logger_});
    REQUIRE(store.has_value());
    target_ = target::Target::open({.clock = clock_, .logger = *logger_, .random = random_}).value();
    const auto nqn = nvme::Nqn::parse(kNqn).value();
    REQUIRE(target_->add_subsystem(nqn, {.allow_any_host = true}).has_value());
    REQUIRE(target_->add_namespace(nqn, std::make_unique<HeldStore>(std::move(*store), hold_)).has_value());
    REQUIRE(target_->listen(*fabric_, Uri::parse(kUri).value()).has_value());
    REQUIRE(target_->start().has_value());
    reactor_ = transport::Reactor::create(clock_, *logger_).value();
    auto volume =
        Volume::open({*fabric_, clock_, *logger_, random_}, std::array{Uri::parse(kUri).value()}, *reactor_,
                     {.queue = {.depth = 16, .buffers = Bytes(4 * kMiB)}, .attempt_timeout = 10s, .fencing = fencing});
    if (!volume) FAIL(volume.error().message());
    volume_ = std::move(*volume);
    for (Slot* const slot : {&old_, &newer_, &read_})
      slot->memory = volume_->buffers()->allocate(kBlock);
  }

  ~World() { hold_.let_go = true; }  // a target waits for its store
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  struct Race {
    bool overtaken = false;    ///< the write was done over the new path while the old one was still in the store
    bool newer_there = false;  ///< the block has the newer write in the end
  };
  [[nodiscard]] Race race() {
    hold_.next = true;
    hold_.held = hold_.let_go = hold_.landed = false;
    const std::byte old_tag = next_tag();
    write(old_, old_tag);
    expect([&] { return hold_.held.load(); }, "the old write is in the store");
    const auto connections = target_->statistics().connections_accepted;
    lose_the_path();
    expect([&] { return volume_->state() != VolumeState::live; }, "the path is lost");
    give_the_path_back();

    // With the fence the store has to answer before the path is of use. Beside the volume, which waits for that.
    std::thread store([&] {
      if (fencing_ == Fencing::off) return;
      const Instant end = clock_.now() + kPatience;
      while (target_->statistics().connections_accepted == connections && clock_.now() < end)
        std::this_thread::sleep_for(10ms);
      std::this_thread::sleep_for(kStraggling);
      hold_.let_go = true;
    });
    Race race;
    const bool done = volume_->run_until([&] { return !old_.request.in_flight(); }, clock_.now() + kPatience);
    race.overtaken = !hold_.landed;
    store.join();
    REQUIRE(done);
    REQUIRE(old_.request.outcome == Outcome::success);
    const std::byte newer_tag = next_tag();
    write(newer_, newer_tag);
    expect_done(newer_, "the newer write");
    if (race.overtaken) hold_.let_go = true;
    expect([&] { return hold_.landed.load(); }, "the old write is over");
    const std::byte found = read();
    CHECK((found == newer_tag || found == old_tag));
    race.newer_there = found == newer_tag;
    return race;
  }
  [[nodiscard]] initiator::VolumeStatistics const& statistics() const { return volume_->statistics(); }

 private:
  struct Slot {
    Request request;
    std::span<std::byte> memory;
    iovec piece{};
  };
  [[nodiscard]] std::byte next_tag() { return static_cast<std::byte>(++tags_); }
  void write(Slot& slot, std::byte tag) {
    std::fill(slot.memory.begin(), slot.memory.end(), tag);
    slot.piece = {slot.memory.data(), kBlock};
    REQUIRE(volume_->write(slot.request, Lba(1), {&slot.piece, 1}) == Submitted::accepted);
  }
  [[nodiscard]] std::byte read() {
    read_.piece = {read_.memory.data(), kBlock};
    REQUIRE(volume_->read(read_.request, Lba(1), {&read_.piece, 1}) == Submitted::accepted);
    expect_done(read_, "a read");
    const std::byte tag = read_.memory.front();
    CHECK(std::all_of(read_.memory.begin(), read_.memory.end(), [tag](std::byte byte) { return byte == tag; }));
    return tag;
  }
  void expect_done(const Slot& slot, const std::string& what) {
    expect([&] { return !slot.request.in_flight(); }, what + " is done");
    REQUIRE(slot.request.outcome == Outcome::success);
  }
  void expect(const std::function<bool()>& done, const std::string& what) {
    INFO(what);
    REQUIRE(volume_->run_until(done, clock_.now() + kPatience));
  }

  Fencing fencing_;
  SystemClock clock_;
  Random random_ = Random::from_entropy();
  std::unique_ptr<Logger> logger_ = make_stderr_logger(LogLevel::info);
  HeldStore::Hold hold_;
  std::unique_ptr<transport::verbs::Fabric> fabric_;
  std::unique_ptr<target::Target> target_;
  std::unique_ptr<transport::Reactor> reactor_;
  Slot old_, newer_, read_;  // outlive the volume
  std::unique_ptr<Volume> volume_;
  unsigned tags_ = 0;
};

}  // namespace

TEST_CASE("Without the fence an old write lands on top of a newer one") {
  World world(Fencing::off);
  const auto race = world.race();
  CHECK(race.overtaken);
  CHECK_FALSE(race.newer_there);
  CHECK(world.statistics().losses == 1);
}

TEST_CASE(
    "Ten paths lost with a write in the store: nothing is done over the next path until it is out, and the newer write "
    "stays") {
  World world(Fencing::on);
  for (int round = 1; round <= kRounds; ++round) {
    INFO("round " << round);
    const auto race = world.race();
    CHECK_FALSE(race.overtaken);
    CHECK(race.newer_there);
  }
  CHECK(world.statistics().losses == kRounds);
  CHECK(world.statistics().fence == initiator::FenceKind::target);
}
