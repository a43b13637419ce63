// Two ways to one disk: which of them a volume takes, and when. One target with two listeners, each on a machine of its own
// that the network can cut off. docs/recovery.md.

#include <catch2/catch.hpp>

#include <array>

#include "initiator/volume.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/sim/initiator_rig.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using initiator::Outcome;
using initiator::Submitted;
using initiator::VolumeState;
using nvme::AccessState;

namespace {

class TwoWays {
 public:
  explicit TwoWays(std::uint64_t seed = 1) : network({.seed = seed}, null_logger()) {
    target_reactor_ = make_reactor();
    network.add(*target_reactor_);
    reactor_ = make_reactor();
    auto opened = target::Target::open({.clock = network.clock(),
                                        .logger = null_logger(),
                                        .random = network.random(),
                                        .given_reactors = {target_reactor_.get()},
                                        .limits = {.buffers = Bytes(4 * kMiB)}});
    REQUIRE(opened.has_value());
    target = std::move(*opened);
    REQUIRE(target->add_subsystem(nqn(kSubsystem), {.allow_any_host = true}).has_value());
    auto ram = target::make_store("ram:size=1MiB",
                                  {.clock = network.clock(), .random = network.random(), .logger = null_logger()});
    REQUIRE(target->add_namespace(nqn(kSubsystem), std::move(*ram)).has_value());
    for (std::size_t i = 0; i < 2; ++i) {
      const Uri address = *Uri::parse(std::string("nvme+sim://") + kWays[i]);
      addresses_[i] = *Uri::parse(*target->listen(network.fabric(kWays[i]), address));
      uris.push_back(*Uri::parse(std::string("nvme+sim://") + kWays[i] + "/" + kSubsystem + "/1"));
    }
    REQUIRE(target->start().has_value());
    (void)network.fabric("host");  // so that it can be cut off before it has done anything
    options.session = {.keep_alive = 1s, .command_timeout = 1s};
    options.attempt_timeout = 1s;
    options.on_succession = [this](const initiator::Succession& succession) -> Result<void> {
      way = succession.uri == uris[0].to_string() ? 0 : 1;
      return {};
    };
  }
  ~TwoWays() {
    volume.reset();
    network.faults().heal();
    target->drain(Duration::zero());
    CHECK(network.run_for(20s, [this] { return target->drained(); }) == transport::sim::Network::Outcome::done);
    target.reset();
    network.remove(*target_reactor_);
  }
  void open() {
    auto opened = initiator::Volume::open({network.fabric("host"), network.clock(), null_logger(), network.random()},
                                          uris, *reactor_, options);
    if (!opened) FAIL(opened.error().message());
    volume = std::move(*opened);
  }
  void set(std::size_t which, AccessState state) { REQUIRE(target->set_access(addresses_[which], state).has_value()); }
  void cut(std::size_t which) { network.faults().partition("host", kWays[which]); }
  void join(std::size_t which) { network.faults().join("host", kWays[which]); }
  bool run_until(const std::function<bool()>& done, Duration within = 10s) {
    return volume->run_until(done, now() + within);
  }
  bool is_live_on(std::size_t which, Duration within = 10s) {
    return run_until([&] { return volume->state() == VolumeState::live && way == which; }, within);
  }
  Outcome write(std::uint64_t lba, std::byte value, Duration within = 20s) {
    Memory data(512);
    std::fill(data.bytes.begin(), data.bytes.end(), value);
    Ticket ticket;
    REQUIRE(volume->write(ticket.request, Lba(lba), data.all()) == Submitted::accepted);
    REQUIRE(run_until([&] { return ticket.done == 1; }, within));
    return ticket.request.outcome;
  }
  std::byte read(std::uint64_t lba) {
    Memory data(512);
    Ticket ticket;
    REQUIRE(volume->read(ticket.request, Lba(lba), data.all()) == Submitted::accepted);
    REQUIRE(run_until([&] { return ticket.done == 1; }, 20s));
    REQUIRE(ticket.request.outcome == Outcome::success);
    return data.bytes[100];
  }
  [[nodiscard]] Instant now() { return network.clock().now(); }

  static constexpr std::array kWays = {"left", "right"};
  transport::sim::Network network;
  std::unique_ptr<target::Target> target;
  std::vector<Uri> uris;
  initiator::VolumeOptions options;
  std::unique_ptr<initiator::Volume> volume;
  std::size_t way = 9;  ///< in use

 private:
  std::unique_ptr<transport::Reactor> make_reactor() {
    return std::move(transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network}).value());
  }
  std::unique_ptr<transport::Reactor> target_reactor_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::array<Uri, 2> addresses_;
};

}  // namespace

