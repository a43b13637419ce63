#pragma once
// A store that keeps one write to itself until it is told to let it go, while others overtake it.

#include <atomic>
#include <chrono>
#include <memory>
#include <utility>

#include "common/check.h"
#include "target/store/layer.h"

namespace rbt::test {

/// The store below answers at once, and one queue's writes are held at a time.
class HeldStore final : public target::LayerStore {
 public:
  /// Any thread's.
  struct Hold {
    std::atomic<bool> next{false};  ///< the next write is the one
    std::atomic<bool> held{false};  ///< it is here
    std::atomic<bool> let_go{false};
    std::atomic<bool> landed{false};  ///< it has become part of the store below
  };
  HeldStore(std::unique_ptr<target::Store> below, Hold& hold) : LayerStore(std::move(below)), hold_(hold) {}
  [[nodiscard]] Result<std::unique_ptr<target::StoreQueue>> open_queue(
      const target::StoreQueueContext& context) override {
    auto queue = below().open_queue(context);
    if (!queue) return failure(std::move(queue.error()));
    return std::make_unique<Queue>(std::move(*queue), context.reactor, hold_);
  }

 private:
  class Queue final : public target::LayerQueue {
   public:
    Queue(std::unique_ptr<target::StoreQueue> below, transport::Reactor& reactor, Hold& hold)
        : LayerQueue(std::move(below)), reactor_(reactor), hold_(hold), look_(reactor.timers(), [this] { look(); }) {}
    target::Progress commit(target::Lease& lease, target::Durability durability,
                            target::StoreRequest& request) override {
      if (!hold_.next.exchange(false)) return below().commit(lease, durability, request);
      check(lease_ == nullptr, "one write is held at a time");
      lease_ = &lease;
      durability_ = durability;
      request_ = &request;
      hold_.held = true;
      look();
      return target::Progress::later();
    }

   private:
    void look() {
      if (!hold_.let_go.exchange(false)) return look_.arm(reactor_.now() + std::chrono::milliseconds(1));
      target::StoreRequest& request = *std::exchange(request_, nullptr);
      const target::Progress progress = below().commit(*std::exchange(lease_, nullptr), durability_, request);
      check(!progress.pending, "the store below answers at once");
      hold_.landed = true;
      request.on_store_done(progress.status);
    }

    transport::Reactor& reactor_;
    Hold& hold_;
    transport::Timer look_;
    target::Lease* lease_ = nullptr;
    target::Durability durability_{};
    target::StoreRequest* request_ = nullptr;
  };

  Hold& hold_;
};

}  // namespace rbt::test
