// An initiator's session while the target's namespaces come, go and change their size: once by hand, then by chance, with
// faults, against a model of which disk a number stood for when.

#include <catch2/catch.hpp>

#include <array>
#include <cstring>

#include "initiator/initiator.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/sim/changing_store.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using initiator::Outcome;
using initiator::Submitted;

namespace {

constexpr std::uint64_t kBlocks = 2048;  // of 512 bytes
constexpr std::uint64_t kNever = ~std::uint64_t{0};

/// A target without a raw host, and a session of the real initiator on a reactor of its own.
class World {
 public:
  explicit World(std::uint64_t seed) : network({.seed = seed}, null_logger()), random(seed + 1) {
    for (int i = 0; i < 2; ++i) {
      target_reactors_.push_back(make_reactor());
      network.add(*target_reactors_.back());
    }
    reactor = make_reactor();
    auto opened = target::Target::open({.clock = network.clock(),
                                        .logger = null_logger(),
                                        .random = random,
                                        .given_reactors = {target_reactors_[0].get(), target_reactors_[1].get()},
                                        .limits = {.buffers = Bytes(4 * kMiB)}});
    REQUIRE(opened.has_value());
    target = std::move(*opened);
    REQUIRE(target->add_subsystem(nqn(kSubsystem), {.allow_any_host = true}).has_value());
    uri_ = *Uri::parse(std::string("nvme+sim://target/") + kSubsystem);
    REQUIRE(target->add_namespace(nqn(kSubsystem), ram()).has_value());
    REQUIRE(target->listen(network.fabric("target"), uri_).has_value());
    REQUIRE(target->start().has_value());
  }
  ~World() {
    queue.reset();
    session.reset();
    target->drain(Duration::zero());
    CHECK(network.run_for(20s, [this] { return target->drained(); }) == transport::sim::Network::Outcome::done);
    target.reset();
    for (const auto& each : target_reactors_)
      network.remove(*each);
  }
  std::unique_ptr<transport::Reactor> make_reactor() {
    return std::move(transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network}).value());
  }
  std::unique_ptr<target::Store> ram() {
    return std::move(
        target::make_store("ram:size=1MiB", {.clock = network.clock(), .random = random, .logger = null_logger()})
            .value());
  }
  /// A live session and queue, if that can be had now.
  bool connect() {
    if (session && session->state() == initiator::SessionState::live && queue && queue->live()) return true;
    queue.reset();
    session.reset();
    auto made = initiator::Session::connect({network.fabric("host"), network.clock(), null_logger(), random}, uri_,
                                            {.keep_alive = 1s,
                                             .connect_timeout = 2s,
                                             .command_timeout = 2s,
                                             .management = reactor.get(),
                                             .on_event = [this](const nvme::AsyncEvent& event) {
                                               if (event.lid == NVME_LOG_LID_CHANGED_NS) ++events;
                                             }});
    if (!made) return false;
    session = std::move(*made);
    auto pair = session->open_queue_pair(*reactor, {.depth = 32, .bounce = Bytes(4 * kMiB)});
    if (pair) queue = std::move(*pair);
    return queue != nullptr;
  }
  bool run_until(const std::function<bool()>& done, Duration within = 5s) {
    return reactor->run_until(done, network.clock().now() + within);
  }

  transport::sim::Network network;
  Random random;
  std::unique_ptr<transport::Reactor> reactor;
  std::unique_ptr<target::Target> target;
  std::unique_ptr<initiator::Session> session;
  std::unique_ptr<initiator::QueuePair> queue;
  int events = 0;

 private:
  std::vector<std::unique_ptr<transport::Reactor>> target_reactors_;
  Uri uri_;
};

}  // namespace

