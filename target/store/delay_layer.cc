#include "target/store/delay_layer.h"

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/random.h"

namespace rbt::target {

namespace {

/// A call that has not been passed on yet. What it points at is the caller's until the request is done.
struct Waiting {
  Instant due;
  std::uint64_t order;  // of two that are due at one moment, the older goes first
  StoreOperation operation;
  Durability durability;
  StoreQueue::Deallocate deallocate;
  StoreRequest* request;
  Lease* lease;
  std::span<const BlockRange> ranges;
  BlockRange range;
};

bool later(const Waiting& a, const Waiting& b) noexcept {
  return std::tie(a.due, a.order) > std::tie(b.due, b.order);
}

class DelayQueue final : public LayerQueue {
 public:
  DelayQueue(std::unique_ptr<StoreQueue> below, const DelayOptions& options, std::uint64_t seed,
             transport::Reactor& reactor)
      : LayerQueue(std::move(below)),
        options_(options),
        random_(seed),
        reactor_(reactor),
        timer_(reactor.timers(), [this] { pass_on_what_is_due(); }) {}
  ~DelayQueue() override { check(waiting_.empty(), "a store queue is destroyed when nothing is pending"); }

  Progress acquire(Lease& lease, StoreRequest& request) override {
    Waiting call = make(acquire_operation(lease), request);
    call.lease = &lease;
    return begin(call);
  }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    Waiting call = make(StoreOperation::commit, request);
    call.lease = &lease;
    call.durability = durability;
    return begin(call);
  }
  Progress flush(StoreRequest& request) override { return begin(make(StoreOperation::flush, request)); }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    Waiting call = make(StoreOperation::discard, request);
    call.ranges = ranges;
    return begin(call);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    Waiting call = make(StoreOperation::write_zeroes, request);
    call.range = range;
    call.deallocate = deallocate;
    call.durability = durability;
    return begin(call);
  }

 private:
  static Waiting make(StoreOperation operation, StoreRequest& request) noexcept {
    return {{}, 0, operation, Durability::cached, Deallocate::no, &request, nullptr, {}, {}};
  }

  Progress begin(Waiting& call) {
    const DelayOptions::Range& range = options_.of.at(static_cast<std::size_t>(call.operation));
    if (range.most == Duration::zero()) return pass_on(call);
    const auto spread = static_cast<std::uint64_t>((range.most - range.least).count());
    call.due = reactor_.clock().now() + range.least + Duration(random_.below(spread + 1));
    call.order = order_++;
    waiting_.push_back(call);
    std::push_heap(waiting_.begin(), waiting_.end(), later);
    timer_.arm(waiting_.front().due);
    return Progress::later();
  }
  Progress begin(Waiting&& call) { return begin(call); }

  Progress pass_on(const Waiting& call) {
    switch (call.operation) {
      case StoreOperation::read:
      case StoreOperation::write: return below().acquire(*call.lease, *call.request);
      case StoreOperation::commit: return below().commit(*call.lease, call.durability, *call.request);
      case StoreOperation::flush: return below().flush(*call.request);
      case StoreOperation::discard: return below().discard(call.ranges, *call.request);
      case StoreOperation::write_zeroes:
        return below().write_zeroes(call.range, call.deallocate, call.durability, *call.request);
    }
    check(false, "every operation is passed on");
    return Progress::done(StoreStatus::unsupported);
  }

  void pass_on_what_is_due() {
    const Instant now = reactor_.clock().now();
    while (!waiting_.empty() && waiting_.front().due <= now) {
      std::pop_heap(waiting_.begin(), waiting_.end(), later);
      const Waiting call = waiting_.back();
      waiting_.pop_back();
      const Progress progress = pass_on(call);
      if (!progress.pending) call.request->on_store_done(progress.status);  // which may ask for more
    }
    if (!waiting_.empty()) timer_.arm(waiting_.front().due);
  }

  const DelayOptions& options_;
  Random random_;
  transport::Reactor& reactor_;
  transport::Timer timer_;
  std::vector<Waiting> waiting_;  // a heap: the next one due in front
  std::uint64_t order_ = 0;
};

class DelayStore final : public LayerStore {
 public:
  DelayStore(std::unique_ptr<Store> below, const DelayOptions& options)
      : LayerStore(std::move(below)), options_(options) {}
  Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override {
    auto queue = below().open_queue(context);
    if (!queue) return queue;
    const std::uint64_t seed = options_.seed + queues_.fetch_add(1, std::memory_order_relaxed);  // a number, no more
    return std::make_unique<DelayQueue>(std::move(*queue), options_, seed, context.reactor);
  }

 private:
  DelayOptions options_;
  std::atomic<std::uint64_t> queues_{0};
};

}  // namespace

std::unique_ptr<Store> make_delay_layer(std::unique_ptr<Store> below, const DelayOptions& options) {
  return std::make_unique<DelayStore>(std::move(below), options);
}

}  // namespace rbt::target
