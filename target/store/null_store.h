#pragma once
// A disk of any size that holds nothing: reads give zeroes, writes go nowhere. For measuring everything else.

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"
#include "target/store/shared_arena.h"
#include "target/store/store.h"
#include "transport/memory/registered_memory.h"
#include "transport/memory/shared_memory.h"

namespace rbt::target {

struct NullOptions {
  Bytes size;  ///< whole blocks
  BlockShift block_shift;
};

/// What `null` lends: read leases point at zeroes that nobody writes, write leases at a scratch region where the data of all
/// hosts lands on top of each other and which nobody ever reads. Thread-safe.
struct NullMemory {
  static constexpr std::uint64_t kRegion = 2 * kMiB;  ///< of each
  /// Errors: SharedMemory::create()'s.
  [[nodiscard]] static Result<std::shared_ptr<NullMemory>> create();
  NullMemory(transport::SharedMemory zeroes_, transport::SharedMemory scratch_);
  transport::SharedMemory zeroes;
  transport::SharedMemory scratch;
  transport::RegisteredMemory registered_zeroes;
  transport::RegisteredMemory registered_scratch;
};

/// Has no memory but that, which all of a process may share. Thread-safe.
class NullStore final : public Store {
 public:
  /// `arena`: where others share the memory; null: it has its own.
  [[nodiscard]] static Result<std::unique_ptr<Store>> create(std::string spec, const NullOptions& options,
                                                             const Identity& identity, SharedArena* arena);

  [[nodiscard]] Geometry geometry() const override;
  [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
  [[nodiscard]] const std::string& spec() const noexcept override { return spec_; }
  [[nodiscard]] std::string explain() const override { return "nothing is kept: reads are zeroes"; }
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override;
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

 private:
  NullStore(std::string spec, const NullOptions& options, const Identity& identity, std::shared_ptr<NullMemory> memory);

  std::string spec_;
  NullOptions options_;
  Identity identity_;
  std::shared_ptr<NullMemory> memory_;
};

}  // namespace rbt::target
