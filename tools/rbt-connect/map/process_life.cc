// A volume's process while the device is there, and its end.
#include <fmt/format.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "tools/program/options.h"
#include "tools/rbt-connect/map/busy.h"
#include "tools/rbt-connect/map/volume_process.h"

namespace rbt::tools::map {

using initiator::VolumeState;

namespace {

// --force has 2 s for everything, and the one who asks kills us after the first of them.
constexpr Duration kForced = std::chrono::milliseconds(700);
constexpr Duration kFlush = std::chrono::seconds(5);
constexpr Duration kAnswer = std::chrono::seconds(1);
// udev looks at a device whenever somebody has written to it.
constexpr int kPassingTries = 10;
constexpr Duration kPassingPause = std::chrono::milliseconds(100);
constexpr Duration kLookAgain = std::chrono::seconds(1);

}  // namespace

// ---- while it is there

// The volume logs it.
void Process::on_state(VolumeState state, const Error* why) {
  if (state == VolumeState::live || state == VolumeState::lost || state == VolumeState::failed)
    changed_ = world_.clock.now();
  if (why != nullptr) reason_ = why->message();
  if (state == VolumeState::live) reason_.clear();
  if (device_ == nullptr) return;
  ::sd_notifyf(0, "STATUS=%s: %s %s", state_.device.c_str(), std::string(name(state)).c_str(), reason_.c_str());
}

void Process::on_change(initiator::DiskChange change) {
  switch (change) {
    case initiator::DiskChange::grown:
    case initiator::DiskChange::shrunk: resized_ = true; break;
    case initiator::DiskChange::removed: note_ = "the target serves this disk no more"; break;
    case initiator::DiskChange::returned: note_.clear(); break;
    case initiator::DiskChange::read_only: note_ = "the target has made the disk read-only: writes fail"; break;
    case initiator::DiskChange::writable: note_.clear(); break;
  }
}

Standing Process::standing() const {
  const Instant now = world_.clock.now();
  return {.state = volume_->state(),
          .reason = reason_,
          .note = note_,
          .since_change = now - changed_,
          .uptime = now - begun_};
}

std::optional<Json> Process::on_request(ControlServer::Client client, const Json& request) {
  const Json command = request.value("command", Json());
  if (command == "status") return Json{{"ok", true}, {"status", status_of(standing(), *volume_)}};
  if (command != "unmap")
    return answer_of(Error(ErrorKind::invalid_argument, "there are the commands status and unmap"));
  const Force force = request.value("force", Json()) == true ? Force::yes : Force::no;
  if (unmap_ && force == Force::no) return answer_of(Error(ErrorKind::in_use, "it is being unmapped already"));
  unmap_ = Unmap{client, force};
  if (force == Force::no) return std::nullopt;
  // In the middle of an attempt to connect nothing is taken away, and with force nobody waits for its end: the process ends
  // here, in a turn of the reactor, and whoever asked takes away what is left.
  last_resort_.emplace(reactor_->timers(), [] { std::_Exit(kSuccess); });
  last_resort_->arm(in(kForced + kForced / 4));
  return std::nullopt;
}

void Process::on_signal() {
  signalfd_siginfo info{};
  while (::read(signals_, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
    ++stop_;
  if (stop_ == 0 || !opening_) return;
  // Nothing is there yet that would have to be taken down in order.
  if (!job_.predecessor) forget();
  std::_Exit(kInterrupted);
}

void Process::keep_watchdog() {
  std::uint64_t period_us = 0;
  if (::sd_watchdog_enabled(0, &period_us) <= 0) return;
  watchdog_period_ = std::chrono::microseconds(period_us / 3);
  watchdog_.emplace(reactor_->timers(), [this] {
    ::sd_notify(0, "WATCHDOG=1");
    watchdog_->arm(world_.clock.now() + watchdog_period_);
  });
  watchdog_->arm(world_.clock.now());
}

// ---- end

// On a thread of its own: it takes a while, and opening the device may wait for requests that we are to carry out.
std::vector<std::string> Process::users() {
  std::vector<std::string> found;
  for (int i = 0; i < kPassingTries; ++i) {
    const Looking looking{.except = {::getpid()}, .open = volume_->state() == VolumeState::live};
    std::atomic<bool> done{false};  // released by the thread behind `found`, acquired below
    std::thread looker([&] {
      found = users_of(state_.device, looking);
      done.store(true, std::memory_order_release);
      reactor_->wake();
    });
    while (!volume_->run_until([&] { return done.load(std::memory_order_acquire); }, in(kLong))) {
    }
    looker.join();
    if (!passing(found)) break;
    static_cast<void>(volume_->run_until([] { return false; }, in(kPassingPause)));
  }
  return found;
}

// What was acknowledged must be durable before nobody is left who would write it again.
Result<void> Process::flush() {
  if (volume_->state() == VolumeState::failed || !volume_->disk().volatile_write_cache || state_.read_only) return {};
  const Instant deadline = in(kFlush);
  while (!flush_.in_flight()) {  // an earlier one may still wait for a path
    const auto submitted = volume_->flush(flush_);
    if (submitted == initiator::Submitted::accepted) break;
    if (submitted != initiator::Submitted::full)
      return failure(ErrorKind::io, fmt::format("{} cannot be flushed", state_.device));
    if (!volume_->run_until([this] { return volume_->in_flight() == 0; }, deadline)) break;
  }
  const bool answered = volume_->run_until([this] { return !flush_.in_flight(); }, deadline);
  if (answered && flush_.outcome == initiator::Outcome::success) return {};
  return failure(
      ErrorKind::io,
      fmt::format("{} cannot be flushed, the volume is {}{}{}: what was written last might be lost; wait for its "
                  "target, or rbt-connect unmap --force {}",
                  state_.device, name(volume_->state()), reason_.empty() ? "" : ": ", reason_, state_.name));
}

Result<void> Process::take_away(Force force) {
  if (force == Force::no)
    if (auto flushed = flush(); !flushed) return flushed;
  return device_->remove(in(force == Force::yes ? kForced : kOrderly));
}

void Process::forget() noexcept {
  folder_.remove(state_.name);
  lock_.forget();
  if (!state_.device.empty()) announce();
}

// udev has seen the device come before there was a state to ask for its name, and go while there still was one.
void Process::announce() const {
  std::ofstream(fmt::format("/sys/block/{}/uevent", state_.device.substr(5))) << "change";
}

void Process::unmap() {
  const Unmap request = *unmap_;
  unmap_.reset();
  Result<void> done;
  if (request.force == Force::no)
    if (const auto found = users(); !found.empty())
      done = failure(ErrorKind::in_use, in_use_text(state_.device, found));
  if (done) done = take_away(request.force);
  last_resort_.reset();
  if (done) {
    over_ = true;
    forget();
  }
  control_->answer(request.client, done ? Json{{"ok", true}} : answer_of(done.error()));
  control_->finish(in(kAnswer));
}

// Told to end: no request is failed for that. A device that nobody uses goes; another one is left to a successor, or, if it
// cannot be left, kept until it is not used any more. Who says it twice means it.
std::optional<int> Process::stop() {
  const bool again = stopped_ > 0 && stop_ > stopped_ && !presenter_->recoverable;
  if (stopped_ == 0) ::sd_notify(0, "STOPPING=1");
  const bool first = stopped_ == 0;
  stopped_ = stop_;
  Result<void> done;
  if (!again)
    if (const auto found = users(); !found.empty())
      done = failure(ErrorKind::in_use, in_use_text(state_.device, found));
  if (done) done = take_away(again ? Force::yes : Force::no);
  if (done || again) {
    if (!done) world_.logger.warning("{}", done.error().message());
    forget();
    return done ? kSuccess : kFailed;
  }
  if (presenter_->recoverable) {
    world_.logger.warning("{}; it is left as it is: rbt-connect recover {} goes on with it", done.error().message(),
                          state_.name);
    return kInUse;
  }
  if (first)
    world_.logger.warning("{}; ends when that is over, or at the next signal, with I/O errors", done.error().message());
  static_cast<void>(volume_->run_until([this] { return called(); }, in(kLookAgain)));
  return std::nullopt;
}

void Process::resize() {
  resized_ = false;
  const initiator::Namespace& disk = volume_->disk();
  const std::uint64_t size = disk.blocks.value() << disk.block_shift.value();
  if (size == state_.size) return;
  if (auto resized = device_->resize(); !resized) {
    note_ = fmt::format("the disk has {} bytes now, the device {}: unmap and map it again", size, state_.size);
    world_.logger.warning("{}: {}: {}", state_.device, note_, resized.error().message());
    return;
  }
  note_.clear();
  state_.size = size;
  if (auto written = folder_.write(state_); !written) world_.logger.warning("{}", written.error().message());
}

Result<int> Process::ended(Error why) {
  if (auto removed = device_->remove(in(kForced)); !removed) world_.logger.warning("{}", removed.error().message());
  forget();
  return failure(std::move(why).within(state_.device));
}

}  // namespace rbt::tools::map
