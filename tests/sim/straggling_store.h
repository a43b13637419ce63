#pragma once
// A store that keeps some writes to itself for seconds, while others overtake them.

#include <chrono>
#include <list>
#include <memory>
#include <utility>

#include "common/check.h"
#include "common/random.h"
#include "target/store/layer.h"

namespace rbt::test {

/// One write in `kOnceIn` is made part of the store below only after half a second to four. The store below answers at once.
class StragglingStore final : public target::LayerStore {
 public:
  static constexpr std::uint64_t kOnceIn = 12;
  StragglingStore(std::unique_ptr<target::Store> below, std::uint64_t seed)
      : LayerStore(std::move(below)), seed_(seed) {}
  [[nodiscard]] Result<std::unique_ptr<target::StoreQueue>> open_queue(
      const target::StoreQueueContext& context) override {
    auto queue = below().open_queue(context);
    if (!queue) return failure(std::move(queue.error()));
    return std::make_unique<Queue>(std::move(*queue), context.reactor, seed_);
  }

 private:
  class Queue final : public target::LayerQueue {
   public:
    Queue(std::unique_ptr<target::StoreQueue> below, transport::Reactor& reactor, std::uint64_t seed)
        : LayerQueue(std::move(below)), reactor_(reactor), random_(seed) {}
    target::Progress commit(target::Lease& lease, target::Durability durability,
                            target::StoreRequest& request) override {
      if (!random_.once_in(kOnceIn)) return below().commit(lease, durability, request);
      const auto place = waiting_.emplace(waiting_.end());
      *place = std::make_unique<transport::Timer>(reactor_.timers(), [this, place, &lease, durability, &request] {
        const target::Progress progress = below().commit(lease, durability, request);
        check(!progress.pending, "the store below answers at once");
        done_.splice(done_.end(), waiting_, place);  // a timer is not destroyed from within
        request.on_store_done(progress.status);
      });
      done_.clear();
      (*place)->arm(reactor_.now() + std::chrono::milliseconds(500 + random_.below(3500)));
      return target::Progress::later();
    }

   private:
    transport::Reactor& reactor_;
    Random random_;
    std::list<std::unique_ptr<transport::Timer>> waiting_;
    std::list<std::unique_ptr<transport::Timer>> done_;
  };

  std::uint64_t seed_;
};

}  // namespace rbt::test
