// A machine that crashes under map:…,atomic=shadow: of what was stored to persistent memory and not yet written back, any
// words may be there afterwards and any may not. What was acknowledged is there, and every block is whole.

#include <fmt/format.h>

#include <list>

#include "shadow_images.h"
#include "target/store/thread_engine.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

constexpr std::uint64_t kBlocks = 24;
constexpr std::uint64_t kLanding = 8;
constexpr std::size_t kBlock = 512;
constexpr std::size_t kWord = 8;  // what persistent memory does not tear

/// What is done wrong on purpose: does the test see it?
enum class Order { right, data_not_persisted, entries_not_persisted, places_free_too_early };

/// A block of one number.
std::vector<std::byte> block_of(std::uint64_t number) {
  std::vector<std::byte> bytes(kBlock);
  for (std::size_t at = 0; at < kBlock; at += kWord)
    std::memcpy(bytes.data() + at, &number, kWord);
  return bytes;
}

class Machine final : private Persister {
 public:
  Machine(std::uint64_t seed, Order order) : random_(seed), order_(order) {
    layout_ = layout_of(kBlocks, kLanding, kBlock);
    start(empty_image(layout_));
  }
  ~Machine() override { stop(); }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  void run(int steps) {
    for (int i = 0; i < steps && failure.empty(); ++i) {
      step();
      if (random_.below(8) == 0) evict();
      if (random_.below(20) == 0) crash_now();
      if (random_.below(40) == 0) restart();
    }
  }
  std::string failure;
  int crashes = 0;

 private:
  struct Write {
    Lease lease;
    Waited request;
    std::uint64_t number = 0;
  };

  // ---- the memory ----

  /// Real writes-back end here; what is asked for is all there before it begins to last.
  void persist(std::uint64_t offset, std::uint64_t length) noexcept override {
    const bool entries = offset < layout_.data_offset();
    if (random_.below(8) == 0) crash_now();
    if (entries ? order_ == Order::entries_not_persisted || order_ == Order::places_free_too_early
                : order_ == Order::data_not_persisted)
      return;
    std::memcpy(lasting_.data() + offset, image_->memory.data() + offset, length);
    if (random_.below(8) == 0) crash_now();
  }
  /// A cache writes back what it likes when it likes.
  void evict() {
    for (std::size_t at = 0; at < lasting_.size(); at += kWord)
      if (random_.below(64) == 0) std::memcpy(lasting_.data() + at, image_->memory.data() + at, kWord);
  }
  [[nodiscard]] std::vector<std::byte> after_crash() {
    std::vector<std::byte> bytes = lasting_;
    const std::uint64_t one_in = 1 + random_.below(4);  // 1: all of it
    for (std::size_t at = 0; at < bytes.size(); at += kWord)
      if (random_.below(one_in) == 0) std::memcpy(bytes.data() + at, image_->memory.data() + at, kWord);
    return bytes;
  }

  // ---- lives and deaths ----

  [[nodiscard]] std::unique_ptr<Store> open(StoreRig& rig, const ImageInMemory& image, bool read_only) {
    StoreEnvironment environment = rig.environment();
    environment.io = &threads_;
    auto store = MapStore::create("map:image",
                                  {.path = image.path,
                                   .read_only = read_only,
                                   .atomicity = Atomicity::shadow,
                                   .persister = read_only ? nullptr : static_cast<Persister*>(this)},
                                  environment);
    if (!store) return fail(store.error().message()), nullptr;
    REQUIRE((*store)->prepare(rig.domain, 4096));
    return std::move(*store);
  }
  void start(std::vector<std::byte> bytes) {
    lasting_ = std::move(bytes);
    image_.emplace(lasting_);
    rig_.store = open(rig_, *image_, false);
    if (rig_.store) rig_.queue = rig_.open_queue();
  }
  void stop() {
    while (!writes_.empty() && !writes_.back().request.done())  // those would never be answered
      give_up(0);
    for (Write& write : writes_)
      if (write.request.done()) rig_.queue->release(write.lease);
    writes_.clear();
    rig_.close();
  }
  void crash_now() {
    if (failure.empty()) judge(after_crash(), nullptr);
  }
  /// As after a power failure; what is there then is what counts from then on.
  void restart() {
    auto bytes = after_crash();
    std::array<std::uint64_t, kBlocks> found{};
    judge(bytes, &found);
    stop();
    if (failure.empty()) start(std::move(bytes));
    acknowledged_ = found;
  }
  void judge(const std::vector<std::byte>& bytes, std::array<std::uint64_t, kBlocks>* found) {
    ++crashes;
    const ImageInMemory image(bytes);
    after_.store = open(after_, image, true);
    if (!after_.store) return;
    after_.queue = after_.open_queue();
    const auto contents = after_.must_read(0, kBlocks);
    after_.close();
    for (std::uint64_t lba = 0; lba < kBlocks; ++lba) {
      std::uint64_t number = 0;
      std::memcpy(&number, contents.data() + lba * kBlock, kWord);
      if (std::memcmp(contents.data() + lba * kBlock, block_of(number).data(), kBlock) != 0)
        return fail(fmt::format("block {} is mixed", lba));
      const bool being_committed =
          committing_ && lba >= committing_->lba && lba < committing_->lba + committing_->count;
      if (number != acknowledged_.at(lba) && !(being_committed && number == committing_->number) &&
          order_ != Order::places_free_too_early)
        return fail(fmt::format("block {} is {}, {} was acknowledged", lba, number, acknowledged_.at(lba)));
      if (order_ == Order::places_free_too_early && number != 0 && number % 64 != lba)
        return fail(fmt::format("block {} is that of another, {}", lba, number % 64));
      if (found != nullptr) found->at(lba) = number;
    }
  }
  void fail(std::string what) {
    if (failure.empty()) failure = std::move(what);
  }

