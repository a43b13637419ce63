#include "transport/sim/faults.h"

#include "common/check.h"
#include "transport/sim/machine.h"
#include "transport/sim/queue_pair.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

constexpr std::uint64_t kNever = ~std::uint64_t{0};

Machine& named(World& world, std::string_view machine) {
  Machine* const found = world.find_machine(machine);
  check(found != nullptr, "a fault names a machine that exists");
  return *found;
}

}  // namespace

std::string_view name(Operation operation) noexcept {
  switch (operation) {
    case Operation::open_poll_group: return "open_poll_group";
    case Operation::listen: return "listen";
    case Operation::connect: return "connect";
    case Operation::accept: return "accept";
    case Operation::register_memory: return "register_memory";
    case Operation::post: return "post";
    case Operation::post_full: return "post_full";
    case Operation::completion: return "completion";
  }
  return "?";
}

void Faults::plan(const FaultPlan& plan) noexcept {
  plan_ = plan;
  world_.note(What::fault, kOperations);
}

void Faults::heal() noexcept {
  plan_ = {};
  for (Armed& armed : armed_)
    armed.fails_at = kNever;
  world_.heal_links();
  for (const auto& machine : world_.machines())
    machine->heal();
  world_.note(What::fault, kOperations + 1);
}

void Faults::fail_nth(Operation kind, std::uint64_t n) noexcept {
  armed(kind).fails_at = armed(kind).seen + n;
}

std::uint64_t Faults::count(Operation kind) const noexcept {
  return armed_[static_cast<std::size_t>(kind)].seen;
}

bool Faults::pending(Operation kind) const noexcept {
  return armed_[static_cast<std::size_t>(kind)].fails_at != kNever;
}

void Faults::kill(std::string_view machine) {
  named(world_, machine).kill(Machine::Farewell::none);
}

void Faults::kill_process(std::string_view machine) {
  named(world_, machine).kill(Machine::Farewell::by_kernel);
}

void Faults::revive(std::string_view machine) {
  named(world_, machine).revive();
}

void Faults::partition(std::string_view a, std::string_view b) {
  world_.set_partition(named(world_, a), named(world_, b), true);
}

void Faults::join(std::string_view a, std::string_view b) {
  world_.set_partition(named(world_, a), named(world_, b), false);
}

void Faults::set_link(std::string_view a, std::string_view b, const Link& link) {
  world_.set_link(named(world_, a), named(world_, b), link);
}

void Faults::stall(Connection& connection, Duration time) {
  auto* const pair = dynamic_cast<QueuePair*>(&connection);
  check(pair != nullptr, "a simulated connection is stalled");
  pair->stall(world_.now() + time);
}

void Faults::exhaust_receives(std::string_view machine, Duration time) {
  named(world_, machine).exhaust_receives(world_.now() + time);
}

void Faults::remove_device(std::string_view machine, std::uint32_t index) {
  named(world_, machine).lose_device(index, Disconnect::Reason::device_removed);
}

void Faults::change_address(std::string_view machine, std::uint32_t index) {
  named(world_, machine).lose_device(index, Disconnect::Reason::address_changed);
}

}  // namespace rbt::transport::sim
