#pragma once
// Fabrics commands (Base 2.0, 6). What `plan_…` and the others promise: opcodes.h.

#include "target/command.h"

namespace rbt::target {

[[nodiscard]] nvme::Expected<Plan> plan_connect(Command& command);
[[nodiscard]] Step connect(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_authentication(Command& command);
[[nodiscard]] Step authentication_send(Command& command);
[[nodiscard]] Step authentication_receive(Command& command);
[[nodiscard]] nvme::Expected<Plan> plan_property(Command& command);
[[nodiscard]] Step property_get(Command& command);
[[nodiscard]] Step property_set(Command& command);

}  // namespace rbt::target
