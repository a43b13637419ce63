#include "tools/rbt-connect/map/start.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "tools/program/options.h"
#include "tools/rbt-connect/map/launch.h"
#include "tools/rbt-connect/map/presenters.h"
#include "tools/rbt-connect/map/process.h"
#include "tools/rbt-connect/map/remove.h"
#include "tools/rbt-connect/map/surroundings.h"

namespace rbt::tools::map {

namespace {

constexpr int kSuffixMax = 99;

// A name, ours now, and what is left of the volume that had it before.
struct Taken {
  NameLock lock;
  std::optional<State> leftover{};
};

Result<Taken> take(const RunFolder& folder, const std::string& name) {
  auto lock = folder.lock(name);
  if (!lock) return failure(std::move(lock.error()));
  Taken taken{std::move(*lock)};
  auto state = folder.read(name);
  if (!state) {
    if (state.error().kind() == ErrorKind::not_found) return taken;
    return failure(std::move(state.error()).within("what is left of an earlier volume of that name"));
  }
  if (auto removed = remove_untold(folder, *state); !removed) return failure(std::move(removed.error()));
  const Presenter* const presenter = find_presenter(state->via);
  if (!state->device.empty() && presenter != nullptr && presenter->exists(*state))
    taken.leftover = std::move(*state);
  else
    folder.remove(name);
  if (!taken.leftover && presenter != nullptr) presenter->sweep(folder);
  return taken;
}

Error left_behind(const State& state) {
  const Presenter* const presenter = find_presenter(state.via);
  return Error(
      ErrorKind::in_use,
      fmt::format("the process of '{}' has ended, its device {} is still there: rbt-connect {}, rbt-connect unmap "
                  "--force {} takes it away",
                  state.name, state.device,
                  presenter != nullptr && presenter->recoverable ? fmt::format("recover {} goes on with it", state.name)
                                                                 : "gc takes it away if nobody uses it",
                  state.name));
}

// The one that was asked for, or the first of "disk-1", "disk-1-2", … that is free.
Result<Taken> take_name(const RunFolder& folder, MapOptions& options, bool may_take_over) {
  if (!options.name.empty()) {
    auto taken = take(folder, options.name);
    if (taken && taken->leftover && !may_take_over) return failure(left_behind(*taken->leftover));
    return taken;
  }
  const std::string first = derived_name(options.uris.front());
  for (int i = 1; i <= kSuffixMax; ++i) {
    options.name = i == 1 ? first : fmt::format("{}-{}", first, i);
    auto taken = take(folder, options.name);
    if (taken && !taken->leftover) return taken;
    if (!taken && taken.error().kind() != ErrorKind::in_use) return taken;
  }
  return failure(
      ErrorKind::in_use,
      fmt::format("'{}' and the {} names behind it are taken: choose another one with --as", first, kSuffixMax - 1));
}

// The process lives in /, so that it holds no other folder.
void settle(MapOptions& options) {
  std::error_code error;
  for (Uri& uri : options.uris)
    if (const auto socket = uri.options.find("socket"); socket != uri.options.end())
      if (const auto path = std::filesystem::absolute(socket->second, error); !error) socket->second = path.string();
  static_cast<void>(::chdir("/"));
}

Result<int> serve_and_tell(const World& world, const RunFolder& folder, NameLock lock, const Job& job,
                           Starter& starter) {
  auto status = serve(world, folder, std::move(lock), job, starter);
  if (!status) starter.failed(status.error());
  return status;
}

Result<int> map_here(const World& world, const RunFolder& folder, MapOptions options, bool named, Starter& starter) {
  prepare_surroundings(world.logger);
  if (auto prepared = folder.prepare(); !prepared) return failure(std::move(prepared.error()));
  auto taken = take_name(folder, options, named);
  if (!taken) return failure(std::move(taken.error()));
  settle(options);
  // Whoever types a URI wants to hear of a mistake in it; rbttab is read by units, at boot, beside a target that boots.
  const Duration patience = named ? options.timeout : Duration(0);
  Job job{.options = std::move(options), .predecessor = std::move(taken->leftover), .patience = patience};
  if (job.predecessor) {
    const Presenter* const presenter = find_presenter(job.predecessor->via);
    if (presenter == nullptr || !presenter->recoverable) return failure(left_behind(*job.predecessor));
    auto before = options_of(*job.predecessor);  // what the device was made with, whatever rbttab says by now
    if (!before) return failure(std::move(before.error()).within(job.predecessor->name));
    job.options = std::move(*before);
  }
  return serve_and_tell(world, folder, std::move(taken->lock), job, starter);
}

Result<int> recover_here(const World& world, const RunFolder& folder, const std::string& name,
                         initiator::AcceptLoss accept_loss, Starter& starter) {
  prepare_surroundings(world.logger);
  if (auto state = folder.read(name); !state) return failure(std::move(state.error()));
  auto lock = folder.lock(name);
  if (!lock && lock.error().kind() != ErrorKind::in_use) return failure(std::move(lock.error()));
  if (!lock)
    return failure(ErrorKind::in_use, fmt::format("'{}' needs no recovery, its process ({}) is there", name,
                                                  folder.holder(name).value_or(0)));
  auto state = folder.read(name);  // once more: now nobody changes it
  if (!state) return failure(std::move(state.error()));
  const Presenter* const presenter = find_presenter(state->via);
  if (presenter == nullptr || state->device.empty() || !presenter->exists(*state))
    return failure(ErrorKind::not_found,
                   fmt::format("'{}' has no device any more: rbt-connect gc clears up, then map it again", name));
  if (!presenter->recoverable) return failure(left_behind(*state));
  auto options = options_of(*state);
  if (!options) return failure(std::move(options.error()).within(name));
  settle(*options);
  const Duration patience = options->timeout;
  Job job{.options = std::move(*options),
          .predecessor = std::move(*state),
          .patience = patience,
          .accept_loss = accept_loss};
  return serve_and_tell(world, folder, std::move(*lock), job, starter);
}

// Whatever goes wrong, whoever waits hears of it; a process of its own has nobody else to tell.
template <typename Here>
Result<int> run_here(const Start& start, Here&& here) {
  Starter starter(start.detached);
  Result<int> status = here(starter);
  if (status || !starter.detached()) return status;
  starter.failed(status.error());
  return exit_status(status.error().kind());
}

Result<int> start_elsewhere(const std::vector<std::string>& words) {
  const Interrupt interrupt;
  auto device = launch(words, interrupt);
  if (interrupt.raised()) return kInterrupted;
  if (!device) return failure(std::move(device.error()));
  fmt::print("{}\n", *device);
  return kSuccess;
}

}  // namespace

Result<int> map_volume(const World& world, const RunFolder& folder, MapOptions options, bool named,
                       const Start& start) {
  if (start.detached < 0 && !start.foreground) return start_elsewhere(start.words);
  return run_here(start, [&](Starter& starter) { return map_here(world, folder, std::move(options), named, starter); });
}

Result<int> recover(const World& world, const RunFolder& folder, const std::string& name,
                    initiator::AcceptLoss accept_loss, const Start& start) {
  if (start.detached < 0 && !start.foreground) return start_elsewhere(start.words);
  return run_here(start, [&](Starter& starter) { return recover_here(world, folder, name, accept_loss, starter); });
}

Result<int> recover_all(const RunFolder& folder, initiator::AcceptLoss accept_loss, const Start& start) {
  if (start.foreground)
    return failure(ErrorKind::invalid_argument,
                   "recover --all: each volume has a process of its own, none is in the foreground");
  int result = kSuccess;
  bool any = false;
  for (const std::string& name : folder.names()) {
    if (folder.holder(name)) continue;
    auto state = folder.read(name);
    const Presenter* const presenter = state ? find_presenter(state->via) : nullptr;
    if (state && (presenter == nullptr || state->device.empty() || !presenter->exists(*state))) continue;  // gc's
    any = true;
    std::vector<std::string> words{"recover", name};
    if (accept_loss == initiator::AcceptLoss::yes) words.push_back("--accept-loss");
    auto status = state ? start_elsewhere(words) : Result<int>(failure(std::move(state.error())));
    const int code = status ? *status : report("rbt-connect", std::move(status.error()).within(name));
    if (code == kInterrupted) return code;
    if (result == kSuccess) result = code;
  }
  if (!any) fmt::print(stderr, "rbt-connect: no volume needs recovery\n");
  return result;
}

}  // namespace rbt::tools::map
