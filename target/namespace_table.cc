#include "target/namespace_table.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "target/command.h"
#include "target/core.h"
#include "target/reactor_context.h"
#include "target/reservation/reservations.h"

namespace rbt::target {

ServedNamespace::ServedNamespace(Namespace& shared, ReactorContext& reactor)
    : shared_(shared),
      reactor_(reactor),
      counters_(shared.counters(reactor.index())),
      geometry_(shared.geometry),
      reservation_(shared.reservations().view()),
      lock_(shared.turns().lock()),
      hand_over_(reactor.reactor(), *this) {}

Result<void> ServedNamespace::prepare(const Reach& reach) {
  if (auto prepared = shared_.store().prepare(*reach.domain, reach.path_mtu); !prepared)
    return failure(std::move(prepared.error()).within(shared_.who()));
  if (queue_ != nullptr) return {};
  auto opened = shared_.store().open_queue(reactor_.store_queue_context());
  if (!opened) return failure(std::move(opened.error()).within(shared_.who()));
  queue_ = std::move(*opened);
  return {};
}

void ServedNamespace::last_left() noexcept {
  reactor_.release_later(*this);
}

// ---- Turns

bool ServedNamespace::await_turns(Command& command) {
  Turns& turns = shared_.turns();
  if (turns.complete()) return true;
  awaiting_turns_.push_back(&command);  // once in a namespace's life
  // `shared_` is there until the command has heard of it, and by then all of these have arrived.
  auto& reactors = reactor_.core().reactors;
  if (turns.begin(geometry_.blocks, reactors.size()))
    for (const auto& each : reactors)
      each->post([reactor = each.get(), &ns = shared_] { reactor->begin_turns(ns); });
  return false;
}

void ServedNamespace::begin_turns() noexcept {
  lock_ = shared_.turns().lock();
  free_writers_ == 0 ? join() : static_cast<void>(joining_ = true);
}

void ServedNamespace::join() noexcept {
  joining_ = false;
  reactor_.join_turns(shared_);
}

void ServedNamespace::on_turns_complete() {
  for (Command* const each : std::exchange(awaiting_turns_, {}))
    each->on_turn();
}

bool ServedNamespace::take_turn(TurnClaim& claim) {
  if (lock_->take(claim) || lock_->wait(claim, hand_over_)) return true;
  hand_over_.expect();
  return false;
}

void ServedNamespace::on_handed_over(HandOver::Record& record) {
  auto& claim = static_cast<TurnClaim&>(record);
  if (!lock_->wait(claim, hand_over_)) return hand_over_.expect();  // it has got one part, and waits for the next
  claim.command->on_turn();
}

namespace {

template <typename Pointers>
auto position(Pointers& ascending, Nsid nsid) noexcept {
  return std::lower_bound(ascending.begin(), ascending.end(), nsid,
                          [](const auto& each, Nsid wanted) { return each->nsid() < wanted; });
}

}  // namespace

ServedNamespace* NamespaceTable::after(Nsid nsid) const noexcept {
  const auto found = std::upper_bound(ascending_.begin(), ascending_.end(), nsid,
                                      [](Nsid wanted, const auto& each) { return wanted < each->nsid(); });
  return found != ascending_.end() ? found->get() : nullptr;
}

bool NamespaceTable::has_write_cache() const noexcept {
  return std::any_of(ascending_.begin(), ascending_.end(), [](const auto& ns) { return ns->geometry().write_cache; });
}

Result<void> NamespaceTable::prepare(const Reach& reach) {
  if (std::find(reaches_.begin(), reaches_.end(), reach) != reaches_.end()) return {};
  for (const auto& ns : ascending_)
    if (auto prepared = ns->prepare(reach); !prepared) return prepared;
  reaches_.push_back(reach);
  return {};
}

Result<void> NamespaceTable::add(std::unique_ptr<ServedNamespace> ns) {
  const std::uint32_t nsid = ns->nsid().value();
  check(find(ns->nsid()) == nullptr, "a namespace is added where none is");
  for (const Reach& reach : reaches_)
    if (auto prepared = ns->prepare(reach); !prepared) return prepared;
  if (by_nsid_.size() < nsid) by_nsid_.resize(nsid, nullptr);
  by_nsid_[nsid - 1] = ns.get();
  ascending_.insert(position(ascending_, ns->nsid()), std::move(ns));
  return {};
}

std::unique_ptr<ServedNamespace> NamespaceTable::take(Nsid nsid) noexcept {
  if (find(nsid) == nullptr) return nullptr;
  by_nsid_[nsid.value() - 1] = nullptr;
  const auto found = position(ascending_, nsid);
  auto taken = std::move(*found);
  ascending_.erase(found);
  return taken;
}

}  // namespace rbt::target
