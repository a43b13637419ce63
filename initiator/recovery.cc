// How a path comes, goes and comes again: progress() is the loop; attempt.cc has what one attempt consists of. Everything
// here but lose() runs outside of the reactor's turns, because it turns the reactor itself.

#include "initiator/recovery.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"

namespace rbt::initiator {

std::string_view name(VolumeState state) noexcept {
  switch (state) {
    case VolumeState::live: return "live";
    case VolumeState::lost: return "lost";
    case VolumeState::reconnecting: return "reconnecting";
    case VolumeState::fenced: return "fenced";
    case VolumeState::failed: return "failed";
    case VolumeState::closed: return "closed";
  }
  return "unknown";
}

void Volume::Implementation::advance(VolumeState to, const Error* why) {
  check(may_follow(state_, to), "a volume's state follows its table");
  state_ = to;
  if (options_.on_state) options_.on_state(to, why);
}

Result<void> Volume::Implementation::open() {
  if (options_.queue.buffers != Bytes(0)) {
    auto pool = transport::BufferPool::create(options_.queue.buffers, transport::RemoteAccess::read_write,
                                              {.name = "rbt-volume-buffers"});
    if (!pool) return rbt::failure(std::move(pool.error()));
    buffers_ = std::move(*pool);
  }
  if (options_.predecessor) succeed(*options_.predecessor);
  const Instant until =
      options_.open_patience < Instant::max() - now() ? now() + options_.open_patience : Instant::max();
  const auto wait_until = [this](Instant then) {
    (void)reactor_.run_until([] { return false; }, then);
    return now() >= then;  // else the reactor was told to stop
  };
  const auto stopped = [] { return rbt::failure(ErrorKind::disconnected, "the reactor was told to stop"); };
  if (old_ && old_->id.number == 0 && options_.fencing == Fencing::on && !wait_until(old_->silent)) return stopped();
  while (true) {
    auto connected = try_every_path();
    if (connected) break;
    const bool silence_helps = old_ && silence_awaited_ && now() < old_->silent;
    if (fatal_ || (now() >= until && !silence_helps)) return connected;
    try_again_later();
    if (!wait_until(now() >= until ? std::max(next_attempt_, old_->silent) : next_attempt_)) return stopped();
  }
  opened_ = true;
  told_ = {.blocks = disk_.blocks, .read_only = disk_.read_only};
  return {};
}

// The first that works. What will not change is the better thing to say.
Result<void> Volume::Implementation::try_every_path() {
  std::optional<Error> worst;
  bool fatal = false;
  silence_awaited_ = false;
  for (begin_round(); untried_ != 0; next_in_round()) {
    auto connected = connect();
    if (connected) return {};
    if (!fatal) worst = std::move(connected.error());
    fatal = fatal || fatal_;
    take_down();
    if (state_ != VolumeState::reconnecting) {
      advance(VolumeState::lost, &*worst);
      advance(VolumeState::reconnecting, &*worst);
    }
  }
  fatal_ = fatal;
  return rbt::failure(std::move(*worst));
}

// ---- the machine

bool Volume::Implementation::progress_due() const noexcept {
  switch (state_) {
    case VolumeState::live: return !path_lives() || look_at_access_ || look_again_;
    case VolumeState::lost: return true;
    case VolumeState::reconnecting: return now() >= std::min(next_attempt_, give_up_at_);
    case VolumeState::fenced:  // never seen from outside of progress()
    case VolumeState::failed:
    case VolumeState::closed: return false;
  }
  return false;
}

bool Volume::Implementation::path_lives() const noexcept {
  return !shared_.trouble.load(std::memory_order_acquire) && session_->state() == SessionState::live;
}

// The first lane's that has any: what the others know is the same, or follows from it.
const Error* Volume::Implementation::trouble() const noexcept {
  for (const auto& lane : lanes_)
    if (const Error* const why = lane->trouble()) return why;
  return nullptr;
}

void Volume::Implementation::progress() {
  check(!reactor_.turning(), "progress() turns the reactor, so it is not called from within a turn");
  while (progress_due()) {
    switch (state_) {
      case VolumeState::live: look_after_path(); break;
      case VolumeState::lost:
        take_down();
        if (now() >= give_up_at_) return fail(*failure_);
        advance(VolumeState::reconnecting, &*failure_);
        begin_round();
        uri_ = (uri_ + 1) % uris_.size();
        if (uris_.size() > 1 && hurry_)
          next_attempt_ = now();
        else
          try_again_later();
        break;
      case VolumeState::reconnecting:
        if (now() >= give_up_at_) return fail(*failure_);
        attempt();
        break;
      case VolumeState::fenced:
      case VolumeState::failed:
      case VolumeState::closed: return;
    }
  }
}

void Volume::Implementation::look_after_path() {
  if (!path_lives()) {
    const Error* const why = trouble();
    return lose(why != nullptr ? *why
                               : session_->failure().value_or(Error(ErrorKind::disconnected, "the session ended")));
  }
  if (look_at_access_) return look_at_access();
  look_again();
}

// Only notes it. What is outstanding comes back as the lanes are halted.
void Volume::Implementation::lose(Error why) {
  if (state_ != VolumeState::live) return;
  failure_ = std::move(why);
  ++statistics_.losses;
  // A path that was lost before it was of any use to anybody is one more failed attempt.
  const bool proven = std::any_of(lanes_.begin(), lanes_.end(), [](const auto& lane) { return lane->proven(); });
  hurry_ = statistics_.losses == 1 || proven || now() - live_since_ > options_.attempt_timeout;
  if (hurry_) {
    lost_at_ = now();
    give_up_at_ = options_.on_loss && *options_.on_loss < Instant::max() - lost_at_ ? lost_at_ + *options_.on_loss
                                                                                    : Instant::max();
    backoff_ = Duration::zero();
    tries_ = 0;
  }
  environment_.logger.warning("{}: the path is lost, {} requests wait: {}", uris_[uri_].to_string(), in_flight(),
                              failure_->message());
  advance(VolumeState::lost, &*failure_);
}

void Volume::Implementation::take_down() {
  on_lanes([](Lane& lane) { lane.halt(); });
  shared_.trouble.store(false, std::memory_order_relaxed);
  for (const auto& lane : lanes_)
    lane->forget_durable();
  registered_.clear();
  look_again_ = look_at_access_ = false;
  session_.reset();
  if (std::exchange(used_, false))
    old_ = Old{.id = association_, .uri = uri_, .silent = silent_from(now(), association_keep_alive_)};
}

// A target whose timer is restarted by traffic looks at it once per timeout: up to two of them.
Instant Volume::Implementation::silent_from(Instant now, Duration keep_alive) const noexcept {
  return keep_alive == Duration::zero() ? Instant::max() : now + 2 * keep_alive;
}

void Volume::Implementation::fail(Error why) {
  failure_ = std::move(why);
  environment_.logger.error("{}: given up, {} requests fail: {}", uris_[uri_].to_string(), in_flight(),
                            failure_->message());
  wake_.cancel();
  advance(VolumeState::failed, &*failure_);
  on_lanes([](Lane& lane) { lane.fail(); });
}

void Volume::Implementation::try_again_later() {
  backoff_ = backoff_ == Duration::zero() ? options_.backoff_first : std::min(backoff_ * 2, options_.backoff_max);
  const auto half = static_cast<std::uint64_t>(std::max<Duration::rep>(backoff_.count() / 2, 1));
  next_attempt_ = now() + Duration(static_cast<Duration::rep>(half + environment_.random.below(half + 1)));
  // A target that cannot say when it is done: nothing to connect for until it must be.
  if (old_ && old_->id.number == 0 && options_.fencing == Fencing::on)
    next_attempt_ = std::max(next_attempt_, old_->silent);
  wake_.arm(std::min(next_attempt_, give_up_at_));
}

void Volume::Implementation::attempt() {
  ++statistics_.attempts;
  auto connected = connect();
  if (state_ == VolumeState::closed) return;
  if (connected) {
    const Duration took = now() - lost_at_;
    statistics_.longest_loss = std::max(statistics_.longest_loss, took);
    environment_.logger.info("{}: live again after {}", uris_[uri_].to_string(), format_duration(took));
    return;
  }
  failure_ = std::move(connected.error());
  take_down();
  if (fatal_ && !round_fatal_) round_fatal_ = failure_;
  environment_.logger.log(attempts_logged_.allow(now()) ? LogLevel::info : LogLevel::debug, "{}: {}; trying again",
                          uris_[uri_].to_string(), failure_->message());
  if (state_ == VolumeState::fenced) {
    advance(VolumeState::lost, &*failure_);
    advance(VolumeState::reconnecting, &*failure_);
  }
  next_in_round();
  if (untried_ != 0) {
    next_attempt_ = now();
    return;
  }
  if (round_fatal_) return fail(*round_fatal_);
  begin_round();
  try_again_later();
}

Duration Volume::Implementation::left() const noexcept {
  return give_up_at_ == Instant::max() ? Duration::max() : give_up_at_ - now();
}

Instant Volume::Implementation::step_deadline() const noexcept {
  return now() + std::min(options_.attempt_timeout, std::max(left(), Duration(1)));
}

}  // namespace rbt::initiator
