#pragma once
// One reactor's way to the blocks of a shadow image.

#include <memory>
#include <span>

#include "common/result.h"
#include "target/store/in_place.h"
#include "target/store/map_access.h"
#include "target/store/map_store.h"
#include "target/store/region_use.h"
#include "target/store/shadow.h"
#include "target/store/zeroing.h"

namespace rbt::target {

/// A lease is places of the image while their pages are sure to stay (RegionUse::enter): blocks to read, landing blocks to
/// write. Else it is a buffer, filled from and emptied into such places by way of the file (InPlace, which only ever
/// stages here). Lives on its reactor's thread.
class MapShadowQueue final : public StoreQueue,
                             private ShadowMemory,
                             private InPlaceMemory,
                             private ZeroedMemory,
                             private TableMedium,
                             private RegionObserver {
 public:
  [[nodiscard]] static Result<std::unique_ptr<StoreQueue>> open(MapStore& store, const StoreQueueContext& context);

  Progress acquire(Lease& lease, StoreRequest& request) override;
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;
  /// Every commit lasts already.
  Progress flush(StoreRequest&) override { return Progress::done(); }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;
  [[nodiscard]] std::uint64_t bytes_copied() const noexcept override { return staging_.bytes_copied(); }

 private:
  MapShadowQueue(MapStore& store, const StoreQueueContext& context);
  [[nodiscard]] ImageTable& table() const noexcept { return store_.image()->table(); }
  [[nodiscard]] const ShadowLayout& layout() const noexcept { return store_.image()->layout(); }
  [[nodiscard]] StoreStatus refusal(Intent intent) const noexcept;
  void enter(Lease& lease) noexcept;
  [[nodiscard]] BlockRange blocks(std::uint64_t offset, std::uint64_t length) const noexcept;

  // ShadowMemory
  [[nodiscard]] Piece piece(BlockTable::Place place, const Lease& lease) noexcept override;
  [[nodiscard]] Piece zeroes(const Lease& lease) noexcept override;
  [[nodiscard]] BlockTable::Place place_of(const std::byte* data) noexcept override;
  [[nodiscard]] StoreStatus move(Lba first, std::span<const BlockTable::Place> places) override {
    return table().move(first, places, *this);
  }

  // TableMedium
  [[nodiscard]] StoreStatus write_entries(Lba first, std::span<const std::uint64_t> entries) override;

  // InPlaceMemory
  [[nodiscard]] std::byte* at(std::uint64_t offset) noexcept override;
  [[nodiscard]] std::uint32_t lkey(const Lease&) noexcept override { return 0; }
  [[nodiscard]] bool stages(const Lease&) noexcept override { return true; }
  [[nodiscard]] StoreStatus fetch(std::uint64_t offset, std::span<std::byte> data) override;
  [[nodiscard]] StoreStatus land(std::uint64_t offset, std::span<const std::byte> data) override;
  Progress landed(Lease&, Durability, StoreRequest&) override { return Progress::done(); }
  // Entries are never claimed, for landing or for zeroes.
  void on_claimed() override {}

  // ZeroedMemory
  [[nodiscard]] bool zero(std::uint64_t offset, std::uint64_t length) override;
  [[nodiscard]] std::uint64_t next_data(std::uint64_t offset, std::uint64_t end) noexcept override;
  Progress take_over(const ZeroingRest& rest, StoreRequest& request) override;

  void on_region_changed(transport::coherence::RegionState state) override { store_.on_region_changed(state); }

  MapStore& store_;
  std::shared_ptr<MapTally> tally_;
  std::unique_ptr<RegionUse> use_;
  std::unique_ptr<MapAccess> access_;
  Shadow shadow_;
  InPlace staging_;
  Zeroing zeroing_;
  StoreStatus zero_status_ = StoreStatus::ok;
};

}  // namespace rbt::target
