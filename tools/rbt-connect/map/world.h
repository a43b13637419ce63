#pragma once
// Everything the verbs need of the world, wired by main.

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "initiator/initiator.h"
#include "tools/program/fabrics.h"
#include "tools/program/interrupt.h"

namespace rbt::tools::map {

struct World {
  const Clock& clock;
  Logger& logger;
  Random& random;
  Fabrics& fabrics;
};

}  // namespace rbt::tools::map
