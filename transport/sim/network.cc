#include "transport/sim/network.h"

#include <algorithm>
#include <vector>

#include "transport/sim/machine.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

/// An action of the test's, done once at its time.
class Appointment final : public Actor {
 public:
  Appointment(World& world, Instant at, std::function<void()> action)
      : world_(world), action_(std::move(action)), id_(world.agenda().enroll(*this)) {
    world_.agenda().schedule(at, id_, 0);
  }
  ~Appointment() override {
    if (id_ != kNobody) world_.agenda().leave(id_);
  }
  [[nodiscard]] bool expects(const Event&) const noexcept override { return true; }
  void on_event(const Event&) override {
    world_.agenda().leave(id_);
    id_ = kNobody;
    world_.note(What::action);
    action_();
  }
  [[nodiscard]] bool over() const noexcept { return id_ == kNobody; }

 private:
  World& world_;
  std::function<void()> action_;
  ActorId id_;
};

}  // namespace

struct Network::Parts {
  Parts(const NetworkOptions& options, Logger& logger) : world(options, logger) {}
  World world;
  std::vector<std::unique_ptr<Appointment>> appointments;
};

Network::Network(const NetworkOptions& options, Logger& logger) : parts_(std::make_unique<Parts>(options, logger)) {}
Network::~Network() = default;

Fabric& Network::fabric(std::string_view name, std::uint32_t devices) {
  return parts_->world.machine(name, devices);
}
ManualClock& Network::clock() noexcept {
  return parts_->world.agenda().clock();
}
Random& Network::random() noexcept {
  return parts_->world.test_random();
}
Faults& Network::faults() noexcept {
  return parts_->world.faults();
}
const NetworkOptions& Network::options() const noexcept {
  return parts_->world.options();
}
void Network::add(Reactor& reactor) {
  parts_->world.join(reactor, nullptr);
}
void Network::remove(Reactor& reactor) {
  parts_->world.leave(reactor, nullptr);
}
std::uint64_t Network::trace_hash() const noexcept {
  return parts_->world.trace().hash();
}
std::uint64_t Network::events() const noexcept {
  return parts_->world.trace().events();
}
std::uint64_t Network::violations() const noexcept {
  return parts_->world.violations;
}
std::uint64_t Network::deadlocks() const noexcept {
  return parts_->world.deadlocks;
}

void Network::at(Instant at, std::function<void()> action) {
  std::erase_if(parts_->appointments, [](const auto& appointment) { return appointment->over(); });
  parts_->appointments.push_back(std::make_unique<Appointment>(parts_->world, at, std::move(action)));
}

Network::Outcome Network::run_until(const std::function<bool()>& done, Instant deadline) {
  World& world = parts_->world;
  while (true) {
    if (done && done()) return Outcome::done;
    if (world.turn_all()) continue;
    if (done && done()) return Outcome::done;
    if (world.now() >= deadline) return Outcome::deadline;
    const auto timer = world.next_timer();
    const Instant limit = timer ? std::min(*timer, deadline) : deadline;
    if (world.deliver_events(limit)) continue;
    if (!timer && !world.agenda().next()) {
      if (done) return Outcome::stuck;  // without a condition, letting time pass is all that was asked for
      if (deadline == Instant::max()) return Outcome::stuck;
    }
    world.agenda().clock().advance_to(limit);
  }
}

Network::Outcome Network::run_for(Duration time, const std::function<bool()>& done) {
  return run_until(done, clock().now() + time);
}

bool Network::step() {
  World& world = parts_->world;
  if (world.turn_all()) return true;
  if (!world.agenda().next()) return false;
  world.agenda().deliver_next();
  return true;
}

bool Network::settle(std::uint64_t steps_max) {
  for (std::uint64_t i = 0; i < steps_max; ++i)
    if (!step()) return true;
  return false;
}

void Network::wait(Reactor& reactor, std::optional<Instant> until) {
  World& world = parts_->world;
  if (world.turn_all()) return;
  const auto timer = world.next_timer();
  std::optional<Instant> limit = until;
  if (timer && (!limit || *timer < *limit)) limit = timer;
  if (world.deliver_events(limit)) return;
  if (limit) return world.agenda().clock().advance_to(*limit);
  ++world.deadlocks;
  world.logger().error(
      "the simulated world stands still at {} ns: no event, no timer, and no reactor has anything to "
      "do; stopping the reactor that waits",
      world.now().time_since_epoch().count());
  reactor.stop();
}

}  // namespace rbt::transport::sim
