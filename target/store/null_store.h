#pragma once
// A disk of any size that holds nothing: reads give zeroes, writes go nowhere. For measuring everything else.

#include <memory>
#include <string>

#include "common/result.h"
#include "target/store/store.h"
#include "transport/memory/registered_memory.h"
#include "transport/memory/shared_memory.h"

namespace rbt::target {

struct NullOptions {
  Bytes size;  ///< whole blocks
  BlockShift block_shift;
};

/// Two registered regions of 2 MiB, shared by everybody: read leases point at zeroes that nobody writes, write leases
/// at a scratch region where the data of all hosts lands on top of each other and which nobody ever reads. Thread-safe.
class NullStore final : public Store {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Store>> create(std::string spec, const NullOptions& options,
                                                             const Identity& identity);

  [[nodiscard]] Geometry geometry() const override;
  [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
  [[nodiscard]] const std::string& spec() const noexcept override { return spec_; }
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override;
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

 private:
  NullStore(std::string spec, const NullOptions& options, const Identity& identity, transport::SharedMemory zeroes,
            transport::SharedMemory scratch);

  std::string spec_;
  NullOptions options_;
  Identity identity_;
  transport::SharedMemory zeroes_;
  transport::SharedMemory scratch_;
  transport::RegisteredMemory registered_zeroes_;
  transport::RegisteredMemory registered_scratch_;
};

}  // namespace rbt::target
