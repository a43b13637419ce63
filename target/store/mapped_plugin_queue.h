#pragma once
// One reactor's way to a plugin whose memory is the store.

#include "target/store/in_place.h"
#include "target/store/plugin_queue.h"
#include "target/store/zeroing.h"

namespace rbt::target {

/// Data goes straight into and out of the plugin's memory; the plugin is asked to flush, and for nothing else.
class MappedPluginQueue final : public PluginQueue, private ZeroedMemory, private InPlaceMemory {
 public:
  MappedPluginQueue(PluginStore& store, void* queue, const StoreQueueContext& context);

  Progress acquire(Lease& lease, StoreRequest& request) override;
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;
  [[nodiscard]] std::uint64_t bytes_copied() const noexcept override { return in_place_.bytes_copied(); }

 private:
  [[nodiscard]] const transport::MemorySpan& span() const noexcept { return mapped_.memory(); }
  [[nodiscard]] BlockRange blocks(std::uint64_t offset, std::uint64_t length) const noexcept;

  // InPlaceMemory
  std::byte* at(std::uint64_t offset) noexcept override { return span().data + offset; }
  std::uint32_t lkey(const Lease& lease) noexcept override;
  bool stages(const Lease& lease) noexcept override;
  StoreStatus land(std::uint64_t offset, std::span<const std::byte> data) override;
  Progress landed(Lease& lease, Durability durability, StoreRequest& request) override;
  void on_claimed() override { zeroing_.resume(); }

  // ZeroedMemory
  bool claim(std::uint64_t offset, std::uint64_t length) override { return in_place_.claim(blocks(offset, length)); }
  void unclaim() noexcept override { in_place_.unclaim(); }
  bool zero(std::uint64_t offset, std::uint64_t length) override;
  std::uint64_t next_data(std::uint64_t offset, std::uint64_t) noexcept override { return offset; }
  Progress take_over(const ZeroingRest& rest, StoreRequest& request) override;

  transport::RegisteredMemory& mapped_;
  InPlace in_place_;
  Zeroing zeroing_;
};

}  // namespace rbt::target
