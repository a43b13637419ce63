#include "tests/sim/changing_store.h"

#include <catch2/catch.hpp>
#include <utility>

namespace rbt::test {

using namespace target;

namespace {

class ChangingQueue final : public StoreQueue {
 public:
  ChangingQueue(std::unique_ptr<StoreQueue> inner, StoreHand& hand) : inner_(std::move(inner)), hand_(hand) {
    ++hand_.queues;
  }
  ~ChangingQueue() override { --hand_.queues; }
  Progress acquire(Lease& lease, StoreRequest& request) override {
    if (hand_.blocks && lease.range.end().value() > *hand_.blocks) return Progress::done(StoreStatus::out_of_range);
    return inner_->acquire(lease, request);
  }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    hand_.last_durability = durability;
    return inner_->commit(lease, durability, request);
  }
  void release(Lease& lease) noexcept override { inner_->release(lease); }
  Progress flush(StoreRequest& request) override { return inner_->flush(request); }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    return inner_->discard(ranges, request);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    return inner_->write_zeroes(range, deallocate, durability, request);
  }

 private:
  std::unique_ptr<StoreQueue> inner_;
  StoreHand& hand_;
};

class ChangingStore final : public Store {
 public:
  ChangingStore(std::unique_ptr<Store> inner, StoreHand& hand) : inner_(std::move(inner)), hand_(hand) {}
  ~ChangingStore() override {
    CHECK(hand_.queues == 0);
    CHECK(hand_.observer == nullptr);
    hand_.exists = false;
  }
  Geometry geometry() const override {
    Geometry geometry = inner_->geometry();
    if (hand_.blocks) geometry.blocks = Blocks(*hand_.blocks);
    if (hand_.block_shift) geometry.block_shift = *hand_.block_shift;
    geometry.write_cache = hand_.write_cache;
    return geometry;
  }
  void observe(StoreObserver* observer) noexcept override { hand_.observer = observer; }
  const Identity& identity() const noexcept override { return hand_.identity ? *hand_.identity : inner_->identity(); }
  const std::string& spec() const noexcept override { return inner_->spec(); }
  Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override {
    if (hand_.prepared++ == hand_.fail_prepare_at)
      return failure(ErrorKind::resource, "no memory to register, as asked");
    return inner_->prepare(domain, path_mtu);
  }
  Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override {
    if (hand_.opened++ == hand_.fail_open_at) return failure(ErrorKind::resource, "no queue, as asked");
    auto inner = inner_->open_queue(context);
    if (!inner) return inner;
    return std::make_unique<ChangingQueue>(std::move(*inner), hand_);
  }

 private:
  std::unique_ptr<Store> inner_;
  StoreHand& hand_;
};

}  // namespace

std::unique_ptr<Store> make_changing_store(std::unique_ptr<Store> inner, StoreHand& hand) {
  return std::make_unique<ChangingStore>(std::move(inner), hand);
}

}  // namespace rbt::test
