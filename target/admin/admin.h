#pragma once
// Admin commands (Base 2.0, 5). What `plan_…` and the others promise: opcodes.h.

#include "common/nvme/admin_command.h"
#include "target/command.h"

namespace rbt::target {

/// No data, nothing to judge.
[[nodiscard]] nvme::Expected<Plan> plan_nothing(Command& command);

[[nodiscard]] nvme::Expected<Plan> plan_identify(Command& command);
[[nodiscard]] Step identify(Command& command);

[[nodiscard]] nvme::Expected<Plan> plan_get_log_page(Command& command);
[[nodiscard]] Step get_log_page(Command& command);

[[nodiscard]] nvme::Expected<Plan> plan_set_features(Command& command);
[[nodiscard]] Step set_features(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_get_features(Command& command);
[[nodiscard]] Step get_features(Command& command);

[[nodiscard]] Step async_event_request(Command& command);
[[nodiscard]] Step abort_command(Command& command);
/// DW0 of its completion.
[[nodiscard]] constexpr std::uint64_t abort_result(bool aborted) noexcept {
  return aborted ? 0 : 1;
}
[[nodiscard]] Step keep_alive(Command& command);

[[nodiscard]] nvme::Expected<Plan> plan_format(Command& command);
[[nodiscard]] Step format_nvm(Command& command);

/// docs/recovery.md. The log page is one of get_log_page()'s.
[[nodiscard]] Step recovery_log(Command& command, const nvme::GetLogPage& wanted);
[[nodiscard]] Step fence(Command& command);
/// Those that are due and that the host wants, as far as requests are held.
void send_due_events(Controller& controller);
/// Ends every held Asynchronous Event Request with `status`.
void complete_held_events(Controller& controller, nvme::Status status);

}  // namespace rbt::target
