// One attempt to have a path, top to bottom: connect() is the list of its steps. Outside of the reactor's turns, because it
// turns the reactor itself.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "common/sizes.h"
#include "initiator/call.h"
#include "initiator/recovery.h"

namespace rbt::initiator {

namespace {

constexpr Duration kFencePollFirst = std::chrono::milliseconds(1);
constexpr Duration kFencePollMax = std::chrono::milliseconds(50);

bool same_identity(const Namespace& a, const Namespace& b) noexcept {
  return a.uuid == b.uuid && a.nguid == b.nguid && a.eui64 == b.eui64 && a.block_size() == b.block_size();
}

}  // namespace

Result<void> Volume::Implementation::connect() {
  fatal_ = false;
  SessionOptions session = options_.session;
  session.io_queues = options_.lanes;
  session.management = &reactor_;
  session.connect_timeout = step_deadline() - now();
  session.reach_timeout = reach_timeout();
  session.on_event = [this](const nvme::AsyncEvent& event) { on_event(event); };
  session.on_lost = {};
  const Uri& uri = uris_[uri_];
  const Instant began = now();
  auto connected = Session::connect(environment_, uri, session);
  if (!connected) return rbt::failure(std::move(connected.error()));
  connecting_took_ = now() - began;
  session_ = std::move(*connected);
  options_.session.host.id = session_->host_id();
  options_.session.host.nqn = session_->host_nqn();
  if (auto same = check_host(); !same) return same;
  if (auto enough = check_queues(); !enough) return enough;
  const auto found = find_disk(uri);
  if (!found) return rbt::failure(Error(found.error()));
  if (auto same = compare_disk(**found); !same) return same;
  if (auto usable = check_access(**found); !usable) return usable;
  auto info = read_recovery_info((*found)->nsid);
  if (!info) return rbt::failure(std::move(info.error()));
  if (auto fenced = fence(*info); !fenced) return fenced;
  const auto incarnation = *info ? std::optional((*info)->incarnation) : std::nullopt;
  if (auto inherited = check_inheritance(incarnation); !inherited) return inherited;
  association_ = *info ? (*info)->association : nvme::AssociationId{};
  association_uri_ = uri_;
  association_keep_alive_ = session_->keep_alive();
  disk_ = **found;
  disk_gone_ = false;
  choose_memory(*info);
  if (shared_.flush_failed.exchange(false, std::memory_order_acquire)) incarnation_.reset();
  if (!shared_.inherited && !keeps_any()) incarnation_ = incarnation;
  if (auto noted = note_succession(); !noted) return noted;
  advance(VolumeState::fenced, nullptr);

  if (auto opened = open_queues(); !opened) return opened;
  if (!incarnation_ || incarnation_ != incarnation) {
    incarnation_.reset();
    if (auto written = write_again(); !written) return written;
    incarnation_ = incarnation;
  }
  if (auto noted = note_succession(); !noted) return noted;
  if (!path_lives()) return rbt::failure(ErrorKind::disconnected, "the new path was lost at once");
  wake_.cancel();
  live_since_ = now();
  advance(VolumeState::live, nullptr);
  on_lanes([](Lane& lane) { lane.resume(); });
  tell_changes();
  return {};
}

// A network that was slow all the time has more time, and one that has become slow gets all of it now and then.
Duration Volume::Implementation::reach_timeout() noexcept {
  constexpr std::uint64_t kPatientOnceIn = 8;
  const bool patient = !opened_ || ++tries_ % kPatientOnceIn == 0;
  return patient ? Duration::zero() : std::max(options_.reach_timeout, connecting_took_);
}

// A URI that names no namespace means the only one; once it is known, it is found among others that came later.
Result<const Namespace*> Volume::Implementation::find_disk(const Uri& uri) {
  if (!uri.nsid && disk_.blocks != Blocks(0))
    for (const Namespace& one : session_->namespaces())
      if (same_identity(one, disk_)) return &one;
  return session_->find(uri.nsid);
}

Result<void> Volume::Implementation::compare_disk(const Namespace& now) {
  if (!opened_ && disk_.blocks == Blocks(0)) return {};
  const auto refuse = [this](std::string what) {
    fatal_ = true;
    return rbt::failure(
        ErrorKind::mismatch,
        fmt::format("{}: {}; {}: look at what is served there", uris_[uri_].to_string(), what,
                    state_ == VolumeState::live ? "what was written last may be on it" : "nothing was written to it"));
  };
  if (!same_identity(now, disk_))
    return refuse(fmt::format("namespace {} is another one than before (UUID {}, it was {})", now.nsid.value(),
                              now.uuid.to_string(), disk_.uuid.to_string()));
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
    silence_awaited_ = now() < until;
    if (silence_awaited_)
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

// How many lanes there are is settled by the first path.
Result<void> Volume::Implementation::check_queues() {
  const std::size_t granted = session_->io_queues();
  if (granted >= lanes_.size()) return {};
  if (opened_ || granted == 0)
    return rbt::failure(ErrorKind::resource, fmt::format("the target grants {} I/O queues, and the volume has {} lanes",
                                                         granted, lanes_.size()));
  environment_.logger.info("{}: the target grants {} I/O queues: so many lanes there are, not {}",
                           uris_[uri_].to_string(), granted, lanes_.size());
  drop_lanes(granted);
  return {};
}

Result<void> Volume::Implementation::open_queues() {
  std::vector<Result<void>> opened(lanes_.size());
  used_ = true;
  const Bytes unflushed = statistics_.memory == MemoryKind::on ? unflushed_of_lane(options_) : Bytes(0);
  on_lanes([&](Lane& lane) { opened[lane.number()] = lane.open(*session_, disk_, unflushed); });
  for (auto& each : opened)
    if (!each) return rbt::failure(std::move(each.error()));
  const auto reach = [this](const transport::MemorySpan& memory) {
    auto registered = session_->register_buffer(memory);
    if (registered) registered_.push_back(std::move(*registered));  // else: it is copied
  };
  if (buffers_) reach(buffers_->memory().memory());
  for (const auto& lane : lanes_)
    if (lane->unflushed() != nullptr) reach(lane->unflushed()->memory());
  return {};
}

void Volume::Implementation::choose_memory(const std::optional<nvme::RecoveryInfo>& info) noexcept {
  MemoryKind& kind = statistics_.memory;
  if (kind == MemoryKind::on) return;
  kind = options_.unflushed == Bytes(0) ? MemoryKind::off
         : !disk_.volatile_write_cache  ? MemoryKind::not_needed
         : !info                        ? MemoryKind::foreign
                                        : MemoryKind::on;
}

bool Volume::Implementation::keeps_any() const noexcept {
  return std::any_of(lanes_.begin(), lanes_.end(),
                     [](const auto& lane) { return lane->unflushed() != nullptr && lane->unflushed()->keeps_any(); });
}

// In the order of their answers, one after the other, before anything else: whatever was submitted when another one had been
// answered comes behind it, on whatever lanes they were.
Result<void> Volume::Implementation::write_again() {
  struct Kept {
    const UnflushedWrites* log;
    const UnflushedWrites::Entry* entry;
  };
  std::vector<Kept> all;
  for (const auto& lane : lanes_) {
    const UnflushedWrites* const log = lane->unflushed();
    if (log == nullptr) continue;
    for (std::uint64_t sequence = log->first(); sequence != log->end(); ++sequence)
      if (log->at(sequence).state == UnflushedWrites::Entry::State::kept) all.push_back({log, &log->at(sequence)});
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Kept& a, const Kept& b) { return a.entry->acknowledged < b.entry->acknowledged; });
  for (const Kept& each : all) {
    auto written = write_again(*each.log, *each.entry);
    if (!written) return rbt::failure(std::move(written.error()).within("writing again what the target has forgotten"));
    ++statistics_.rewritten;
  }
  return {};
}

Result<void> Volume::Implementation::write_again(const UnflushedWrites& log, const UnflushedWrites::Entry& entry) {
  Request request;
  // What lay behind the end of a disk that has shrunk since is gone with it.
  if (entry.range.first.value() >= disk_.blocks.value()) return {};
  const BlockRange range = {entry.range.first,
                            std::min(entry.range.count, Blocks(disk_.blocks.value() - entry.range.first.value()))};
  const auto data = log.data(entry);
  const iovec piece{data.data(), std::min<std::size_t>(data.size(), range.count.value() << disk_.block_shift.value())};
  QueuePair* const queue = &lanes_[0]->queue();
  const auto submit = [&] {
    if (entry.operation == Operation::write) return queue->write(request, disk_, range.first, {&piece, 1});
    if (entry.operation == Operation::discard) return queue->discard(request, disk_, {&range, 1});
    return queue->write_zeroes(request, disk_, range, entry.deallocate);
  };
  const Submitted submitted = submit();
  // The queue pair ends every command in its time; the bound is for a reactor that was told to stop.
  if (submitted == Submitted::accepted) (void)queue->wait(request, Instant::max());
  if (request.in_flight()) {
    lanes_[0]->halt();
    return rbt::failure(ErrorKind::disconnected, "the reactor was told to stop");
  }
  if (submitted == Submitted::accepted && request.outcome == Outcome::success) return {};
  if (request.outcome == Outcome::failed && is_path_error(request.status))
    return rbt::failure(ErrorKind::unreachable, nvme::describe(request.status));
  if (submitted == Submitted::refused || request.outcome == Outcome::failed) {
    fatal_ = true;
    return rbt::failure(ErrorKind::io,
                        fmt::format("{} of {} blocks at LBA {}: {}", name(entry.operation), entry.range.count.value(),
                                    entry.range.first.value(),
                                    request.outcome == Outcome::failed ? nvme::describe(request.status)
                                                                       : std::string(name(request.outcome))));
  }
  return rbt::failure(queue->failure() != nullptr ? *queue->failure()
                                                  : Error(ErrorKind::disconnected, "the new path was lost"));
}

}  // namespace rbt::initiator
