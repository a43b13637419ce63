#include "target/reservation/reservations.h"

#include <fmt/format.h>

#include <cstdio>

#include "target/core.h"
#include "target/reactor_context.h"
#include "target/reservation/image.h"
#include "target/reservation/kept_file.h"

namespace rbt::target {

using nvme::Status;
using nvme::StatusCode;

KeptReservations load_reservations(const std::string& path, const Identity& identity, const std::string& who,
                                   Logger& logger) {
  if (path.empty()) return {};
  const auto without = [&](std::string_view why, std::string_view remedy) {
    logger.error("{}: {}: {}; it begins without registrations, and none will survive a power loss: {}", who, path, why,
                 remedy);
    return KeptReservations{};
  };
  auto bytes = read_kept_file(path, kReservationImageMax);
  if (!bytes && bytes.error().kind() != ErrorKind::mismatch)
    return without(bytes.error().message(), "make it readable, and start again");
  std::string why;
  if (bytes && *bytes) {
    auto image = parse_reservation_image(**bytes);
    if (image && image->identity == identity) return {path, std::move(image->state)};
    if (image) return without("it belongs to another namespace", "name another file, or remove it");
    why = image.error().message();
  } else if (!bytes) {
    why = bytes.error().message();
  }
  if (why.empty()) {
    logger.warning(
        "{}: {} is not there yet and begins now; if registrations had been kept there, hosts have to register "
        "again",
        who, path);
  } else {
    const std::string aside = path + ".damaged";
    const bool moved = std::rename(path.c_str(), aside.c_str()) == 0;
    logger.error(
        "{}: {} is damaged: {}; what hosts had registered and reserved is lost, and they have to do it again; the "
        "file is {}",
        who, path, why, moved ? aside : "replaced");
  }
  FileCalls calls;
  if (auto begun = replace_kept_file(path, encode_reservation_image({.identity = identity, .state = {}}), calls);
      !begun)
    return without(begun.error().message(), "make its directory writable, and start again");
  return {path, {}};
}

Reservations::Reservations(Core& core, const Subsystem& subsystem, Nsid nsid, std::uint64_t opening,
                           const Identity& identity, std::string who, KeptReservations kept)
    : core_(core),
      subsystem_(subsystem),
      nsid_(nsid),
      opening_(opening),
      identity_(identity),
      who_(std::move(who)),
      path_(std::move(kept.path)),
      state_(std::move(kept.state)),
      view_(ReservationView::of(state_)) {}

void Reservations::submit(const nvme::HostId& host, Change change, Answer answer) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back({host, std::move(change), std::move(answer)});
    if (busy_) return;
    busy_ = true;
  }
  next();
}

// The one that is busy.
void Reservations::next() {
  while (true) {
    std::unique_lock lock(mutex_);
    if (waiting_.empty()) {
      busy_ = false;
      return;
    }
    Request request = std::move(waiting_.front());
    waiting_.pop_front();
    const ReservationState before = state_;
    lock.unlock();
    ReservationState after = before;
    ReservationOutcome outcome = judge(request, after);
    if (outcome.status.ok() && after != before) {
      const bool kept = before.persists || after.persists || uncertain_;
      kept ? keep(std::move(request), std::move(after), std::move(outcome))
           : carry_out(request, std::move(after), std::move(outcome));
      return;  // finish() goes on
    }
    if (outcome.status.code() == StatusCode::internal_error)
      complain(fmt::format("host {} is not registered: {} are, and that is the most", request.host.to_string(),
                           ReservationState::kRegistrantsMax));
    request.answer(outcome.status);
  }
}

ReservationOutcome Reservations::judge(const Request& request, ReservationState& state) const {
  const auto* const registration = std::get_if<nvme::ReservationRegister>(&request.change);
  const auto* const persistence = std::get_if<SetReservationPersistence>(&request.change);
  const bool wants_to_persist = (registration != nullptr && registration->persistence == nvme::ChangePersistence::on) ||
                                (persistence != nullptr && persistence->on);
  if (wants_to_persist && !can_persist()) return {.status = Status::permanent(StatusCode::invalid_field)};
  if (persistence != nullptr) {
    state.persists = persistence->on;
    return {};
  }
  if (registration != nullptr) return apply(state, request.host, *registration);
  if (const auto* const release = std::get_if<nvme::ReservationRelease>(&request.change))
    return apply(state, request.host, *release);
  return apply(state, request.host, std::get<nvme::ReservationAcquire>(request.change));
}

void Reservations::keep(Request request, ReservationState after, ReservationOutcome outcome) {
  core_.gate.enter();
  core_.background.submit([self = shared_from_this(), request = std::move(request), after = std::move(after),
                           outcome = std::move(outcome)]() mutable {
    FileCalls calls;
    const auto image = encode_reservation_image({.identity = self->identity_, .state = after});
    auto kept = replace_kept_file(self->path_, image, calls);
    self->uncertain_ = !kept;
    if (kept) {
      self->carry_out(request, std::move(after), std::move(outcome));
    } else {
      self->complain(fmt::format("a change of its reservations by host {} is refused, as it could not be kept: {}",
                                 request.host.to_string(), kept.error().message()));
      self->finish(request, StatusCode::internal_error);
    }
    self->core_.gate.leave();
  });
}

void Reservations::complain(const std::string& what) {
  if (!limit_.allow(core_.clock.now())) return;
  const std::uint64_t suppressed = limit_.take_suppressed();
  core_.logger.error("{}: {}{}", who_, what,
                     suppressed > 0 ? fmt::format(" (and {} more of this kind since)", suppressed) : std::string());
}

void Reservations::carry_out(const Request& request, ReservationState after, ReservationOutcome outcome) {
  const auto* const acquire = std::get_if<nvme::ReservationAcquire>(&request.change);
  const bool aborts = acquire != nullptr && acquire->action == nvme::AcquireAction::preempt_and_abort;
  std::shared_ptr<ReservationNews> news;
  {
    const std::lock_guard lock(mutex_);
    state_ = std::move(after);
    auto view = ReservationView::of(state_);
    // Else nobody would notice.
    if (view != nullptr || view_ != nullptr || !outcome.notices.empty() || !outcome.preempted.empty()) {
      view_ = std::move(view);
      news = std::shared_ptr<ReservationNews>(new ReservationNews{
          .subsystem = subsystem_,
          .nsid = nsid_,
          .opening = opening_,
          .view = view_,
          .notices = std::move(outcome.notices),
          .aborted = aborts ? std::move(outcome.preempted) : std::vector<nvme::HostId>(),
          .when_all_know = [self = shared_from_this(), request] { self->finish(request, Status()); },
          .missing = core_.reactors.size()});
    }
  }
  if (news == nullptr) return finish(request, Status());
  for (const auto& each : core_.reactors)
    each->post([reactor = each.get(), news] { reactor->hear(news); });
}

void Reservations::finish(const Request& request, Status status) {
  request.answer(status);
  core_.reactors.front()->post([self = shared_from_this()] { self->next(); });  // not from here: there may be many
}

ReservationState Reservations::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

std::shared_ptr<const ReservationView> Reservations::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

}  // namespace rbt::target