TEST_CASE("A session hears of changed namespaces and reads them again") {
  StoreHand hand{.blocks = 1000};
  World world(1);
  REQUIRE(world.connect());
  CHECK(world.session->namespaces().size() == 1);
  REQUIRE(world.target->add_namespace(nqn(kSubsystem), make_changing_store(world.ram(), hand)).has_value());
  CHECK(world.run_until([&] { return world.events == 1; }));
  auto now = world.session->rescan();
  REQUIRE(now.has_value());
  REQUIRE(now->size() == 2);
  CHECK((*now)[1].blocks == Blocks(1000));
  CHECK(world.session->namespaces().size() == 1);  // as it was: requests point into it

  hand.resize(2000);
  CHECK(world.run_until([&] { return world.events == 2; }));
  const auto grown = world.session->rescan();
  REQUIRE(grown.has_value());
  CHECK((*grown)[1].blocks == Blocks(2000));
  std::array<std::byte, 512> block{};
  const iovec piece{block.data(), block.size()};
  initiator::Request request;
  CHECK(world.queue->write(request, (*now)[1], Lba(1500), {&piece, 1}) == Submitted::refused);  // by the old copy
  CHECK(world.queue->write(request, (*grown)[1], Lba(1500), {&piece, 1}) == Submitted::accepted);
  CHECK(world.queue->wait(request, world.network.clock().now() + 5s));
  CHECK(request.outcome == Outcome::success);

  hand.resize(100);
  CHECK(world.queue->read(request, (*grown)[1], Lba(1500), {&piece, 1}) == Submitted::accepted);
  CHECK(world.queue->wait(request, world.network.clock().now() + 5s));
  CHECK(request.outcome == Outcome::failed);
  CHECK(request.status.code() == nvme::StatusCode::lba_out_of_range);

  REQUIRE(world.target->remove_namespace(nqn(kSubsystem), Nsid(2), {}).has_value());
  CHECK(world.queue->read(request, (*grown)[1], Lba(0), {&piece, 1}) == Submitted::accepted);
  CHECK(world.queue->wait(request, world.network.clock().now() + 5s));
  CHECK(request.status.code() == nvme::StatusCode::invalid_namespace);
  now = world.session->rescan();
  REQUIRE(now.has_value());
  CHECK(now->size() == 1);
}

namespace {

/// A disk that stood, or stands, for a number. Times are counted in steps of the simulation.
struct Disk {
  std::uint32_t nsid;
  std::uint64_t added, removed = kNever;
  std::uint64_t blocks_least = kBlocks;  ///< ever
  StoreHand hand{};
};
/// A write of blocks that hold its number.
struct Write {
  std::uint32_t nsid;
  std::uint64_t began, ended = kNever;  ///< never: nobody knows if the target has carried it out, or when
};

class Simulation {
 public:
  explicit Simulation(std::uint64_t seed) : world_(seed), random_(seed * 7 + 3) {
    for (Slot& slot : slots_) {
      slot.request.context = &slot;
      slot.request.done = [](initiator::Request& request) {
        auto& done = *static_cast<Slot*>(request.context);
        done.owner->judge(done);
      };
      slot.owner = this;
    }
    if (seed % 4 == 0) return;  // an undisturbed world, in which nothing may fail that need not
    faulty_ = true;
    transport::sim::FaultPlan plan;
    plan.packet_lost = 300;
    plan.stalled = 500;
    plan.connection_lost = 3000;
    plan.of(transport::sim::Operation::register_memory) = 15;
    plan.of(transport::sim::Operation::post_full) = 50;
    world_.network.faults().plan(plan);
  }

  void run() {
    for (step_ = 1; step_ <= 400; ++step_) {
      change();
      if (world_.connect()) {
        rescan();
        for (Slot& slot : slots_)
          if (!slot.busy && !snapshots_.empty()) submit(slot);
      }
      pass(std::chrono::microseconds(random_.below(300)));
    }
    world_.network.faults().heal();
    CHECK(world_.run_until([&] { return std::none_of(slots_.begin(), slots_.end(), [](auto& s) { return s.busy; }); },
                           20s));
    for (auto& disk : disks_)
      if (disk->removed == kNever) remove(*disk);
    CHECK(world_.run_until(
        [&] { return std::none_of(disks_.begin(), disks_.end(), [](auto& d) { return d->hand.exists; }); }, 20s));
    CHECK(world_.target->statistics().namespaces_leaving == 0);
    CHECK(world_.target->statistics().namespaces.size() == 1);
    CHECK(successes_ > 0);
    if (!faulty_) CHECK(failures_ == 0);
  }

 private:
  struct Slot {
    Simulation* owner = nullptr;
    initiator::Request request{};
    std::array<std::uint64_t, 64> block{};
    iovec piece{};
    initiator::Namespace ns{};
    std::uint64_t began = 0, write = 0;  // its number in writes_, plus one; 0: a read
    bool busy = false;
  };

