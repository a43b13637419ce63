#pragma once
// A store that says that something is durable when it is not: what the durability tests must find.

#include <memory>

#include "target/store/layer.h"

namespace rbt::test {

enum class Lie : std::uint8_t { none, flush, fua };

class LyingQueue final : public target::LayerQueue {
 public:
  LyingQueue(std::unique_ptr<target::StoreQueue> below, Lie lie) : LayerQueue(std::move(below)), lie_(lie) {}
  target::Progress commit(target::Lease& lease, target::Durability durability, target::StoreRequest& request) override {
    return below().commit(lease, lie_ == Lie::fua ? target::Durability::cached : durability, request);
  }
  target::Progress flush(target::StoreRequest& request) override {
    return lie_ == Lie::flush ? target::Progress::done() : below().flush(request);
  }

 private:
  Lie lie_;
};

class LyingStore final : public target::LayerStore {
 public:
  LyingStore(std::unique_ptr<target::Store> below, Lie lie) : LayerStore(std::move(below)), lie_(lie) {}
  Result<std::unique_ptr<target::StoreQueue>> open_queue(const target::StoreQueueContext& context) override {
    auto queue = below().open_queue(context);
    if (!queue) return queue;
    return std::make_unique<LyingQueue>(std::move(*queue), lie_);
  }

 private:
  Lie lie_;
};

}  // namespace rbt::test
