#include "transport/sim/world.h"

#include <algorithm>

#include "common/check.h"
#include "transport/sim/machine.h"
#include "transport/sim/poll_group.h"

namespace rbt::transport::sim {

// Each part of the world draws from a generator of its own, so that one more draw here changes nothing there.
World::World(const NetworkOptions& options, Logger& logger)
    : options_(options),
      logger_(logger),
      chance_(options.seed),
      test_random_(chance_.fork()),
      keys_(chance_.fork()),
      faults_(*this) {
  check(options.path_mtu > 0, "a packet carries at least a byte");
}

World::~World() = default;

bool World::fails(Operation kind, std::string_view machine) {
  Faults::Armed& armed = faults_.armed(kind);
  const bool ordered = armed.seen++ == armed.fails_at;
  if (ordered) armed.fails_at = ~std::uint64_t{0};
  const std::uint64_t odds = faults_.plan_.of(kind);
  const bool failing = ordered || (odds != 0 && chance_.once_in(odds));
  if (failing) {
    note(What::fault, static_cast<std::uint64_t>(kind));
    logger_.debug("simulated fault: {} on machine {}", name(kind), machine);
  }
  return failing;
}

Machine& World::machine(std::string_view name, std::uint32_t devices) {
  if (Machine* found = find_machine(name); found != nullptr) return *found;
  machines_.push_back(
      std::make_unique<Machine>(*this, std::string(name), static_cast<std::uint32_t>(machines_.size()), devices));
  note(What::machine, machines_.size(), devices);
  return *machines_.back();
}

Machine* World::find_machine(std::string_view name) const noexcept {
  for (const auto& machine : machines_)
    if (machine->host() == name) return machine.get();
  return nullptr;
}

World::Pair World::pair(const Machine& a, const Machine& b) noexcept {
  return std::minmax(a.number(), b.number());
}

const Link& World::link(const Machine& from, const Machine& to) const noexcept {
  if (links_.empty()) return options_.link;
  const auto found = links_.find(pair(from, to));
  return found == links_.end() ? options_.link : found->second;
}

bool World::reachable(const Machine& from, const Machine& to) const noexcept {
  return from.alive() && to.alive() && (partitions_.empty() || !partitions_.contains(pair(from, to)));
}

void World::set_partition(const Machine& a, const Machine& b, bool apart) {
  if (apart) {
    partitions_.insert(pair(a, b));
  } else {
    partitions_.erase(pair(a, b));
  }
}

void World::heal_links() noexcept {
  links_.clear();
  partitions_.clear();
}

Duration World::travel(const Machine& from, const Machine& to) noexcept {
  const Link& way = link(from, to);
  return way.latency +
         Duration(static_cast<Duration::rep>(chance_.below(static_cast<std::uint64_t>(way.jitter.count()) + 1)));
}

World::Participant* World::find(const Reactor& reactor) noexcept {
  const auto found = std::find_if(participants_.begin(), participants_.end(),
                                  [&reactor](const auto& participant) { return participant.reactor == &reactor; });
  return found == participants_.end() ? nullptr : &*found;
}

void World::join(Reactor& reactor, Group* group) {
  Participant* participant = find(reactor);
  if (participant == nullptr) participant = &participants_.emplace_back(Participant{&reactor, {}});
  participant->groups.push_back(group);
}

void World::leave(Reactor& reactor, Group* group) noexcept {
  Participant* const participant = find(reactor);
  if (participant == nullptr) return;
  const auto found = std::find(participant->groups.begin(), participant->groups.end(), group);
  if (found != participant->groups.end()) participant->groups.erase(found);
  if (participant->groups.empty()) participants_.erase(participants_.begin() + (participant - participants_.data()));
}

bool World::turns(const Participant& participant) noexcept {
  return !participant.reactor->turning() &&
         std::any_of(participant.groups.begin(), participant.groups.end(),
                     [](const Group* group) { return group == nullptr || !group->dead(); });
}

bool World::turn_all() {
  something_ready_ = false;
  bool worked = false;
  const std::size_t count = participants_.size();
  if (count == 0) return false;
  const std::size_t first = chance_.below(count);  // nobody is always first
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = (first + i) % count;
    if (at >= participants_.size() || !turns(participants_[at])) continue;  // a turn may end others' participation
    worked |= participants_[at].reactor->turn();
  }
  return worked;
}

bool World::deliver_events(std::optional<Instant> limit) {
  something_ready_ = false;
  bool any = false;
  while (!something_ready_) {
    const auto next = agenda_.next();
    if (!next || (limit && *next > *limit)) break;
    agenda_.deliver_next();
    any = true;
  }
  return any;
}

std::optional<Instant> World::next_timer() const noexcept {
  std::optional<Instant> earliest;
  for (const Participant& participant : participants_) {
    if (!turns(participant)) continue;
    const auto next = participant.reactor->timers().next();
    if (next && (!earliest || *next < *earliest)) earliest = next;
  }
  return earliest;
}

}  // namespace rbt::transport::sim
