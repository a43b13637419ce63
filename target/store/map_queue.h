#pragma once
// One reactor's way to a map store.

#include <memory>
#include <span>

#include "common/result.h"
#include "target/store/in_place.h"
#include "target/store/map_access.h"
#include "target/store/map_store.h"
#include "target/store/region_use.h"
#include "target/store/zeroing.h"

namespace rbt::target {

/// A lease is the blocks themselves while their pages are sure to stay (RegionUse::enter) and where no block could be left
/// half new; else a buffer, filled from and emptied into the file. Lives on its reactor's thread.
class MapQueue final : public StoreQueue, private ZeroedMemory, private InPlaceMemory, private RegionObserver {
 public:
  [[nodiscard]] static Result<std::unique_ptr<StoreQueue>> open(MapStore& store, const StoreQueueContext& context);

  Progress acquire(Lease& lease, StoreRequest& request) override;
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;
  [[nodiscard]] std::uint64_t bytes_copied() const noexcept override { return in_place_.bytes_copied(); }

 private:
  MapQueue(MapStore& store, const StoreQueueContext& context);
  void enter(Lease& lease) noexcept;
  [[nodiscard]] StoreStatus take_landed(const Lease& lease) noexcept;
  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept;
  [[nodiscard]] BlockRange blocks(std::uint64_t offset, std::uint64_t length) const noexcept;

  // InPlaceMemory
  [[nodiscard]] std::byte* at(std::uint64_t offset) noexcept override;
  [[nodiscard]] std::uint32_t lkey(const Lease& lease) noexcept override { return lease.few[1].lkey; }
  [[nodiscard]] bool stages(const Lease& lease) noexcept override { return lease.pass == 0; }
  [[nodiscard]] StoreStatus fetch(std::uint64_t offset, std::span<std::byte> data) override;
  [[nodiscard]] StoreStatus land(std::uint64_t offset, std::span<const std::byte> data) override;
  Progress landed(Lease& lease, Durability durability, StoreRequest& request) override;
  void on_claimed() override { zeroing_.resume(); }

  // ZeroedMemory
  [[nodiscard]] bool claim(std::uint64_t offset, std::uint64_t length) override;
  void unclaim() noexcept override { in_place_.unclaim(); }
  [[nodiscard]] bool zero(std::uint64_t offset, std::uint64_t length) override;
  [[nodiscard]] std::uint64_t next_data(std::uint64_t offset, std::uint64_t end) noexcept override;
  Progress take_over(const ZeroingRest& rest, StoreRequest& request) override;

  void on_region_changed(transport::coherence::RegionState state) override { store_.on_region_changed(state); }

  MapStore& store_;
  std::shared_ptr<MapTally> tally_;
  std::unique_ptr<RegionUse> use_;
  std::unique_ptr<StoreQueue> file_;  // fs-dax: makes durable what was written through the descriptor
  std::unique_ptr<MapAccess> access_;
  InPlace in_place_;
  Zeroing zeroing_;
  StoreStatus zero_status_ = StoreStatus::ok;
};

}  // namespace rbt::target
