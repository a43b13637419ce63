// Disks that change under a volume: rbt's target in front, and a hand on its store. docs/recovery.md.

#include <catch2/catch.hpp>

#include <array>

#include "initiator/volume.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/sim/changing_store.h"
#include "tests/sim/initiator_rig.h"
#include "tests/sim/kept_store.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using initiator::DiskChange;
using initiator::Outcome;
using initiator::Submitted;
using initiator::VolumeState;

namespace {

class World {
 public:
  World() : network_({.seed = 1}, null_logger()) {
    target_reactor_ = make_reactor();
    network_.add(*target_reactor_);
    reactor_ = make_reactor();
    auto opened = target::Target::open({.clock = network_.clock(),
                                        .logger = null_logger(),
                                        .random = network_.random(),
                                        .given_reactors = {target_reactor_.get()},
                                        .limits = {.buffers = Bytes(4 * kMiB)}});
    REQUIRE(opened.has_value());
    target = std::move(*opened);
    REQUIRE(target->add_subsystem(nqn(kSubsystem), {.allow_any_host = true}).has_value());
    uri_ = *Uri::parse(std::string("nvme+sim://target/") + kSubsystem + "/1");
    disk = ram();
    add(hand, *disk);
    REQUIRE(target->listen(network_.fabric("target"), uri_).has_value());
    REQUIRE(target->start().has_value());
    auto volume_opened = initiator::Volume::open(
        {network_.fabric("host"), network_.clock(), null_logger(), network_.random()}, std::array{uri_}, *reactor_,
        {.session = {.keep_alive = 1s, .command_timeout = 2s},
         .on_change =
             [this](DiskChange change) {
               CHECK_FALSE(reactor_->turning());
               changes.push_back(change);
             },
         .on_state = [this](VolumeState state, const Error*) { states.push_back(state); }});
    REQUIRE(volume_opened.has_value());
    volume = std::move(*volume_opened);
    states.clear();
    CHECK(changes.empty());
  }
  ~World() {
    volume.reset();
    target->drain(Duration::zero());
    CHECK(network_.run_for(20s, [this] { return target->drained(); }) == transport::sim::Network::Outcome::done);
    target.reset();
    disk.reset();
    another.reset();
    network_.remove(*target_reactor_);
  }

  std::unique_ptr<target::Store> ram() {
    return std::move(
        target::make_store("ram:size=1MiB",
                           {.clock = network_.clock(), .random = network_.random(), .logger = null_logger()})
            .value());
  }
  /// Namespace 1. Every opening of `of` is one of the same disk.
  void add(StoreHand& its_hand, target::Store& of) {
    its_hand.write_cache = true;
    auto store = make_changing_store(std::make_unique<KeptStore>(of), its_hand);
    REQUIRE(target->add_namespace(nqn(kSubsystem), std::move(store), Nsid(1)).has_value());
  }
  void remove() { REQUIRE(target->remove_namespace(nqn(kSubsystem), Nsid(1), {}).has_value()); }
  bool run_until(const std::function<bool()>& done) { return volume->run_until(done, network_.clock().now() + 10s); }
  bool told(std::size_t count) {
    return run_until([&] { return changes.size() >= count; });
  }
  Outcome write(std::uint64_t lba) {
    Memory data(512);
    Ticket ticket;
    const Submitted submitted = volume->write(ticket.request, Lba(lba), data.all());
    if (submitted != Submitted::accepted) return ticket.request.outcome;
    CHECK(run_until([&] { return ticket.done == 1; }));
    last_status = ticket.request.status;
    return ticket.request.outcome;
  }

  std::unique_ptr<target::Store> disk;
  std::unique_ptr<target::Store> another;
  StoreHand hand{.blocks = 1000};
  StoreHand second_hand{.blocks = 1000};
  std::unique_ptr<target::Target> target;
  std::unique_ptr<initiator::Volume> volume;
  std::vector<DiskChange> changes;
  std::vector<VolumeState> states;
  nvme::Status last_status;

 private:
  std::unique_ptr<transport::Reactor> make_reactor() {
    return std::move(transport::Reactor::create(network_.clock(), null_logger(), {.waiter = &network_}).value());
  }
  transport::sim::Network network_;
  std::unique_ptr<transport::Reactor> target_reactor_;
  std::unique_ptr<transport::Reactor> reactor_;
  Uri uri_;
};

}  // namespace

TEST_CASE("A disk that grows is told of, and can be used to its new end, while its path lives") {
  World world;
  CHECK(world.volume->disk().blocks == Blocks(1000));
  CHECK(world.write(1500) == Outcome::out_of_range);
  world.hand.resize(2000);
  REQUIRE(world.told(1));
  CHECK(world.changes == std::vector{DiskChange::grown});
  CHECK(world.volume->disk().blocks == Blocks(2000));
  CHECK(world.write(1500) == Outcome::success);
  CHECK(world.states.empty());
  CHECK(world.volume->statistics().losses == 0);
}

TEST_CASE("A disk that shrinks is told of, and has nothing behind its end") {
  World world;
  world.hand.resize(500);
  REQUIRE(world.told(1));
  CHECK(world.changes == std::vector{DiskChange::shrunk});
  CHECK(world.write(700) == Outcome::out_of_range);
  CHECK(world.write(100) == Outcome::success);
  CHECK(world.states.empty());
}

TEST_CASE("A disk that is removed fails its requests as the target does, and is found again when it returns") {
  World world;
  CHECK(world.write(1) == Outcome::success);
  world.remove();
  REQUIRE(world.told(1));
  CHECK(world.changes == std::vector{DiskChange::removed});
  CHECK(world.write(1) == Outcome::failed);
  CHECK(world.last_status.code() == nvme::StatusCode::invalid_namespace);
  CHECK(world.volume->disk().blocks == Blocks(1000));
  CHECK(world.states.empty());

  world.second_hand.blocks = 1200;
  world.add(world.second_hand, *world.disk);
  REQUIRE(world.told(3));
  CHECK(world.changes == std::vector{DiskChange::removed, DiskChange::returned, DiskChange::grown});
  CHECK(world.write(1100) == Outcome::success);
  CHECK(world.volume->statistics().rewritten == 1);  // by another opening of the store, which may have forgotten
}

TEST_CASE("Another disk under the same number ends the volume") {
  World world;
  CHECK(world.write(1) == Outcome::success);
  world.another = world.ram();
  world.remove();
  world.add(world.second_hand, *world.another);
  REQUIRE(world.run_until([&] { return world.volume->state() == VolumeState::failed; }));
  CHECK(world.volume->failure()->kind() == ErrorKind::mismatch);
  CHECK(world.states == std::vector{VolumeState::lost, VolumeState::failed});
}

TEST_CASE("A namespace that went and came back at once is noticed: what it may have forgotten is written again") {
  World world;
  CHECK(world.write(1) == Outcome::success);
  world.remove();
  world.add(world.second_hand, *world.disk);
  REQUIRE(world.run_until([&] { return world.volume->statistics().rewritten == 1; }));
  REQUIRE(world.run_until([&] { return world.volume->state() == VolumeState::live; }));
  CHECK(world.changes.empty());
  CHECK(world.write(2) == Outcome::success);
}
