#pragma once
// The process of one volume: opens it, makes the device, answers (control.h), and takes both down in the right order. docs/mapping.md
// has what it does when it is told to end.

#include <optional>

#include "initiator/succession.h"
#include "tools/rbt-connect/map/launch.h"
#include "tools/rbt-connect/map/options.h"
#include "tools/rbt-connect/map/state.h"
#include "tools/rbt-connect/map/world.h"

namespace rbt::tools::map {

/// What to serve.
struct Job {
  MapOptions options{};
  /// Of a process that has ended: its device is taken over, with its requests. None: a device is made.
  std::optional<State> predecessor{};
  /// How long the first attempts to connect may go on, if what they met may pass.
  Duration patience{0};
  /// Go on although writes that the predecessor had acknowledged may be lost.
  initiator::AcceptLoss accept_loss = initiator::AcceptLoss::no;
};

/// Until the volume is unmapped, or the process is told to end. Returns the exit status: kSuccess, nothing is left; kInUse, the
/// device was in use and waits for a successor. Error: it could not be made, or has ended by itself. The lock is this process's.
[[nodiscard]] Result<int> serve(const World& world, const RunFolder& folder, NameLock lock, const Job& job,
                                Starter& starter);

}  // namespace rbt::tools::map
