#pragma once
// Memory registered with a device: ibv_reg_mr(3).

#include <memory>

#include "common/log.h"
#include "transport/memory_region.h"

struct ibv_mr;
struct ibv_pd;

namespace rbt::transport::verbs {

/// Deregistering is the fence: on rxe it returns within 1 ms also while a peer is writing, and nothing lands after it.
class Region final : public MemoryRegion {
 public:
  /// Any thread.
  [[nodiscard]] static Result<std::unique_ptr<MemoryRegion>> create(ibv_pd* domain, std::string_view device,
                                                                    Logger& logger, const MemorySpan& memory,
                                                                    RemoteAccess access);
  ~Region() override;

 private:
  Region(const MemorySpan& memory, ibv_mr* region, Logger& logger);
  ibv_mr* region_;
  Logger& logger_;
};

}  // namespace rbt::transport::verbs
