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
  const std::string& mark;  ///< Presenter::intend()
};

/// One of them. All calls but `examine` may block for seconds.
struct Presenter {
  Via via = Via::automatic;
  /// A device survives its process, with its requests, and a successor takes it over.
  bool recoverable = false;
  std::vector<const char*> modules{};  ///< of the kernel that it needs
  /// Whether this machine can, and why not.
  doctor::Finding (*examine)(const doctor::Machine& machine) = nullptr;
  /// What the volume is opened with: QueuePairOptions::buffers, VolumeOptions::lanes (null: one) and ::requests.
  Bytes (*buffers)(const initiator::DeviceOptions& options) noexcept = nullptr;
  std::uint32_t (*lanes)(const initiator::DeviceOptions& options) noexcept = nullptr;
  std::uint32_t (*requests)(const initiator::DeviceOptions& options) noexcept = nullptr;
  Result<std::unique_ptr<initiator::Device>> (*present)(const Making& making) = nullptr;
  const char* node = nullptr;  ///< the device's path is this and its number
  /// State::mark of a device that is about to be made, written down before that. Empty: its name is not known before, and it
  /// does not outlive its process.
  std::string (*intend)(const initiator::Namespace& disk, Random& random) = nullptr;
  /// State::mark of one that has just been made; null: it is as intended.
  std::string (*mark)(std::uint32_t number) = nullptr;
  /// The number of a device that was made as `state` intends; nothing: none was. Nobody else's. Error: that is not known.
  Result<std::optional<std::uint32_t>> (*find)(const RunFolder& folder, const State& state) = nullptr;
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

/// Of a volume whose process has ended: if it was killed before it could name its device, and there is one, the state names it now.
/// Returns whether that is so.
[[nodiscard]] Result<bool> name_device(const RunFolder& folder, const Presenter& presenter, State& state);

/// What to try for `wanted`: one, or all that this machine can; `skipped` says of each of the others why not.
struct Choice {
  std::vector<const Presenter*> candidates{};
  std::vector<std::string> skipped{};
};
/// Error: unsupported or permission, if none is left: what is in the way of each, with the remedy.
[[nodiscard]] Result<Choice> choose(Via wanted, const std::vector<Presenter>& all, const doctor::Machine& machine);

}  // namespace rbt::tools::map
