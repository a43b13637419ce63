#pragma once
// The properties of one controller and what writing them means: Base 2.0, 3.1.3 and 3.5 (reset, shutdown). Pure: no I/O.

#include <cstdint>

#include "common/nvme/properties.h"
#include "common/nvme/status.h"

namespace rbt::target {

enum class ControllerKind : std::uint8_t { io, discovery };

/// CAP, VS, CC and CSTS. One thread: the admin queue's reactor.
class Registers {
 public:
  /// What a write made happen; the controller acts on it.
  enum class Effect : std::uint8_t { none, enabled, reset, shut_down };

  Registers(ControllerKind kind, std::uint32_t queue_entries_max) noexcept;

  /// Errors: invalid_field for what does not exist, and for a size that the property does not have.
  [[nodiscard]] nvme::Expected<std::uint64_t> get(const nvme::PropertyAccess& access) const noexcept;
  /// Errors: invalid_field, as above and for read-only properties. A configuration that cannot be served is not an
  /// error: CSTS.CFS says so.
  [[nodiscard]] nvme::Expected<Effect> set(const nvme::PropertyAccess& access) noexcept;

  /// CC.EN and CSTS.RDY are set, and CSTS.CFS is not: commands are carried out.
  [[nodiscard]] bool ready() const noexcept { return configuration_.enabled() && status_.ready() && !status_.fatal(); }
  /// After Effect::reset: everything of before has ended; CSTS.RDY goes to 0.
  void finish_reset() noexcept;
  [[nodiscard]] bool resetting() const noexcept { return resetting_; }
  [[nodiscard]] nvme::Capabilities capabilities() const noexcept { return capabilities_; }
  [[nodiscard]] static constexpr nvme::Version version() noexcept { return nvme::Version::of(1, 4); }

 private:
  [[nodiscard]] bool servable(nvme::Configuration configuration) const noexcept;
  [[nodiscard]] Effect configure(nvme::Configuration wanted) noexcept;

  ControllerKind kind_;
  nvme::Capabilities capabilities_;
  nvme::Configuration configuration_;
  nvme::ControllerStatus status_;
  bool resetting_ = false;
};

}  // namespace rbt::target
