#include "target/reservation/state.h"

#include <algorithm>

namespace rbt::target {

using nvme::AcquireAction;
using nvme::HostId;
using nvme::RegisterAction;
using nvme::ReleaseAction;
using nvme::ReservationNotice;
using nvme::ReservationType;
using nvme::Status;
using nvme::StatusCode;

const ReservationState::Registrant* ReservationState::find(const HostId& host) const noexcept {
  const auto found =
      std::find_if(registrants.begin(), registrants.end(), [&](const Registrant& each) { return each.host == host; });
  return found != registrants.end() ? &*found : nullptr;
}

bool ReservationState::holds(const HostId& host) const noexcept {
  if (!type) return false;
  return nvme::is_all_registrants(*type) ? find(host) != nullptr : holder == host;
}

namespace {

ReservationOutcome refused(StatusCode code) {
  return {.status = Status::permanent(code)};
}
ReservationOutcome conflict() {
  return refused(StatusCode::reservation_conflict);
}

// Registrants only, or all of them: others can do something because of it, and have to hear when it ends.
bool concerns_registrants(ReservationType type) noexcept {
  return type != ReservationType::write_exclusive && type != ReservationType::exclusive_access;
}

void reserve(ReservationState& state, ReservationType type, const HostId& host) {
  state.type = type;
  state.holder = nvme::is_all_registrants(type) ? HostId() : host;
}

void unreserve(ReservationState& state) {
  state.type.reset();
  state.holder = HostId();
}

// With the last one who holds it, or the only one, goes the reservation.
template <typename Which>
std::size_t unregister(ReservationState& state, Which which) {
  const bool with_holder = std::any_of(state.registrants.begin(), state.registrants.end(), [&](const auto& each) {
    return which(each) && state.type && !nvme::is_all_registrants(*state.type) && each.host == state.holder;
  });
  const std::size_t gone = std::erase_if(state.registrants, which);
  if (with_holder || state.registrants.empty()) unreserve(state);
  return gone;
}

// Every registrant but `host` hears of it.
void tell_others(ReservationOutcome& outcome, const ReservationState& state, const HostId& host,
                 ReservationNotice notice) {
  for (const auto& each : state.registrants)
    if (each.host != host) outcome.notices.emplace_back(each.host, notice);
}

// Who of `before` is not registered any more, but for `host`.
void tell_preempted(ReservationOutcome& outcome, const ReservationState& before, const ReservationState& after,
                    const HostId& host) {
  for (const auto& each : before.registrants) {
    if (each.host == host || after.find(each.host) != nullptr) continue;
    outcome.notices.emplace_back(each.host, ReservationNotice::registration_preempted);
    outcome.preempted.push_back(each.host);
  }
}

ReservationOutcome add(ReservationState& state, const HostId& host, std::uint64_t key) {
  if (key == 0) return refused(StatusCode::invalid_field);
  if (state.registrants.size() >= ReservationState::kRegistrantsMax) return {.status = StatusCode::internal_error};
  state.registrants.push_back({host, key});
  return {};
}

// Base 2.0, 8.19.6. What is not said there: a registrant's own key among those preempted is its own affair.
ReservationOutcome preempt(ReservationState& state, const HostId& host, const nvme::ReservationAcquire& command) {
  const ReservationState before = state;
  const bool all_hold = state.type && nvme::is_all_registrants(*state.type);
  const bool by_key = command.preempt_key != 0;
  const auto* const holder = state.type && !all_hold ? state.find(state.holder) : nullptr;
  ReservationOutcome outcome;
  if (all_hold && !by_key) {
    static_cast<void>(unregister(state, [&](const auto& each) { return each.host != host; }));
    reserve(state, command.type, host);
  } else if (holder != nullptr && holder->key == command.preempt_key) {
    unreserve(state);
    static_cast<void>(
        unregister(state, [&](const auto& each) { return each.host != host && each.key == command.preempt_key; }));
    reserve(state, command.type, host);
  } else if (holder != nullptr && !by_key) {
    return refused(StatusCode::invalid_field);
  } else if (unregister(state, [&](const auto& each) { return each.key == command.preempt_key; }) == 0) {
    return conflict();
  }
  tell_preempted(outcome, before, state, host);
  if (before.type && state.type && *before.type != *state.type)
    tell_others(outcome, state, host, ReservationNotice::released);
  ++state.generation;
  return outcome;
}

}  // namespace

ReservationOutcome apply(ReservationState& state, const HostId& host, const nvme::ReservationRegister& command) {
  const auto* const mine = state.find(host);
  const bool known = mine != nullptr && (command.ignore_existing_key || mine->key == command.current_key);
  ReservationOutcome outcome;
  switch (command.action) {
    case RegisterAction::add:
      if (mine == nullptr)
        outcome = add(state, host, command.new_key);
      else if (mine->key != command.new_key)
        outcome = conflict();
      break;
    case RegisterAction::remove: {
      if (!known) return conflict();
      const auto type = state.type;
      static_cast<void>(unregister(state, [&](const auto& each) { return each.host == host; }));
      if (type && !state.type && concerns_registrants(*type))
        tell_others(outcome, state, host, ReservationNotice::released);
      break;
    }
    case RegisterAction::replace:
      if (command.new_key == 0) return refused(StatusCode::invalid_field);
      if (mine == nullptr && command.ignore_existing_key)
        outcome = add(state, host, command.new_key);
      else if (!known)
        outcome = conflict();
      else
        state.registrants[static_cast<std::size_t>(mine - state.registrants.data())].key = command.new_key;
      break;
  }
  if (!outcome.status.ok()) return outcome;
  if (command.persistence != nvme::ChangePersistence::no)
    state.persists = command.persistence == nvme::ChangePersistence::on;
  ++state.generation;
  return outcome;
}

ReservationOutcome apply(ReservationState& state, const HostId& host, const nvme::ReservationAcquire& command) {
  const auto* const mine = state.find(host);
  if (mine == nullptr || mine->key != command.current_key) return conflict();
  if (command.action != AcquireAction::acquire) return preempt(state, host, command);
  if (!state.type) {
    reserve(state, command.type, host);
    return {};
  }
  return state.holds(host) && *state.type == command.type ? ReservationOutcome{} : conflict();
}

ReservationOutcome apply(ReservationState& state, const HostId& host, const nvme::ReservationRelease& command) {
  const auto* const mine = state.find(host);
  if (mine == nullptr || mine->key != command.current_key) return conflict();
  ReservationOutcome outcome;
  if (command.action == ReleaseAction::clear) {
    tell_others(outcome, state, host, ReservationNotice::preempted);
    state.registrants.clear();
    unreserve(state);
    ++state.generation;
    return outcome;
  }
  if (!state.holds(host)) return {};  // no error, and nothing happens
  if (command.type != static_cast<std::uint8_t>(*state.type)) return refused(StatusCode::invalid_field);
  if (concerns_registrants(*state.type)) tell_others(outcome, state, host, ReservationNotice::released);
  unreserve(state);
  return outcome;
}

std::shared_ptr<const ReservationView> ReservationView::of(const ReservationState& state) {
  if (!state.type) return nullptr;
  auto view = std::make_shared<ReservationView>();
  view->reading_is_free_ = !nvme::excludes_reading(*state.type);
  if (concerns_registrants(*state.type)) {
    for (const auto& each : state.registrants)
      view->privileged_.push_back(each.host);
    std::sort(view->privileged_.begin(), view->privileged_.end());
  } else {
    view->privileged_.push_back(state.holder);
  }
  return view;
}

bool ReservationView::admits(const HostId& host, BlockAccess access) const noexcept {
  if (access == BlockAccess::none || (access == BlockAccess::read && reading_is_free_)) return true;
  return std::binary_search(privileged_.begin(), privileged_.end(), host);
}

}  // namespace rbt::target