TEST_CASE("A volume takes the first path that works, and an optimized one before any other") {
  TwoWays ways;
  SECTION("both are as good") {
    ways.open();
    CHECK(ways.way == 0);
  }
  SECTION("the first is not optimized") {
    ways.set(0, AccessState::non_optimized);
    ways.open();
    CHECK(ways.way == 1);
  }
  SECTION("the second is not optimized, the first not there") {
    ways.cut(0);
    ways.set(1, AccessState::non_optimized);
    ways.open();
    CHECK(ways.way == 1);
  }
  SECTION("neither is optimized") {
    ways.set(0, AccessState::non_optimized);
    ways.set(1, AccessState::non_optimized);
    ways.open();
    CHECK(ways.way == 0);
  }
  SECTION("the first is inaccessible") {
    ways.set(0, AccessState::inaccessible);
    ways.open();
    CHECK(ways.way == 1);
  }
  CHECK(ways.write(1, std::byte{1}) == Outcome::success);
}

TEST_CASE("A volume without an accessible path is not opened, and one that has lost it waits") {
  TwoWays ways;
  const auto state = GENERATE(AccessState::inaccessible, AccessState::persistent_loss, AccessState::change);
  ways.open();
  ways.set(0, state);
  ways.set(1, state);
  REQUIRE(ways.run_until([&] { return ways.volume->state() == VolumeState::reconnecting; }));
  ways.network.at(ways.now() + 5s, [&] { ways.set(1, AccessState::non_optimized); });
  CHECK(ways.write(1, std::byte{1}) == Outcome::success);
  CHECK(ways.way == 1);
  CHECK(ways.volume->statistics().write.errors == 0);
}

TEST_CASE("A path that becomes inaccessible under requests is left, and no request fails") {
  TwoWays ways;
  ways.open();
  ways.set(0, AccessState::inaccessible);
  const Instant began = ways.now();
  CHECK(ways.write(1, std::byte{1}) == Outcome::success);
  CHECK(ways.now() - began < 100ms);
  CHECK(ways.is_live_on(1));
  CHECK(ways.volume->statistics().losses == 1);
}

TEST_CASE("An idle volume leaves a path that gets worse, and one that has no better stays") {
  TwoWays ways;
  ways.open();
  ways.set(0, AccessState::non_optimized);
  CHECK(ways.is_live_on(1));
  ways.set(1, AccessState::non_optimized);
  REQUIRE(ways.run_until([&] { return ways.volume->statistics().losses == 2; }));
  CHECK(ways.run_until([&] { return ways.volume->state() == VolumeState::live; }));
  (void)ways.run_until([] { return false; }, 5s);
  CHECK(ways.volume->statistics().losses == 2);
  CHECK(ways.write(1, std::byte{1}) == Outcome::success);
}

TEST_CASE("Another path is tried at once, however long attempts have been put off") {
  TwoWays ways;
  ways.options.backoff_first = 5s;
  ways.options.backoff_max = 5s;
  ways.open();
  CHECK(ways.write(1, std::byte{1}) == Outcome::success);
  ways.network.faults().change_address("left");  // the connections are gone at once, and nobody answers for a while
  const Instant began = ways.now();
  CHECK(ways.write(2, std::byte{2}) == Outcome::success);
  CHECK(ways.way == 1);
  CHECK(ways.now() - began < 2500ms);
  CHECK(ways.read(1) == std::byte{1});
}

TEST_CASE("A path that does not answer is left for the next when its time for an attempt is over") {
  TwoWays ways;
  ways.cut(0);
  const Instant began = ways.now();
  ways.open();
  CHECK(ways.way == 1);
  CHECK(ways.now() - began < 3s);
}

TEST_CASE("Twenty times one of two ways is cut off: no request fails, and everything that was written is there") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    INFO("seed " << seed);
    TwoWays ways(seed);
    Random random(seed);
    ways.open();
    std::array<std::byte, 16> expected{};
    for (int i = 1; i <= 60; ++i) {
      if (i % 20 == 10) ways.cut(ways.way);
      if (i % 20 == 0) {
        ways.join(0);
        ways.join(1);
      }
      const std::uint64_t lba = random.below(expected.size());
      expected[lba] = static_cast<std::byte>(i);
      REQUIRE(ways.write(lba, expected[lba]) == Outcome::success);
    }
    CHECK(ways.volume->statistics().losses == 3);
    CHECK(ways.volume->statistics().fence == initiator::FenceKind::target);
    CHECK(ways.volume->statistics().longest_loss < 1s);  // to let go of the old path, and to come by the other
    for (std::uint64_t lba = 0; lba < expected.size(); ++lba)
      CHECK(ways.read(lba) == expected[lba]);
  }
}
