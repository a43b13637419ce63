#pragma once
// A disk in memory that is gone with the process.

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "common/log.h"
#include "common/result.h"
#include "target/store/atomicity.h"
#include "target/store/block_table.h"
#include "target/store/range_lock.h"
#include "target/store/shared_arena.h"
#include "target/store/store.h"
#include "transport/memory/registered_memory.h"
#include "transport/memory/shared_memory.h"

namespace rbt::target {

struct RamOptions {
  Bytes size;  ///< whole blocks
  BlockShift block_shift;
  transport::HugePages huge_pages = transport::HugePages::if_any;
  Atomicity atomicity = Atomicity::automatic;
};

/// What atomic=shadow adds: places that are no blocks for the moment, and the table.
struct RamShadow {
  RamShadow(Blocks blocks, Blocks spare, StoreMemory given)
      : memory(std::move(given)), registered(memory.span(), transport::RemoteAccess::none), table(blocks, spare) {}
  StoreMemory memory;
  transport::RegisteredMemory registered;
  BlockTable table;
};

/// A memfd, or a part of one (shared_arena.h). A lease is the blocks themselves. Pages come with the first touch, all of them with the first registration
/// over verbs, which pins them (RLIMIT_MEMLOCK counts them then). They are never given back while the store lives: a
/// page punched out under a registration would leave the adapter with memory that is no longer the store's, so discard
/// and write_zeroes fill with zeroes in place. Nothing is cached, nothing survives the machine: FUA and flush are free.
/// Thread-safe.
class RamStore final : public Store {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Store>> create(std::string spec, const RamOptions& options,
                                                             const Identity& identity, Logger& logger,
                                                             SharedArena* arena);

  [[nodiscard]] Geometry geometry() const override;
  [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
  [[nodiscard]] const std::string& spec() const noexcept override { return spec_; }
  [[nodiscard]] std::string explain() const override;
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override;
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

  /// For queues.
  [[nodiscard]] const transport::RegisteredMemory& memory() const noexcept { return registered_; }
  [[nodiscard]] BlockShift block_shift() const noexcept { return options_.block_shift; }
  [[nodiscard]] Bytes size() const noexcept { return options_.size; }
  [[nodiscard]] RangeLock& range_lock() noexcept { return range_lock_; }
  /// in_place or shadow: settled by then at the latest, for good.
  [[nodiscard]] Atomicity settle() noexcept;
  /// After settle() has said so.
  [[nodiscard]] RamShadow& shadow() noexcept { return *shadow_; }
  /// Whether a write in place of that connection goes by way of a buffer.
  [[nodiscard]] bool stages(std::uint32_t path_mtu) const noexcept {
    return options_.atomicity != Atomicity::in_place && tears(path_mtu, options_.block_shift, false);
  }

 private:
  RamStore(std::string spec, const RamOptions& options, const Identity& identity, StoreMemory memory, Logger& logger,
           SharedArena* arena);

  std::string spec_;
  RamOptions options_;
  Identity identity_;
  StoreMemory memory_;
  transport::RegisteredMemory registered_;
  Logger& logger_;
  SharedArena* arena_;  // may be null
  RangeLock range_lock_;
  /// With blocks of 512, packets hold a block almost everywhere: then waiting and buffers are the lesser evil.
  [[nodiscard]] bool may_shadow() const noexcept {
    return options_.atomicity == Atomicity::shadow ||
           (options_.atomicity == Atomicity::automatic && options_.block_shift.block_size() > 512);
  }
  [[nodiscard]] Result<void> make_shadow();
  void choose(std::uint32_t path_mtu);
  [[nodiscard]] Result<void> ensure(transport::RegisteredMemory& memory, transport::ProtectionDomain& domain) const;
  std::mutex settling_;                // guards changes of settled_ and shadow_
  std::unique_ptr<RamShadow> shadow_;  // made before settled_ says shadow
  std::atomic<Atomicity> settled_;     // released by who settles, acquired by everybody
  std::atomic<bool> warned_{false};    // that blocks may be torn; set once
};

}  // namespace rbt::target
