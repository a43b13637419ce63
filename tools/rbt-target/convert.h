#pragma once
// rbt-target --convert-image.

#include "common/result.h"
#include "target/store/convert_image.h"

namespace rbt::tools {

/// Converts, with a bar on a terminal, and prints what came of it. SIGINT and SIGTERM leave off and remove what was begun.
[[nodiscard]] Result<void> convert(const target::ConvertOptions& options);

}  // namespace rbt::tools
