#pragma once
// The fabrics of a program, each opened when an address first needs it.

#include <memory>

#include "common/log.h"
#include "common/random.h"
#include "common/result.h"
#include "common/uri.h"
#include "transport/fabric.h"

namespace rbt::tools {

/// One thread. Outlives everything that uses a fabric of it.
class Fabrics {
 public:
  Fabrics(Logger& logger, Random& random) : logger_(logger), random_(random) {}
  /// Error: no RDMA device and what to do about it; `unsupported` for nvme+sim, which lives in tests only.
  [[nodiscard]] Result<transport::Fabric*> open(Uri::Scheme scheme);

 private:
  Logger& logger_;
  Random& random_;
  std::unique_ptr<transport::Fabric> verbs_;
  std::unique_ptr<transport::Fabric> shm_;
};

}  // namespace rbt::tools