  void pass(Duration time) {
    static_cast<void>(world_.run_until([] { return false; }, time));
  }
  Disk* standing(std::uint32_t nsid) {
    for (auto& disk : disks_)
      if (disk->nsid == nsid && disk->removed == kNever) return disk.get();
    return nullptr;
  }
  void remove(Disk& disk) {
    disk.removed = step_;
    REQUIRE(world_.target
                ->remove_namespace(nqn(kSubsystem), Nsid(disk.nsid),
                                   [&disk](std::unique_ptr<target::Store> store) {
                                     CHECK(disk.hand.queues == 0);
                                     store.reset();
                                     CHECK_FALSE(disk.hand.exists);
                                   })
                .has_value());
  }
  void change() {
    if (!random_.once_in(4)) return;
    const auto nsid = static_cast<std::uint32_t>(2 + random_.below(3));
    Disk* const disk = standing(nsid);
    if (disk == nullptr) {
      auto added = std::make_unique<Disk>();
      added->nsid = nsid;
      added->added = step_;
      auto store = make_changing_store(world_.ram(), added->hand);
      const auto done = world_.target->add_namespace(nqn(kSubsystem), std::move(store), Nsid(nsid));
      if (!done && faulty_) {
        added->removed = step_;  // it may have been there for a moment
      } else {
        REQUIRE(done.has_value());
      }
      disks_.push_back(std::move(added));
    } else if (random_.once_in(2)) {
      remove(*disk);
    } else {
      const std::uint64_t blocks = 1 + random_.below(kBlocks);
      disk->blocks_least = std::min(disk->blocks_least, blocks);
      disk->hand.resize(blocks);
    }
  }
  void rescan() {
    if (!snapshots_.empty() && !random_.once_in(5)) return;  // old ones are used, too
    if (auto fresh = world_.session->rescan()) {
      snapshots_ = std::move(*fresh);
    } else {
      CHECK(faulty_);
    }
  }
  void submit(Slot& slot) {
    slot.ns = snapshots_[random_.below(snapshots_.size())];
    slot.began = step_;
    slot.write = 0;
    if (random_.once_in(2)) {
      writes_.push_back({.nsid = slot.ns.nsid.value(), .began = step_});
      slot.write = writes_.size();
    }
    slot.block.fill(slot.write);
    slot.piece = {slot.block.data(), sizeof slot.block};
    const Lba lba(random_.below(std::min<std::uint64_t>(slot.ns.blocks.value(), 64)));
    const auto submitted = slot.write != 0 ? world_.queue->write(slot.request, slot.ns, lba, {&slot.piece, 1})
                                           : world_.queue->read(slot.request, slot.ns, lba, {&slot.piece, 1});
    slot.busy = submitted == Submitted::accepted;
  }
  /// Disks that stood for its number at some time between its beginning and now.
  template <typename Predicate>
  bool any_disk(const Slot& slot, const Predicate& predicate) {
    return std::any_of(disks_.begin(), disks_.end(), [&](const auto& disk) {
      return disk->nsid == slot.ns.nsid.value() && disk->added <= step_ && disk->removed >= slot.began &&
             predicate(*disk);
    });
  }
  void judge(Slot& slot) {
    slot.busy = false;
    const bool fixed = slot.ns.nsid == Nsid(1);
    if (slot.request.outcome == Outcome::success) {
      ++successes_;
      CHECK((fixed || any_disk(slot, [](const Disk&) { return true; })));
      if (slot.write != 0) {
        writes_[slot.write - 1].ended = step_;
        return;
      }
      const std::uint64_t number = slot.block[0];
      CHECK(std::all_of(slot.block.begin(), slot.block.end(), [number](std::uint64_t each) { return each == number; }));
      if (number == 0) return;  // never written
      REQUIRE(number <= writes_.size());
      const Write& write = writes_[number - 1];
      REQUIRE(write.nsid == slot.ns.nsid.value());
      // One and the same disk stood there for both.
      CHECK((fixed || any_disk(slot, [&](const Disk& disk) {
               return disk.added <= write.ended && disk.removed >= write.began;
             })));
    } else if (slot.request.outcome == Outcome::failed) {
      const auto code = slot.request.status.code();
      if (code == nvme::StatusCode::invalid_namespace) {
        CHECK_FALSE(fixed);
        const bool always_there =
            any_disk(slot, [&](const Disk& disk) { return disk.added < slot.began && disk.removed > step_; });
        CHECK_FALSE(always_there);
      } else if (code == nvme::StatusCode::lba_out_of_range) {
        CHECK(any_disk(slot, [](const Disk& disk) { return disk.blocks_least < 64; }));
      } else {
        FAIL("status " << nvme::describe(slot.request.status));
      }
    } else {
      ++failures_;
      CHECK(faulty_);
    }
  }
  std::vector<std::unique_ptr<Disk>> disks_;  // outlive their stores
  std::vector<Write> writes_;
  World world_;
  Random random_;
  bool faulty_ = false;
  std::uint64_t step_ = 0, successes_ = 0, failures_ = 0;
  std::vector<initiator::Namespace> snapshots_;
  std::array<Slot, 8> slots_;
};

}  // namespace

TEST_CASE("Whatever comes and goes, nobody reads another disk's blocks, and every removed store is given back") {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    INFO("seed " << seed);
    Simulation(seed).run();
  }
}
