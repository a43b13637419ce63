#pragma once
// The ways of presenting, side by side: what `auto` chooses among, and what `unmap` and `gc` do without the volume's process.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "initiator/present/device.h"
#include "tools/rbt-connect/doctor/doctor.h"
#include "tools/rbt-connect/map/options.h"
#include "tools/rbt-connect/map/state.h"

namespace rbt::tools::map {

/// What a device is made with.
struct Making {
  initiator::Volume& volume;
  transport::Reactor& reactor;
  const initiator::DeviceOptions& options;
  const RunFolder& folder;
};

/// One of them. All calls but `examine` may block for seconds.
struct Presenter {
  Via via = Via::automatic;
  /// A device survives its process, with its requests, and a successor takes it over.
  bool recoverable = false;
  std::vector<const char*> modules{};  ///< of the kernel that it needs
  /// Whether this machine can, and why not.
  doctor::Finding (*examine)(const doctor::Machine& machine) = nullptr;
  /// What the volume is opened with: QueuePairOptions::buffers, VolumeOptions::requests.
  Bytes (*buffers)(const initiator::DeviceOptions& options) noexcept = nullptr;
  std::uint32_t (*requests)(const initiator::DeviceOptions& options) noexcept = nullptr;
  Result<std::unique_ptr<initiator::Device>> (*present)(const Making& making) = nullptr;
  /// State::mark of a device that has just been made.
  std::string (*mark)(std::uint32_t number) = nullptr;
  /// Whether the kernel still has the device that `state` tells of, and it is that one and no other of the same number.
  bool (*exists)(const State& state) = nullptr;
  /// Takes away what a process has left behind; its requests fail. Nothing to take away is success. Error in_use: it is over, and
  /// goes when the last one closes it.
  Result<void> (*remove)(const RunFolder& folder, const State& state, Instant deadline) = nullptr;
  /// What is left when the device has gone by itself: files of the presenter's own.
  void (*sweep)(const RunFolder& folder) = nullptr;
};

/// In the order in which `auto` tries them.
[[nodiscard]] const std::vector<Presenter>& presenters();
/// Null: `via` is not one of them.
[[nodiscard]] const Presenter* find_presenter(std::string_view via);

/// What to try for `wanted`: one, or all that this machine can; `skipped` says of each of the others why not.
struct Choice {
  std::vector<const Presenter*> candidates{};
  std::vector<std::string> skipped{};
};
/// Error: unsupported or permission, if none is left: what is in the way of each, with the remedy.
[[nodiscard]] Result<Choice> choose(Via wanted, const std::vector<Presenter>& all, const doctor::Machine& machine);

}  // namespace rbt::tools::map
