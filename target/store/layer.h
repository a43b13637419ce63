#pragma once
// What layers share: they pass on what they do not change. A new function of Store or StoreQueue is passed on here, once.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "target/store/store.h"

namespace rbt::target {

/// Owns the store below and is, to everybody, that store: same geometry, identity, spec, memory, changes. Thread-safe.
class LayerStore : public Store {
 public:
  explicit LayerStore(std::unique_ptr<Store> below) noexcept : below_(std::move(below)) {}

  [[nodiscard]] Geometry geometry() const override { return below_->geometry(); }
  void observe(StoreObserver* observer) noexcept override { below_->observe(observer); }
  [[nodiscard]] const Identity& identity() const noexcept override { return below_->identity(); }
  [[nodiscard]] const std::string& spec() const noexcept override { return below_->spec(); }
  [[nodiscard]] Endurance endurance() const override { return below_->endurance(); }
  [[nodiscard]] std::string explain() const override { return below_->explain(); }
  [[nodiscard]] std::vector<std::string> counts() const override { return below_->counts(); }
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override {
    return below_->prepare(domain, path_mtu);
  }

 protected:
  [[nodiscard]] Store& below() const noexcept { return *below_; }

 private:
  std::unique_ptr<Store> below_;
};

/// One reactor's way through a layer. Leases are those of the store below: what it answers with no copy stays so.
class LayerQueue : public StoreQueue {
 public:
  explicit LayerQueue(std::unique_ptr<StoreQueue> below) noexcept : below_(std::move(below)) {}

  Progress acquire(Lease& lease, StoreRequest& request) override { return below_->acquire(lease, request); }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    return below_->commit(lease, durability, request);
  }
  void release(Lease& lease) noexcept override { below_->release(lease); }
  Progress flush(StoreRequest& request) override { return below_->flush(request); }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    return below_->discard(ranges, request);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    return below_->write_zeroes(range, deallocate, durability, request);
  }
  [[nodiscard]] std::uint64_t bytes_copied() const noexcept override { return below_->bytes_copied(); }

 protected:
  [[nodiscard]] StoreQueue& below() const noexcept { return *below_; }

 private:
  std::unique_ptr<StoreQueue> below_;
};

/// What is asked of a store. A write has two ends: `write` begins when memory is wanted for it, `commit` when its data
/// has arrived there.
enum class StoreOperation : std::uint8_t { read, write, commit, flush, discard, write_zeroes };
inline constexpr std::size_t kStoreOperations = 6;
[[nodiscard]] constexpr std::string_view name(StoreOperation operation) noexcept {
  switch (operation) {
    case StoreOperation::read: return "read";
    case StoreOperation::write: return "write";
    case StoreOperation::commit: return "commit";
    case StoreOperation::flush: return "flush";
    case StoreOperation::discard: return "discard";
    case StoreOperation::write_zeroes: return "write_zeroes";
  }
  return {};
}
[[nodiscard]] constexpr StoreOperation acquire_operation(const Lease& lease) noexcept {
  return lease.intent == Intent::read ? StoreOperation::read : StoreOperation::write;
}

}  // namespace rbt::target
