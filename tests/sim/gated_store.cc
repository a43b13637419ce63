#include "tests/sim/gated_store.h"

#include <catch2/catch.hpp>
#include <utility>

namespace rbt::test {

using namespace target;

Progress Gate::ask(std::function<Progress()> operation, StoreRequest& request) {
  if (open) return operation();
  waiting_.push_back({std::move(operation), &request});
  return Progress::later();
}

void Gate::let_one_through() {
  REQUIRE_FALSE(waiting_.empty());
  const Waiting next = std::move(waiting_.front());
  waiting_.pop_front();
  Progress progress = Progress::done();
  if (answers.empty()) {
    progress = next.operation();
    REQUIRE_FALSE(progress.pending);
  } else {
    progress = Progress::done(answers.front());
    answers.pop_front();
  }
  next.request->on_store_done(progress.status);
}

void Gate::let_all_through() {
  while (!waiting_.empty())
    let_one_through();
}

namespace {

class GatedQueue final : public StoreQueue {
 public:
  GatedQueue(std::unique_ptr<StoreQueue> inner, Gate& gate) : inner_(std::move(inner)), gate_(gate) {}
  Progress acquire(Lease& lease, StoreRequest& request) override {
    return gate_.ask([&] { return inner_->acquire(lease, request); }, request);
  }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    return gate_.ask([&, durability] { return inner_->commit(lease, durability, request); }, request);
  }
  void release(Lease& lease) noexcept override { inner_->release(lease); }
  Progress flush(StoreRequest& request) override {
    return gate_.ask([&] { return inner_->flush(request); }, request);
  }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    return gate_.ask([&, ranges] { return inner_->discard(ranges, request); }, request);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    return gate_.ask([=, this, &request] { return inner_->write_zeroes(range, deallocate, durability, request); },
                     request);
  }
  std::uint64_t bytes_copied() const noexcept override { return inner_->bytes_copied(); }

 private:
  std::unique_ptr<StoreQueue> inner_;
  Gate& gate_;
};

class GatedStore final : public Store {
 public:
  GatedStore(std::unique_ptr<Store> inner, Gate& gate) : inner_(std::move(inner)), gate_(gate) {}
  Geometry geometry() const override {
    Geometry geometry = inner_->geometry();
    geometry.write_cache = true;
    return geometry;
  }
  const Identity& identity() const noexcept override { return inner_->identity(); }
  const std::string& spec() const noexcept override { return inner_->spec(); }
  Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override {
    return inner_->prepare(domain, path_mtu);
  }
  Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override {
    auto inner = inner_->open_queue(context);
    if (!inner) return inner;
    return std::make_unique<GatedQueue>(std::move(*inner), gate_);
  }

 private:
  std::unique_ptr<Store> inner_;
  Gate& gate_;
};

}  // namespace

std::unique_ptr<Store> make_gated_store(std::unique_ptr<Store> inner, Gate& gate) {
  return std::make_unique<GatedStore>(std::move(inner), gate);
}

}  // namespace rbt::test
