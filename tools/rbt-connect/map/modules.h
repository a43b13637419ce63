#pragma once
// Kernel modules that are there but not loaded yet.

#include "tools/rbt-connect/map/options.h"

namespace rbt::tools::map {

/// Has modprobe load what `via` needs; for `automatic` way by way, until one works. Whether it helped is for the one who looks
/// next: without the right to, or the program, nothing happens.
void load_modules(Via via);

}  // namespace rbt::tools::map
