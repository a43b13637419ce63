#pragma once
// What a volume's successor must know, as the state file has it.

#include "common/result.h"
#include "initiator/succession.h"
#include "tools/rbt-connect/map/control.h"

namespace rbt::tools::map {

[[nodiscard]] Json to_json(const initiator::Succession& succession);
/// Error: invalid_argument, with what is wrong.
[[nodiscard]] Result<initiator::Succession> parse_succession(const Json& json);

}  // namespace rbt::tools::map
