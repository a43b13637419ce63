// No heap allocation per I/O, once everything has grown to its working size.

#include "store_files.h"
#include "store_rig.h"
#include "target/store/thread_engine.h"
#include "tests/sim/counting_allocator.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;
using rbt::test::allocations_of_this_thread;

namespace {

struct Quiet final : StoreRequest {
  void on_store_done(StoreStatus ended) override {
    done = true;
    status = ended;
  }
  bool done = false;
  StoreStatus status = StoreStatus::ok;
};

/// Eight requests at a time through every operation.
class Load {
 public:
  explicit Load(StoreRig& rig) : rig_(rig) {}

  void run() {
    acquire(Intent::write);
    together([&](std::size_t i) {
      return rig_.queue->commit(leases_.at(i), i % 2 == 0 ? Durability::cached : Durability::durable, requests_.at(i));
    });
    release();
    together([&](std::size_t i) { return rig_.queue->flush(requests_.at(i)); });
    acquire(Intent::read);
    release();
    const std::array<BlockRange, 2> ranges{StoreRig::range(0, 8), StoreRig::range(2000, 4)};
    together([&](std::size_t i) { return rig_.queue->discard(ranges, requests_.at(i)); });
    together([&](std::size_t i) {
      return rig_.queue->write_zeroes(StoreRig::range(i * 8, 4), StoreQueue::Deallocate::no, Durability::durable,
                                      requests_.at(i));
    });
  }
  [[nodiscard]] bool failed() const noexcept { return failed_; }

 private:
  void acquire(Intent intent) {
    for (std::size_t i = 0; i < leases_.size(); ++i) {
      leases_.at(i).range = StoreRig::range(i * 256, 256);
      leases_.at(i).intent = intent;
      leases_.at(i).domain = &rig_.domain;
    }
    together([&](std::size_t i) { return rig_.queue->acquire(leases_.at(i), requests_.at(i)); });
  }
  void release() {
    for (Lease& lease : leases_)
      rig_.queue->release(lease);
  }
  template <typename Operation>
  void together(Operation operation) {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      requests_.at(i).done = false;
      const Progress progress = operation(i);
      if (!progress.pending) requests_.at(i).on_store_done(progress.status);
    }
    for (const Quiet& request : requests_) {
      while (!request.done)
        rig_.reactor().turn();
      failed_ |= request.status != StoreStatus::ok;
    }
  }

  StoreRig& rig_;
  std::array<Lease, 8> leases_;
  std::array<Quiet, 8> requests_;
  bool failed_ = false;
};

}  // namespace

TEST_CASE("No store allocates memory per I/O") {
  TemporaryDirectory directory;
  ThreadFactory threads;
  StoreRig rig;
  const auto [kind, over_threads] = GENERATE(
      table<std::string, bool>({{"file", false}, {"file", true}, {"ram", false}, {"shadow", false}, {"null", false}}));
  if (over_threads) rig.io = &threads;
  const std::string size = ":size=16MiB";
  if (kind == "shadow")
    rig.open("ram" + size + ",atomic=shadow");  // 4 MiB to land in: eight requests have room
  else
    rig.open(kind == "file" ? "file:" + directory.make("image", 16 * kMiB) : kind + size);
  Load load(rig);
  for (int i = 0; i < 10; ++i)
    load.run();  // grows to its working size
  const std::uint64_t before = allocations_of_this_thread();
  for (int i = 0; i < 20; ++i)
    load.run();
  CHECK(allocations_of_this_thread() == before);
  CHECK_FALSE(load.failed());
  const auto one_more = std::make_unique<int>(1);
  CHECK(one_more != nullptr);  // seen, so that no optimiser takes it away
  CHECK(allocations_of_this_thread() > before);
}
