#include "target/store/error_layer.h"

#include <algorithm>
#include <atomic>

#include "common/random.h"

namespace rbt::target {

namespace {

class ErrorStore final : public LayerStore {
 public:
  ErrorStore(std::unique_ptr<Store> below, const ErrorOptions& options)
      : LayerStore(std::move(below)), options_(options) {}
  Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

  /// The status with which the operation fails; nothing: it does not.
  [[nodiscard]] std::optional<StoreStatus> failure_of(StoreOperation operation,
                                                      std::span<const BlockRange> ranges) noexcept {
    if ((options_.operations >> static_cast<unsigned>(operation) & 1) == 0) return std::nullopt;
    const auto touches = [this](const BlockRange& range) { return range.overlaps(*options_.range); };
    if (options_.range && std::none_of(ranges.begin(), ranges.end(), touches)) return std::nullopt;
    if (!hits(count_.fetch_add(1, std::memory_order_relaxed) + 1)) return std::nullopt;
    return options_.status.value_or(operation == StoreOperation::read ? StoreStatus::read_error
                                                                      : StoreStatus::write_error);
  }

 private:
  [[nodiscard]] bool hits(std::uint64_t number) const noexcept {
    if (options_.nth != 0) return number == options_.nth;
    if (options_.every != 0) return number % options_.every == 0;
    if (options_.chance == 0) return true;
    // A generator of its own for each operation: which one fails depends on its number alone, not on threads.
    return Random(options_.seed + number).below(std::uint64_t{1} << 32) < options_.chance;
  }

  ErrorOptions options_;
  std::atomic<std::uint64_t> count_{0};  // relaxed: only the number counts
};

class ErrorQueue final : public LayerQueue {
 public:
  ErrorQueue(std::unique_ptr<StoreQueue> below, ErrorStore& store) : LayerQueue(std::move(below)), store_(store) {}

  Progress acquire(Lease& lease, StoreRequest& request) override {
    const auto failed = store_.failure_of(acquire_operation(lease), {&lease.range, 1});
    return failed ? Progress::done(*failed) : below().acquire(lease, request);
  }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    const auto failed = store_.failure_of(StoreOperation::commit, {&lease.range, 1});
    return failed ? Progress::done(*failed) : below().commit(lease, durability, request);
  }
  Progress flush(StoreRequest& request) override {
    const auto failed = store_.failure_of(StoreOperation::flush, {});
    return failed ? Progress::done(*failed) : below().flush(request);
  }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    const auto failed = store_.failure_of(StoreOperation::discard, ranges);
    return failed ? Progress::done(*failed) : below().discard(ranges, request);
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    const auto failed = store_.failure_of(StoreOperation::write_zeroes, {&range, 1});
    return failed ? Progress::done(*failed) : below().write_zeroes(range, deallocate, durability, request);
  }

 private:
  ErrorStore& store_;
};

Result<std::unique_ptr<StoreQueue>> ErrorStore::open_queue(const StoreQueueContext& context) {
  auto queue = below().open_queue(context);
  if (!queue) return queue;
  return std::make_unique<ErrorQueue>(std::move(*queue), *this);
}

}  // namespace

std::unique_ptr<Store> make_error_layer(std::unique_ptr<Store> below, const ErrorOptions& options) {
  return std::make_unique<ErrorStore>(std::move(below), options);
}

}  // namespace rbt::target
