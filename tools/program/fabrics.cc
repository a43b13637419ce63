#include "tools/program/fabrics.h"

#include "transport/shm/fabric.h"
#include "transport/verbs/fabric.h"

namespace rbt::tools {

Result<transport::Fabric*> Fabrics::open(Uri::Scheme scheme) {
  switch (scheme) {
    case Uri::Scheme::rdma: {
      if (!verbs_) {
        auto fabric = transport::verbs::Fabric::open(logger_);
        if (!fabric) return failure(std::move(fabric.error()));
        verbs_ = std::move(*fabric);
      }
      return verbs_.get();
    }
    case Uri::Scheme::shm: {
      if (!shm_) {
        auto fabric = transport::shm::Fabric::open({}, random_);
        if (!fabric) return failure(std::move(fabric.error()));
        shm_ = std::move(*fabric);
      }
      return shm_.get();
    }
    case Uri::Scheme::sim: break;
  }
  return failure(ErrorKind::unsupported, "nvme+sim:// exists in tests only: use nvme+rdma:// or nvme+shm://");
}

}  // namespace rbt::tools