  // ---- hosts ----

  void step() {
    switch (random_.below(6)) {
      case 0:
      case 1: return begin();
      case 2: return fill_some();
      case 3:
      case 4: return commit_one();
      default: return random_.below(2) == 0 ? zero_some() : give_up(random_.below(4));
    }
  }
  void begin() {
    if (writes_.size() > 6) return;
    Write& write = writes_.emplace_back();
    const std::uint64_t lba = random_.below(kBlocks);
    // One block where each has to say whose it is.
    const std::uint64_t most = order_ == Order::places_free_too_early ? 1 : std::min<std::uint64_t>(3, kBlocks - lba);
    write.lease = rig_.lease(StoreRig::range(lba, 1 + random_.below(most)), Intent::write);
    write.lease.path_mtu = 256;
    write.number = ++last_ * 64 + lba;
    write.request.began(rig_.queue->acquire(write.lease, write.request));
    settle();
  }
  void settle() {
    rig_.reactor().turn();
    for (const Write& write : writes_)
      if (write.request.done()) REQUIRE(write.request.status == StoreStatus::ok);
  }
  /// The oldest that has its memory: those who wait are behind it.
  void fill(Write& write, std::uint64_t one_in) {
    for (const auto& segment : write.lease.segments)
      for (std::size_t at = 0; at < segment.length; at += kWord)
        if (random_.below(one_in) == 0) std::memcpy(segment.data + at, &write.number, kWord);
  }
  void fill_some() {
    if (!writes_.empty() && writes_.front().request.done()) fill(writes_.front(), 3);
  }
  void commit_one() {
    if (writes_.empty() || !writes_.front().request.done()) return;
    Write& write = writes_.front();
    fill(write, 1);
    const BlockRange range = write.lease.range;
    committing_ = {range.first.value(), range.count.value(), write.number};
    Waited done;
    done.began(rig_.queue->commit(write.lease, Durability::durable, done));
    REQUIRE(done.status == StoreStatus::ok);
    acknowledge();
    rig_.queue->release(write.lease);
    writes_.pop_front();
    settle();
  }
  void acknowledge() {
    for (std::uint64_t i = 0; i < committing_->count; ++i)
      acknowledged_.at(committing_->lba + i) = committing_->number;
    committing_.reset();
    if (random_.below(8) == 0) crash_now();
  }
  void zero_some() {
    const std::uint64_t lba = random_.below(kBlocks);
    committing_ = {lba, 1 + random_.below(std::min<std::uint64_t>(6, kBlocks - lba)), 0};
    REQUIRE(rig_.write_zeroes(StoreRig::range(lba, committing_->count)) == StoreStatus::ok);
    acknowledge();
  }
  /// A connection that was lost.
  void give_up(std::size_t index) {
    if (writes_.empty()) return;
    const auto at = std::next(writes_.begin(), static_cast<std::ptrdiff_t>(index % writes_.size()));
    if (!at->request.done()) return;
    rig_.queue->release(at->lease);
    writes_.erase(at);
    settle();
  }

  struct Committing {
    std::uint64_t lba, count, number;
  };
  Random random_;
  const Order order_;
  ThreadFactory threads_;
  StoreRig rig_{Bytes(2 * kMiB)};
  StoreRig after_{Bytes(2 * kMiB)};
  ShadowLayout layout_;
  std::optional<ImageInMemory> image_;  // what the CPU sees
  std::vector<std::byte> lasting_;      // what has been written back
  std::list<Write> writes_;             // they stay where they are
  std::uint64_t last_ = 0;
  std::array<std::uint64_t, kBlocks> acknowledged_{};
  std::optional<Committing> committing_;
};

}  // namespace

TEST_CASE("Whenever the machine crashes, a shadow image has what was acknowledged, and every block whole") {
  int crashes = 0;
  for (std::uint64_t seed = 1; seed <= RBT_CRASH_SEEDS; ++seed) {
    Machine machine(seed, Order::right);
    machine.run(60);
    crashes += machine.crashes;
    INFO("seed " << seed);
    REQUIRE(machine.failure == "");
  }
  fmt::print("{} seeds, {} crashes\n", RBT_CRASH_SEEDS, crashes);
  CHECK(crashes > 5 * RBT_CRASH_SEEDS);
}

TEST_CASE("A shadow image in which the order is wrong is caught") {
  const auto caught = [](Order order, const std::string& as) {
    for (std::uint64_t seed = 1; seed <= 100; ++seed) {
      Machine machine(seed, order);
      machine.run(200);
      if (machine.failure.find(as) != std::string::npos) return true;
    }
    return false;
  };
  CHECK(caught(Order::data_not_persisted, "is mixed"));
  CHECK(caught(Order::entries_not_persisted, "was acknowledged"));
  CHECK(caught(Order::places_free_too_early, "is that of another"));
}
