#pragma once
// A monitor without threads, a clock that stands still, and a world whose pages can be exchanged: what a stale registration
// is can be asked here at any time.

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "transport/coherence/monitor.h"

namespace rbt::test {

using namespace transport::coherence;
using namespace std::chrono_literals;

/// How one call of a step ends; `never` only for fences (the step's thread is not turned).
enum class Ending { well, failing, busy };

/// The pages: a generation that goes up whenever a changer goes on. A registration pins the generation it sees.
struct World {
  int pages = 1;
  int pinned = 0;  // 0: not registered
  std::vector<std::string> trace;
};

class FakeWatch final : public Watch {
 public:
  FakeWatch(World& world, bool knows_the_end) : world_(world), knows_the_end_(knows_the_end) {}
  ~FakeWatch() override { ::close(bell_); }
  std::string_view source() const noexcept override { return "fake"; }
  int descriptor() const noexcept override { return bell_; }
  bool changing() noexcept override { return blocked; }
  Change acknowledge() noexcept override {
    std::uint64_t rung = 0;
    (void)!::read(bell_, &rung, sizeof rung);
    blocked = false;
    ++world_.pages;
    world_.trace.emplace_back("acknowledge");
    if (on_acknowledge) on_acknowledge();
    return Change::discarded;
  }
  Result<void> arm() override {
    world_.trace.emplace_back("arm");
    if (in_arm) std::exchange(in_arm, nullptr)();
    if (arming == Ending::busy) return failure(ErrorKind::in_use, "still changing");
    if (arming == Ending::failing) return failure(ErrorKind::not_found, "not mapped");
    return {};
  }
  bool knows_the_end() const noexcept override { return knows_the_end_; }

  /// Somebody begins a change and is blocked.
  void change() {
    blocked = true;
    const std::uint64_t one = 1;
    (void)!::write(bell_, &one, sizeof one);
  }
  bool blocked = false;
  Ending arming = Ending::well;
  std::function<void()> in_arm, on_acknowledge;

 private:
  World& world_;
  bool knows_the_end_;
  int bell_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
};

class FakeRegistration final : public Registration {
 public:
  explicit FakeRegistration(World& world) : world_(world) {}
  Result<void> fence() override {
    world_.trace.emplace_back("fence");
    if (fencing == Ending::failing) return failure(ErrorKind::io, "the device does not answer");
    world_.pinned = 0;
    return {};
  }
  Result<void> restore() override {
    world_.trace.emplace_back("register");
    if (restoring == Ending::busy) return failure(ErrorKind::in_use, "not yet");
    if (restoring == Ending::failing) return failure(ErrorKind::permission, "no");
    world_.pinned = world_.pages;
    if (in_restore) std::exchange(in_restore, nullptr)();
    return {};
  }
  Ending fencing = Ending::well, restoring = Ending::well;
  std::function<void()> in_restore;

 private:
  World& world_;
};

class RecordingUser final : public UserHandler {
 public:
  void on_region_overdue(Use&) override { heard.emplace_back("overdue"); }
  void on_region_fenced(Use&) override { heard.emplace_back("fenced"); }
  void on_region_coherent(Use&) override { heard.emplace_back("coherent"); }
  std::vector<std::string> take() {
    pollfd ready{user.descriptor(), POLLIN, 0};
    if (::poll(&ready, 1, 0) == 1) user.dispatch();
    return std::exchange(heard, {});
  }
  std::vector<std::string> heard;
  User user{*this};
};

struct CoherenceRig {
  explicit CoherenceRig(bool by_itself = false) {
    auto started = Monitor::start(clock, null_logger(), {.threads = MonitorOptions::Threads::manual});
    REQUIRE(started);
    monitor = std::move(*started);
    std::vector<std::unique_ptr<Watch>> watches;
    watches.push_back(std::make_unique<FakeWatch>(world, by_itself));
    watch = static_cast<FakeWatch*>(watches.front().get());
    auto added = monitor->add(registration, std::move(watches), {.name = "test", .restore_by_itself = by_itself});
    REQUIRE(added);
    region = std::move(*added);
    use = std::make_unique<Use>(*region, one.user);
    REQUIRE(region->restore());
    (void)one.take();
    world.trace.clear();
  }
  ~CoherenceRig() { use.reset(); }
  /// Until nobody has anything to do at this time.
  void turn() {
    while (monitor->turn_watch() || monitor->turn_fence() || monitor->turn_restore()) {
    }
  }
  void pass(Duration time) {
    clock.advance(time);
    turn();
  }
  [[nodiscard]] RegionState state() const { return region->state(); }
  /// Time enough for everything that is bounded to end.
  static constexpr Duration kLong = 1s;

  ManualClock clock;
  World world;
  FakeRegistration registration{world};
  std::unique_ptr<Monitor> monitor;
  FakeWatch* watch = nullptr;
  std::unique_ptr<Region> region;
  RecordingUser one;
  std::unique_ptr<Use> use;
};

}  // namespace rbt::test
