// How a path comes, goes and comes again: progress() is the loop, connect() the list of steps. Everything here but lose()
// runs outside of the reactor's turns, because it turns the reactor itself.

#include "initiator/recovery.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"
#include "initiator/call.h"

namespace rbt::initiator {

namespace {

constexpr Duration kFencePollFirst = std::chrono::milliseconds(1);
constexpr Duration kFencePollMax = std::chrono::milliseconds(50);

bool same_identity(const Namespace& a, const Namespace& b) noexcept {
  return a.uuid == b.uuid && a.nguid == b.nguid && a.eui64 == b.eui64 && a.block_size() == b.block_size();
}

}  // namespace

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
    const bool silence_helps = old_ && old_->silent != Instant::max() && now() < old_->silent;
    if (fatal_ || (now() >= until && !silence_helps)) return connected;
    schedule();
    if (!wait_until(now() >= until ? std::max(next_attempt_, old_->silent) : next_attempt_)) return stopped();
  }
  opened_ = true;
  return {};
}

// The first that works. What will not change is the better thing to say.
Result<void> Volume::Implementation::try_every_path() {
  std::optional<Error> worst;
  bool fatal = false;
  for (std::size_t i = 0; i < uris_.size(); ++i, uri_ = (uri_ + 1) % uris_.size()) {
    fatal_ = false;
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
    case VolumeState::live: return !queue_->live() || session_->state() != SessionState::live;
    case VolumeState::lost: return true;
    case VolumeState::reconnecting: return now() >= std::min(next_attempt_, give_up_at_);
    case VolumeState::fenced:  // never seen from outside of progress()
    case VolumeState::failed:
    case VolumeState::closed: return false;
  }
  return false;
}

