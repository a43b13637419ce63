#include "target/store/stats_layer.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <vector>

#include "common/sizes.h"
#include "target/store/relay.h"

namespace rbt::target {

std::size_t LatencyClasses::index_of(Duration took) noexcept {
  const auto ns = static_cast<std::uint64_t>(std::max<std::int64_t>(took.count(), 0));
  if (ns < 4) return ns;
  const auto power = static_cast<unsigned>(std::bit_width(ns)) - 1;
  const std::uint64_t quarter = ns >> (power - 2) & 3;
  return std::min<std::size_t>((power - 1) * 4 + quarter, kClasses - 1);
}

Duration LatencyClasses::most(std::size_t index) noexcept {
  if (index < 4) return Duration(index);
  const std::size_t power = index / 4 + 1;
  return Duration((((index % 4 + 5) << (power - 2))) - 1);
}

void LatencyClasses::add(Duration took) noexcept {
  auto& count = counts_.at(index_of(took));
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

namespace {

using Number = std::atomic<std::uint64_t>;  // relaxed: one writer, readers take a snapshot

void add(Number& number, std::uint64_t more) noexcept {
  number.store(number.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
}

struct OperationCounters {
  Number done{0};
  Number failed{0};
  Number bytes{0};
  Number ns{0};
  Number ns_max{0};
  LatencyClasses latency;
};
using Counters = std::array<OperationCounters, kStoreOperations>;

/// What waits for an operation below.
struct Relay final : StoreRequest {
  explicit Relay(class StatsQueue& q) : queue(q) {}
  void on_store_done(StoreStatus status) override;
  StatsQueue& queue;
  StoreRequest* outer = nullptr;
  Instant began{};
  std::uint64_t bytes = 0;
  StoreOperation operation = StoreOperation::read;
};

class StatsQueue final : public LayerQueue {
 public:
  StatsQueue(std::unique_ptr<StoreQueue> below, Counters& counters, BlockShift shift, const Clock& clock)
      : LayerQueue(std::move(below)), counters_(counters), shift_(shift), clock_(clock) {}

  Progress acquire(Lease& lease, StoreRequest& request) override {
    return pass_on(acquire_operation(lease), bytes(lease.range), request,
                   [&](StoreRequest& relay) { return below().acquire(lease, relay); });
  }
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override {
    return pass_on(StoreOperation::commit, bytes(lease.range), request,
                   [&](StoreRequest& relay) { return below().commit(lease, durability, relay); });
  }
  Progress flush(StoreRequest& request) override {
    return pass_on(StoreOperation::flush, 0, request, [&](StoreRequest& relay) { return below().flush(relay); });
  }
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override {
    std::uint64_t sum = 0;
    for (const BlockRange& range : ranges)
      sum += bytes(range);
    return pass_on(StoreOperation::discard, sum, request,
                   [&](StoreRequest& relay) { return below().discard(ranges, relay); });
  }
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                        StoreRequest& request) override {
    return pass_on(StoreOperation::write_zeroes, bytes(range), request,
                   [&](StoreRequest& relay) { return below().write_zeroes(range, deallocate, durability, relay); });
  }

  void done(Relay& relay, StoreStatus status) {
    count(relay, status);
    StoreRequest& outer = *relay.outer;
    relays_.give(relay);
    outer.on_store_done(status);
  }

 private:
  [[nodiscard]] std::uint64_t bytes(const BlockRange& range) const noexcept {
    return range.count.value() << shift_.value();
  }

  template <typename Call>
  Progress pass_on(StoreOperation operation, std::uint64_t bytes, StoreRequest& outer, const Call& call) {
    Relay& relay = relays_.take(*this);
    relay.outer = &outer;
    relay.operation = operation;
    relay.bytes = bytes;
    relay.began = clock_.now();
    const Progress progress = call(relay);
    if (progress.pending) return progress;
    count(relay, progress.status);
    relays_.give(relay);
    return progress;
  }

  void count(const Relay& relay, StoreStatus status) noexcept {
    OperationCounters& counters = counters_.at(static_cast<std::size_t>(relay.operation));
    const Duration took = clock_.now() - relay.began;
    const auto ns = static_cast<std::uint64_t>(took.count());
    add(status == StoreStatus::ok ? counters.done : counters.failed, 1);
    if (status == StoreStatus::ok) add(counters.bytes, relay.bytes);
    add(counters.ns, ns);
    if (ns > counters.ns_max.load(std::memory_order_relaxed)) counters.ns_max.store(ns, std::memory_order_relaxed);
    counters.latency.add(took);
  }

  Counters& counters_;
  BlockShift shift_;
  const Clock& clock_;
  RecordPool<Relay> relays_;
};

void Relay::on_store_done(StoreStatus status) {
  queue.done(*this, status);
}

/// All queues of one operation together.
struct Sum {
  std::uint64_t done = 0;
  std::uint64_t failed = 0;
  std::uint64_t bytes = 0;
  std::uint64_t ns = 0;
  std::uint64_t ns_max = 0;
  std::array<std::uint64_t, LatencyClasses::kClasses> latency{};

  void add(const OperationCounters& counters) noexcept {
    const auto value = [](const Number& number) { return number.load(std::memory_order_relaxed); };
    done += value(counters.done);
    failed += value(counters.failed);
    bytes += value(counters.bytes);
    ns += value(counters.ns);
    ns_max = std::max(ns_max, value(counters.ns_max));
    for (std::size_t i = 0; i < latency.size(); ++i)
      latency.at(i) += counters.latency.of(i);
  }
  /// At most this long took `permille` of them.
  [[nodiscard]] Duration quantile(std::uint64_t permille) const noexcept {
    const std::uint64_t wanted = ((done + failed) * permille + 999) / 1000;
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < latency.size(); ++i) {
      seen += latency.at(i);
      if (seen >= wanted) return std::min(LatencyClasses::most(i), Duration(ns_max));
    }
    return Duration(ns_max);
  }
  [[nodiscard]] std::string text(StoreOperation operation) const {
    return fmt::format("{}: {} done, {} failed, {}; mean {}, p50 {}, p99 {}, p99.9 {}, max {}", name(operation), done,
                       failed, format_bytes(Bytes(bytes)), format_duration(Duration(ns / (done + failed))),
                       format_duration(quantile(500)), format_duration(quantile(990)), format_duration(quantile(999)),
                       format_duration(Duration(ns_max)));
  }
};

class StatsStore final : public LayerStore {
 public:
  StatsStore(std::unique_ptr<Store> below, Logger& logger) : LayerStore(std::move(below)), logger_(logger) {}
  ~StatsStore() override {
    for (const std::string& line : own_counts())
      logger_.info("store '{}': {}", spec(), line);
  }

  [[nodiscard]] std::vector<std::string> counts() const override {
    auto lines = own_counts();
    for (std::string& line : below().counts())
      lines.push_back(std::move(line));
    return lines;
  }

  Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override {
    auto queue = below().open_queue(context);
    if (!queue) return queue;
    const std::lock_guard lock(mutex_);
    counters_.push_back(std::make_unique<Counters>());
    return std::make_unique<StatsQueue>(std::move(*queue), *counters_.back(), geometry().block_shift,
                                        context.reactor.clock());
  }

 private:
  [[nodiscard]] std::vector<std::string> own_counts() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> lines;
    for (std::size_t i = 0; i < kStoreOperations; ++i) {
      Sum sum;
      for (const auto& counters : counters_)
        sum.add(counters->at(i));
      if (sum.done + sum.failed != 0) lines.push_back(sum.text(static_cast<StoreOperation>(i)));
    }
    return lines;
  }

  Logger& logger_;
  mutable std::mutex mutex_;                         // guards the list; the numbers are atomic
  std::vector<std::unique_ptr<Counters>> counters_;  // one for each queue ever opened: they outlive it
};

}  // namespace

std::unique_ptr<Store> make_stats_layer(std::unique_ptr<Store> below, Logger& logger) {
  return std::make_unique<StatsStore>(std::move(below), logger);
}

}  // namespace rbt::target
