#include <deque>

#include "common/random.h"
#include "tests/unit/coherence_rig.h"

using namespace rbt;
using namespace rbt::test;
using Trace = std::vector<std::string>;

TEST_CASE("A change goes on only after the fence, and the region is registered again only when somebody asks") {
  CoherenceRig rig;
  rig.watch->change();
  rig.turn();
  CHECK(rig.world.trace == Trace{"fence", "acknowledge"});
  CHECK(rig.state() == RegionState::fenced);
  rig.pass(10s);
  CHECK(rig.state() == RegionState::fenced);
  rig.world.trace.clear();
  REQUIRE(rig.region->restore());
  CHECK(rig.world.trace == Trace{"arm", "register"});
  CHECK(rig.state() == RegionState::coherent);
  CHECK(rig.region->counters().events == 1);
  CHECK(rig.region->counters().last_change == Change::discarded);
}

TEST_CASE("With nothing in flight a change waits for no user's thread") {
  CoherenceRig rig;
  const Pass before = rig.use->enter();
  REQUIRE(before);
  CHECK(rig.use->leave(before) == Passage::clean);
  rig.watch->change();
  rig.turn();  // no user is asked anything
  CHECK_FALSE(rig.watch->blocked);
  CHECK_FALSE(rig.use->enter());
  CHECK(rig.use->in_flight() == 0);
}

TEST_CASE("A request in flight holds the fence back until it is over, and no other begins") {
  CoherenceRig rig;
  const Pass pass = rig.use->enter();
  REQUIRE(pass);
  rig.watch->change();
  rig.turn();
  rig.pass(499ms);
  CHECK(rig.state() == RegionState::quiescing);
  CHECK((rig.watch->blocked && rig.world.pinned == 1));
  CHECK_FALSE(rig.use->enter());
  CHECK(rig.use->leave(pass) == Passage::clean);
  rig.turn();
  CHECK((!rig.watch->blocked && rig.world.pinned == 0));
  CHECK(rig.one.take() == Trace{"fenced"});
  CHECK(rig.region->counters().overdue == 0);
  CHECK(rig.region->counters().blocked_last == 499ms);
}

TEST_CASE("A request that does not end within the bound loses its connection, and what it reports is not believed") {
  CoherenceRig rig;
  RecordingUser other;
  Use idle(*rig.region, other.user);
  const Pass pass = rig.use->enter();
  REQUIRE(pass);
  rig.watch->change();
  rig.turn();
  rig.pass(499ms);
  CHECK(rig.watch->blocked);
  rig.pass(1ms);
  CHECK((!rig.watch->blocked && rig.world.pinned == 0));
  CHECK(rig.one.take() == Trace{"overdue", "fenced"});
  CHECK(other.take() == Trace{"fenced"});
  REQUIRE(rig.region->restore());
  CHECK(rig.use->leave(pass) == Passage::fenced);
  CHECK(rig.region->counters().overdue == 1);
  const Pass next = rig.use->enter();
  REQUIRE(next);
  CHECK(rig.use->leave(next) == Passage::clean);
}

TEST_CASE("A fence that never answers does not hold the changer back: the users' connections go, and the region") {
  CoherenceRig rig;
  rig.watch->change();
  rig.monitor->turn_watch();
  rig.clock.advance(899ms);
  rig.monitor->turn_watch();
  CHECK(rig.watch->blocked);
  rig.clock.advance(1ms);
  rig.monitor->turn_watch();
  CHECK_FALSE(rig.watch->blocked);
  CHECK(rig.state() == RegionState::gone);
  CHECK(rig.one.take() == Trace{"overdue", "fenced"});
  rig.monitor->turn_fence();  // answers after all: too late
  CHECK(rig.state() == RegionState::gone);
  CHECK_FALSE(rig.use->enter());
  CHECK_FALSE(rig.region->restore());
  CHECK(rig.region->counters().fences_failed == 1);
}

TEST_CASE("A fence that fails costs the users' connections and the region") {
  CoherenceRig rig;
  rig.registration.fencing = Ending::failing;
  rig.watch->change();
  rig.turn();
  CHECK_FALSE(rig.watch->blocked);
  CHECK(rig.state() == RegionState::gone);
  CHECK(rig.one.take() == Trace{"overdue", "fenced"});
  rig.registration.fencing = Ending::well;
}

TEST_CASE("A change in the middle of restoring goes on at once, and what was registered meanwhile is deregistered") {
  CoherenceRig rig;
  rig.watch->change();
  rig.turn();
  const bool late = GENERATE(false, true);
  const auto change = [&] {
    rig.watch->change();
    rig.monitor->turn_watch();
    CHECK_FALSE(rig.watch->blocked);
  };
  (late ? rig.registration.in_restore : rig.watch->in_arm) = change;
  const auto restored = rig.region->restore();
  REQUIRE_FALSE(restored);
  CHECK(restored.error().kind() == ErrorKind::in_use);
  CHECK((rig.state() == RegionState::fenced && rig.world.pinned == 0));
  REQUIRE(rig.region->restore());
  CHECK(rig.world.pinned == rig.world.pages);
}