void Volume::Implementation::progress() {
  check(!reactor_.turning(), "progress() turns the reactor, so it is not called from within a turn");
  while (progress_due()) {
    switch (state_) {
      case VolumeState::live: {
        const Error* const why = queue_->failure();
        lose(why != nullptr ? *why : session_->failure().value_or(Error(ErrorKind::disconnected, "the session ended")));
        break;
      }
      case VolumeState::lost:
        take_down();
        if (now() >= give_up_at_) return fail(*failure_);
        advance(VolumeState::reconnecting, &*failure_);
        backoff_ = Duration::zero();
        schedule();
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

// From any callback: only notes it. What is outstanding comes back as the queue pair is destroyed.
void Volume::Implementation::lose(Error why) {
  if (state_ != VolumeState::live) return;
  failure_ = std::move(why);
  ++statistics_.losses;
  lost_at_ = now();
  give_up_at_ =
      options_.on_loss && *options_.on_loss < Instant::max() - lost_at_ ? lost_at_ + *options_.on_loss : Instant::max();
  environment_.logger.warning("{}: the path is lost, {} requests wait: {}", uris_[uri_].to_string(), in_flight_,
                              failure_->message());
  advance(VolumeState::lost, &*failure_);
}

void Volume::Implementation::take_down() {
  if (auto queue = std::move(queue_)) queue.reset();  // what it carried is pending again
  registered_.clear();
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
  environment_.logger.error("{}: given up, {} requests fail: {}", uris_[uri_].to_string(), in_flight_,
                            failure_->message());
  wake_.cancel();
  advance(VolumeState::failed, &*failure_);
  end_all_later(Outcome::disconnected);
}

void Volume::Implementation::schedule() {
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
  if (fatal_) return fail(*failure_);
  environment_.logger.info("{}: {}; trying again", uris_[uri_].to_string(), failure_->message());
  uri_ = (uri_ + 1) % uris_.size();
  if (state_ == VolumeState::fenced) {
    advance(VolumeState::lost, &*failure_);
    advance(VolumeState::reconnecting, &*failure_);
  }
  schedule();
}

Duration Volume::Implementation::left() const noexcept {
  return give_up_at_ == Instant::max() ? Duration::max() : give_up_at_ - now();
}

Instant Volume::Implementation::step_deadline() const noexcept {
  return now() + std::min(options_.attempt_timeout, std::max(left(), Duration(1)));
}

// ---- one attempt, top to bottom

Result<void> Volume::Implementation::connect() {
  SessionOptions session = options_.session;
  session.io_queues = 1;
  session.management = &reactor_;
  session.connect_timeout = step_deadline() - now();
  session.on_event = {};
  session.on_lost = {};
  const Uri& uri = uris_[uri_];
  auto connected = Session::connect(environment_, uri, session);
  if (!connected) return rbt::failure(std::move(connected.error()));
  session_ = std::move(*connected);
  options_.session.host = {.id = session_->host_id(), .nqn = session_->host_nqn()};
  if (auto same = check_host(); !same) return same;
  const auto found = session_->find(uri.nsid);
  if (!found) return rbt::failure(Error(found.error()));
  if (auto same = compare_disk(**found); !same) return same;
  auto info = read_recovery_info((*found)->nsid);
  if (!info) return rbt::failure(std::move(info.error()));
  if (auto fenced = fence(*info); !fenced) return fenced;
  const auto incarnation = *info ? std::optional((*info)->incarnation) : std::nullopt;
  if (auto inherited = check_inheritance(incarnation); !inherited) return inherited;
  association_ = *info ? (*info)->association : nvme::AssociationId{};
  association_uri_ = uri_;
  association_keep_alive_ = session_->keep_alive();
  disk_ = **found;
  if (auto chosen = choose_memory(*info); !chosen) return chosen;
  if (inheritance_ == Inheritance::none && (!unflushed_ || !unflushed_->keeps_any())) incarnation_ = incarnation;
  if (auto noted = note_succession(); !noted) return noted;
  advance(VolumeState::fenced, nullptr);

  if (auto opened = open_queue(); !opened) return opened;
  if (!incarnation_ || incarnation_ != incarnation) {
    incarnation_.reset();
    if (auto written = write_again(); !written) return written;
    incarnation_ = incarnation;
  }
  if (auto noted = note_succession(); !noted) return noted;
  if (!queue_->live() || session_->state() != SessionState::live)
    return rbt::failure(ErrorKind::disconnected, "the new path was lost at once");
  give_up_at_ = Instant::max();
  wake_.cancel();
  advance(VolumeState::live, nullptr);
  unsent_ = oldest_;
  pump();
  return {};
}

Result<void> Volume::Implementation::compare_disk(const Namespace& now) {
  if (!opened_ && disk_.blocks == Blocks(0)) return {};
  const auto refuse = [this](std::string what) {
    fatal_ = true;
    return rbt::failure(
        ErrorKind::mismatch,
        fmt::format("{}: {}; nothing was written to it: look at what is served there", uris_[uri_].to_string(), what));
  };
  if (!same_identity(now, disk_))
    return refuse(fmt::format("namespace {} is another one than before (UUID {}, it was {})", now.nsid.value(),
                              now.uuid.to_string(), disk_.uuid.to_string()));
  if (now.blocks < disk_.blocks)
    return refuse(fmt::format("namespace {} has {} blocks, fewer than the {} it had", now.nsid.value(),
                              now.blocks.value(), disk_.blocks.value()));
  return {};
}

Result<std::optional<nvme::RecoveryInfo>> Volume::Implementation::read_recovery_info(Nsid nsid) {
  std::array<std::byte, sizeof(nvme::RecoveryLog)> page{};
  auto answer = session_->admin(
      nvme::encode_get_log_page({.nsid = nsid, .lid = nvme::kRecoveryLogId, .length = Bytes(page.size())}), page);
  if (!answer) return rbt::failure(std::move(answer.error()).within("asking for the recovery log"));
  const auto info = answer->status().ok() ? nvme::parse_recovery_log(page) : std::nullopt;
  statistics_.fence = options_.fencing == Fencing::off ? FenceKind::off
                      : info                           ? FenceKind::target
                                                       : FenceKind::keep_alive;
  if (statistics_.fence == FenceKind::keep_alive && session_->keep_alive() == Duration::zero()) {
    fatal_ = true;
    return rbt::failure(ErrorKind::unsupported,
                        "this target cannot end an old association when asked to, and without a keep-alive it never "
                        "does by itself: give a keep-alive timeout");
  }
  return info;
}

// ---- nothing goes on before the old association is over

Result<void> Volume::Implementation::fence(const std::optional<nvme::RecoveryInfo>& info) {
  if (!old_ || options_.fencing == Fencing::off) {
    old_.reset();
    return {};
  }
  const bool told = info && old_->id.number != 0;
  if (told && old_->id.instance == info->association.instance) {
    if (auto fenced = fence_by_target(*old_); !fenced) return fenced;
  } else if (!told || old_->uri != uri_) {
    // Who served it may be up and out of reach. At the same address, another instance is the successor of one that ended.
    const Instant until = old_->silent;
    if (until == Instant::max())
      return rbt::failure(
          ErrorKind::in_use,
          "the old association had no keep-alive that would end it, and this target cannot: only the one "
          "that had it can be used, or a successor of it at the same address");
    if (now() < until)
      return rbt::failure(ErrorKind::in_use,
                          fmt::format("the old association may last for another {}, as its keep-alive has it",
                                      format_duration(until - now())));
  }
  old_.reset();
  return {};
}

Result<void> Volume::Implementation::fence_by_target(const Old& old) {
  const Instant deadline = step_deadline();
  for (Duration pause = kFencePollFirst;; pause = std::min(2 * pause, kFencePollMax)) {
    auto answer = session_->admin(nvme::encode_fence(old.id), {});
    if (!answer) return rbt::failure(std::move(answer.error()).within("fencing off the old association"));
    if (!answer->status().ok()) return rbt::failure(status_error("fencing off the old association", answer->status()));
    if (answer->dw0() == static_cast<std::uint32_t>(nvme::FenceResult::gone)) return {};
    if (now() >= deadline)
      return rbt::failure(ErrorKind::in_use,
                          "the target's store has not finished commands of the old association; nothing is sent before "
                          "it has");
    (void)reactor_.run_until([this] { return session_->state() != SessionState::live; }, now() + pause);
  }
}

// ---- the new queue, and what the target may have forgotten

Result<void> Volume::Implementation::open_queue() {
  QueuePairOptions queue = options_.queue;
  queue.buffers = Bytes(0);
  auto opened = session_->open_queue_pair(reactor_, queue);
  if (!opened) return rbt::failure(std::move(opened.error()));
  queue_ = std::move(*opened);
  used_ = true;
  const auto reach = [this](const transport::MemorySpan& memory) {
    auto registered = session_->register_buffer(memory);
    if (registered) registered_.push_back(std::move(*registered));  // else: it is copied
  };
  if (buffers_) reach(buffers_->memory().memory());
  if (unflushed_) reach(unflushed_->memory());
  return {};
}

Result<void> Volume::Implementation::choose_memory(const std::optional<nvme::RecoveryInfo>& info) {
  MemoryKind& kind = statistics_.memory;
  if (kind == MemoryKind::on) return {};
  kind = options_.unflushed == Bytes(0) ? MemoryKind::off
         : !disk_.volatile_write_cache  ? MemoryKind::not_needed
         : !info                        ? MemoryKind::foreign
                                        : MemoryKind::on;
  if (kind != MemoryKind::on) return {};
  auto created = UnflushedWrites::create(options_.unflushed);
  if (!created) return rbt::failure(std::move(created.error()));
  unflushed_.emplace(std::move(*created));
  return {};
}

// In order, one after the other, before anything else: whatever comes later was submitted later.
Result<void> Volume::Implementation::write_again() {
  if (!unflushed_) return {};
  for (std::uint64_t sequence = unflushed_->first(); sequence != unflushed_->end(); ++sequence) {
    const UnflushedWrites::Entry& entry = unflushed_->at(sequence);
    if (entry.state != UnflushedWrites::Entry::State::kept) continue;
    auto written = write_again(entry);
    if (!written) return rbt::failure(std::move(written.error()).within("writing again what the target has forgotten"));
    ++statistics_.rewritten;
  }
  return {};
}

Result<void> Volume::Implementation::write_again(const UnflushedWrites::Entry& entry) {
  Request request;
  const auto data = unflushed_->data(entry);
  const iovec piece{data.data(), data.size()};
  const auto submit = [&] {
    if (entry.operation == Operation::write) return queue_->write(request, disk_, entry.range.first, {&piece, 1});
    if (entry.operation == Operation::discard) return queue_->discard(request, disk_, {&entry.range, 1});
    return queue_->write_zeroes(request, disk_, entry.range, entry.deallocate);
  };
  const Submitted submitted = submit();
  // The queue pair ends every command in its time; the bound is for a reactor that was told to stop.
  if (submitted == Submitted::accepted) (void)queue_->wait(request, Instant::max());
  if (request.in_flight()) {
    queue_.reset();
    return rbt::failure(ErrorKind::disconnected, "the reactor was told to stop");
  }
  if (submitted == Submitted::accepted && request.outcome == Outcome::success) return {};
  if (submitted == Submitted::refused || request.outcome == Outcome::failed) {
    fatal_ = true;
    return rbt::failure(ErrorKind::io,
                        fmt::format("{} of {} blocks at LBA {}: {}", name(entry.operation), entry.range.count.value(),
                                    entry.range.first.value(),
                                    request.outcome == Outcome::failed ? nvme::describe(request.status)
                                                                       : std::string(name(request.outcome))));
  }
  return rbt::failure(queue_->failure() != nullptr ? *queue_->failure()
                                                   : Error(ErrorKind::disconnected, "the new path was lost"));
}

}  // namespace rbt::initiator
