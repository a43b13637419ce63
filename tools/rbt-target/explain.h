#pragma once
// rbt-target --explain.

#include <string>
#include <vector>

#include "common/result.h"

namespace rbt::tools {

/// Opens each store as serving would, prints how it would be served and what keeps it from being served better, and
/// closes it; then what this machine has to guard memory with. The first store that cannot be opened is the error.
[[nodiscard]] Result<void> explain(const std::vector<std::string>& specs);

}  // namespace rbt::tools