TEST_CASE("A region that cannot be restored stays fenced and unregistered, and can be asked again") {
  CoherenceRig rig;
  rig.watch->change();
  rig.turn();
  rig.watch->arming = GENERATE(Ending::failing, Ending::busy);
  CHECK_FALSE(rig.region->restore());
  CHECK((rig.state() == RegionState::fenced && rig.world.pinned == 0));
  rig.watch->arming = Ending::well;
  rig.registration.restoring = Ending::failing;
  CHECK_FALSE(rig.region->restore());
  CHECK((rig.state() == RegionState::fenced && rig.world.pinned == 0));
  rig.registration.restoring = Ending::well;
  CHECK(rig.region->restore());
  CHECK(rig.one.take() == Trace{"coherent"});
}

TEST_CASE("A region that restores by itself tries until the change is over, less and less often") {
  CoherenceRig rig(true);
  rig.watch->arming = Ending::busy;
  rig.watch->change();
  rig.turn();
  CHECK(rig.state() == RegionState::fenced);
  CHECK(rig.world.trace == Trace{"fence", "acknowledge", "arm", "fence"});
  for (int i = 0; i < 10'000; ++i)
    rig.pass(1ms);
  const std::uint64_t attempts = rig.region->counters().restores_failed;
  CHECK((attempts > 10 && attempts < 40));
  rig.watch->arming = Ending::well;
  rig.pass(500ms);
  CHECK(rig.state() == RegionState::coherent);
  CHECK(rig.one.take() == Trace{"coherent"});
}

TEST_CASE("A region that cannot be had yet is had when it can be") {
  CoherenceRig rig(true);
  rig.watch->change();
  rig.watch->arming = Ending::failing;  // not a passing error: not tried again by itself
  rig.turn();
  rig.watch->arming = Ending::well;
  rig.pass(10s);
  CHECK(rig.state() == RegionState::fenced);
  rig.region->restore_when_possible();
  rig.turn();
  CHECK(rig.state() == RegionState::coherent);
}

TEST_CASE("The owner's own change: fenced until the owner restores it, whoever else would") {
  CoherenceRig rig(true);
  const auto begun = rig.region->invalidate();
  REQUIRE_FALSE(begun);
  CHECK(begun.error().kind() == ErrorKind::timed_out);
  rig.turn();
  REQUIRE(rig.region->invalidate());
  CHECK(rig.region->counters().last_change == Change::by_owner);
  rig.pass(10s);
  CHECK(rig.state() == RegionState::fenced);
  REQUIRE(rig.region->restore());
  CHECK(rig.state() == RegionState::coherent);
}

TEST_CASE("A second change while the first is being handled waits for the same fence") {
  CoherenceRig rig;
  const Pass pass = rig.use->enter();
  rig.watch->change();
  rig.turn();
  rig.watch->change();
  rig.turn();
  CHECK(rig.watch->blocked);
  CHECK(rig.use->leave(pass) == Passage::clean);
  rig.turn();
  CHECK_FALSE(rig.watch->blocked);
  rig.watch->change();  // and one on a fenced region for nothing
  rig.turn();
  CHECK_FALSE(rig.watch->blocked);
  CHECK(rig.region->counters().events == 1);
}

TEST_CASE("A region that is destroyed in the middle of a change fences first and then lets the changer go on") {
  CoherenceRig rig;
  rig.watch->change();
  rig.monitor->turn_watch();
  rig.use.reset();
  bool fenced_before = false;
  rig.watch->on_acknowledge = [&] { fenced_before = rig.world.pinned == 0; };
  rig.region.reset();
  CHECK(fenced_before);
  rig.turn();
}

TEST_CASE("Restoring by itself is refused where nothing says that a change is over") {
  CoherenceRig rig;
  std::vector<std::unique_ptr<Watch>> watches;
  watches.push_back(std::make_unique<FakeWatch>(rig.world, false));
  const auto added = rig.monitor->add(rig.registration, std::move(watches), {.name = "x", .restore_by_itself = true});
  REQUIRE_FALSE(added);
  CHECK(added.error().kind() == ErrorKind::invalid_argument);
}

TEST_CASE("A handler may destroy its uses while it hears of them") {
  CoherenceRig rig;
  struct Handler final : UserHandler {
    void on_region_overdue(Use&) override {}
    void on_region_fenced(Use& use) override {
      ++calls;
      std::erase_if(uses, [&](const auto& entry) { return entry.get() != &use; });
      uses.clear();
    }
    void on_region_coherent(Use&) override {}
    std::vector<std::unique_ptr<Use>> uses;
    int calls = 0;
  } handler;
  User user(handler);
  for (int i = 0; i < 3; ++i)
    handler.uses.push_back(std::make_unique<Use>(*rig.region, user));
  rig.watch->change();
  rig.turn();
  user.dispatch();
  CHECK(handler.calls == 1);
}

// --- Sweeps -----------------------------------------------------------------------------------------------------------

namespace {

enum class Step { drain, fence, arm, registering };
enum class How { fails, never_answers };

/// Ten changes, with requests in flight; the n-th call of one step goes wrong. True if it came to that.
bool ten_changes(Step step, How how, int n) {
  CoherenceRig rig;
  int calls = 0;
  bool struck = false;
  const auto strikes = [&] { return calls++ == n && (struck = true); };
  for (int round = 0; round < 10; ++round) {
    INFO("round " << round);
    const bool never_drains = step == Step::drain && strikes();
    const Pass pass = rig.use->enter();
    if (rig.state() == RegionState::coherent) REQUIRE(pass);
    const Instant began = rig.clock.now();
    rig.watch->change();
    rig.watch->on_acknowledge = [&] {
      // Whoever goes on: nothing is registered, or the region has been given up and its users told.
      CHECK((rig.world.pinned == 0 || rig.state() == RegionState::gone));
      CHECK(rig.clock.now() - began <= 900ms);
    };
    rig.monitor->turn_watch();
    if (pass && !never_drains) CHECK(rig.use->leave(pass) == Passage::clean);
    const bool fence_struck = step == Step::fence && strikes();
    if (fence_struck && how == How::fails) rig.registration.fencing = Ending::failing;
    for (Duration t{}; t < CoherenceRig::kLong; t += 10ms) {
      rig.monitor->turn_watch();
      if (!(fence_struck && how == How::never_answers)) rig.monitor->turn_fence();
      rig.clock.advance(10ms);
    }
    rig.turn();
    rig.registration.fencing = Ending::well;
    CHECK_FALSE(rig.watch->blocked);
    if (pass && never_drains) CHECK(rig.use->leave(pass) == Passage::fenced);
    CHECK(rig.state() == (fence_struck ? RegionState::gone : rig.state()));
    if (rig.state() == RegionState::gone) break;
    if (step == Step::arm && strikes()) rig.watch->arming = how == How::fails ? Ending::failing : Ending::busy;
    if (step == Step::registering && strikes())
      rig.registration.restoring = how == How::fails ? Ending::failing : Ending::busy;
    const bool restored = rig.region->restore().has_value();
    CHECK(restored == (rig.watch->arming == Ending::well && rig.registration.restoring == Ending::well));
    rig.watch->arming = rig.registration.restoring = Ending::well;
    if (!restored) {
      CHECK((rig.state() == RegionState::fenced && rig.world.pinned == 0));
      REQUIRE(rig.region->restore());
    }
    CHECK(rig.world.pinned == rig.world.pages);
  }
  CHECK(rig.use->in_flight() == 0);
  return struck;
}

}  // namespace

TEST_CASE("Whichever step fails or never answers, the n-th time: the changer goes on in time, and nothing is stale") {
  const Step step = GENERATE(Step::drain, Step::fence, Step::arm, Step::registering);
  const How how = GENERATE(How::fails, How::never_answers);
  int n = 0;
  while (ten_changes(step, how, n))
    ++n;
  CHECK(n == 10);
}

TEST_CASE("A thousand random lives of a region: no request is granted pages that are not the memory's") {
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    INFO("seed " << seed);
    Random random(seed);
    const bool by_itself = random.below(2) == 0;
    CoherenceRig rig(by_itself);
    struct InFlight {
      Pass pass;
      int pages;
    };
    std::deque<InFlight> in_flight;
    Instant blocked_since{};
    for (int step = 0; step < 200; ++step) {
      switch (random.below(9)) {
        case 0:
          if (!rig.watch->blocked) blocked_since = rig.clock.now();
          rig.watch->change();
          break;
        case 1:
        case 2:
          if (const Pass pass = rig.use->enter()) {
            REQUIRE(rig.world.pinned == rig.world.pages);
            in_flight.push_back({pass, rig.world.pages});
          }
          break;
        case 3:
        case 4:
          if (!in_flight.empty()) {
            // Clean only if the pages were exchanged by nobody meanwhile.
            if (rig.use->leave(in_flight.front().pass) == Passage::clean)
              REQUIRE(in_flight.front().pages == rig.world.pages);
            in_flight.pop_front();
          }
          break;
        case 5: (void)rig.monitor->turn_watch(); break;
        case 6: (void)rig.monitor->turn_fence(); break;
        case 7: (void)(random.below(2) == 0 ? rig.monitor->turn_restore() : rig.region->restore().has_value()); break;
        case 8:
          rig.clock.advance(std::chrono::milliseconds(random.below(120)));
          (void)rig.monitor->turn_watch();
          if (rig.watch->blocked && rig.state() == RegionState::quiescing)
            REQUIRE(rig.clock.now() - blocked_since < 1140ms);  // 900 ms, and the clock's steps at both ends
          break;
      }
    }
    while (!in_flight.empty()) {
      (void)rig.use->leave(in_flight.front().pass);
      in_flight.pop_front();
    }
    rig.pass(CoherenceRig::kLong);
    REQUIRE_FALSE(rig.watch->blocked);
    if (rig.state() == RegionState::gone) continue;  // a fence was not turned in time
    REQUIRE(rig.region->restore());
    REQUIRE(rig.world.pinned == rig.world.pages);
  }
}
