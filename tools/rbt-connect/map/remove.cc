#include "tools/rbt-connect/map/remove.h"

#include <fmt/format.h>
#include <signal.h>

#include <cerrno>
#include <thread>

#include "tools/program/options.h"
#include "tools/rbt-connect/map/busy.h"
#include "tools/rbt-connect/map/control.h"
#include "tools/rbt-connect/map/presenters.h"

namespace rbt::tools::map {

namespace {

constexpr Duration kOrderly = std::chrono::seconds(60);
constexpr Duration kForcedAnswer = std::chrono::milliseconds(1100);  // it ends itself after less: process.h
constexpr Duration kDeath = std::chrono::seconds(10);                // as a rule it takes a few milliseconds
constexpr Duration kRemoval = std::chrono::milliseconds(1500);
constexpr Duration kPause = std::chrono::milliseconds(10);
constexpr Duration kWaitPause = std::chrono::milliseconds(500);

class Removal {
 public:
  Removal(const World& world, const RunFolder& folder, const std::string& name)
      : world_(world), folder_(folder), name_(name) {}

  Result<void> unmap(const UnmapOptions& options) {
    if (!folder_.holder(name_)) return without_process(options.force);
    const Instant begun = world_.clock.now();
    auto answer = ask(options.force, begun + (options.force ? kForcedAnswer : kOrderly));
    if (answer) return {};
    if (options.force) return by_force();
    if (answer.error().kind() == ErrorKind::not_found)
      return failure(ErrorKind::in_use, fmt::format("'{}' is just being mapped: wait, or unmap --force", name_));
    if (answer.error().kind() == ErrorKind::timed_out)
      return failure(
          ErrorKind::timed_out,
          fmt::format("the process of '{}' does not answer: rbt-connect unmap --force {} ends it, and fails the "
                      "requests that are with it",
                      name_, name_));
    return failure(std::move(answer.error()));
  }

  // The device of a dead process. Nobody can be using the name meanwhile.
  Result<void> without_process(bool force) {
    auto lock = folder_.lock(name_);
    if (!lock) return failure(std::move(lock.error()));
    auto state = folder_.read(name_);
    if (!state) {
      lock->forget();
      if (state.error().kind() == ErrorKind::not_found) return {};
      return failure(std::move(state.error()));
    }
    const Presenter* const presenter = find_presenter(state->via);
    if (!force)
      if (auto untold = remove_untold(folder_, *state); !untold) return untold;
    if (presenter != nullptr)
      if (auto named = name_device(folder_, *presenter, *state); !named) return failure(std::move(named.error()));
    if (presenter != nullptr && !state->device.empty() && presenter->exists(*state)) {
      if (!force)
        if (const auto users = users_of(state->device, {.open = false}); !users.empty())
          return failure(ErrorKind::in_use,
                         fmt::format("{}; its process has ended: rbt-connect recover {} goes on with it",
                                     in_use_text(state->device, users), name_));
      if (auto removed = presenter->remove(folder_, *state, world_.clock.now() + kRemoval); !removed) {
        if (!force || removed.error().kind() != ErrorKind::in_use) return removed;
        fmt::print(stderr, "rbt-connect: {}\n", removed.error().message());
      }
    }
    if (presenter != nullptr) presenter->sweep(folder_);
    folder_.remove(name_);
    lock->forget();
    return {};
  }

 private:
  Result<Json> ask(bool force, Instant deadline) {
    auto asked = Asked::send(folder_.control(name_), {{"version", 1}, {"command", "unmap"}, {"force", force}});
    if (!asked) return failure(std::move(asked.error()));
    return asked->answer(world_.clock, deadline);
  }

  bool gone_by(Instant deadline) {
    while (folder_.holder(name_)) {
      if (world_.clock.now() >= deadline) return false;
      std::this_thread::sleep_for(kPause);
    }
    return true;
  }

  Result<void> by_force() {
    if (const auto pid = folder_.holder(name_); pid && *pid > 0 && folder_.holds(*pid, name_)) {
      if (::kill(*pid, SIGKILL) != 0 && errno != ESRCH)
        return errno_failure(errno, fmt::format("killing process {} of '{}'", *pid, name_));
    }
    if (!gone_by(world_.clock.now() + kDeath))
      return failure(
          ErrorKind::timed_out,
          fmt::format("process {} of '{}' does not end, not even killed: the kernel does something for it that "
                      "takes long; try again, and look at dmesg",
                      folder_.holder(name_).value_or(0), name_));
    return without_process(true);
  }

  const World& world_;
  const RunFolder& folder_;
  const std::string& name_;
};

}  // namespace

Result<void> unmap(const World& world, const RunFolder& folder, const std::string& name, const UnmapOptions& options) {
  const Interrupt interrupt;
  while (true) {
    auto done = Removal(world, folder, name).unmap(options);
    if (done || !options.wait || done.error().kind() != ErrorKind::in_use || interrupt.raised()) return done;
    std::this_thread::sleep_for(kWaitPause);
  }
}

// Whoever looks at every new device may have found it all the same.
Result<void> remove_untold(const RunFolder& folder, State state) {
  const Presenter* const presenter = find_presenter(state.via);
  if (presenter == nullptr) return {};
  auto named = name_device(folder, *presenter, state);
  if (!named) return failure(std::move(named.error()));
  if (!*named) return {};
  if (const auto users = users_of(state.device, {.open = false}); !users.empty())
    return failure(ErrorKind::in_use,
                   fmt::format("{}; its process was killed before it was ready: rbt-connect unmap --force {}",
                               in_use_text(state.device, users), state.name));
  return presenter->remove(folder, state, SystemClock().now() + kRemoval);
}

Result<int> collect(const World& world, const RunFolder& folder) {
  int result = kSuccess;
  for (const std::string& name : folder.names()) {
    if (folder.holder(name)) continue;
    auto state = folder.read(name);
    if (!state) {
      const bool damaged = state.error().kind() != ErrorKind::permission;
      const int status = report(
          "rbt-connect", Error(state.error().kind(),
                               state.error().message() + (damaged ? "; look at it, then remove it by hand" : "")));
      result = result == kSuccess ? (damaged ? kFailed : status) : result;
      continue;
    }
    const Presenter* const presenter = find_presenter(state->via);
    // What cannot be looked for is told by the removal.
    if (presenter != nullptr) static_cast<void>(name_device(folder, *presenter, *state));
    const bool there = presenter != nullptr && !state->device.empty() && presenter->exists(*state);
    if (auto removed = Removal(world, folder, name).without_process(false); !removed) {
      result = report("rbt-connect", std::move(removed.error()).within(name));
      continue;
    }
    fmt::print("{}: {}\n", name, there ? state->device + " is removed" : "what was left of it is removed");
  }
  for (const Presenter& each : presenters())
    each.sweep(folder);
  folder.sweep();
  return result;
}

}  // namespace rbt::tools::map
