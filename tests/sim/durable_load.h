#pragma once
// Load on a disk that keeps account of every promise: which blocks may hold what now, and after the target has died.

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "common/random.h"
#include "initiator/initiator.h"
#include "tests/sim/durability_model.h"
#include "transport/memory/shared_memory.h"

namespace rbt::test {

/// Several requests at a time, on one queue pair, over all blocks of a small disk. Survives targets: what it knows of the
/// disk is true for all of them. Everything on the thread of `reactor`.
class DurableLoad {
 public:
  DurableLoad(transport::Reactor& reactor, Random& random, std::uint64_t blocks);

  /// A disk, new or back again: `queue` leads there. Reads all of it and holds it against what was promised.
  void attach(initiator::QueuePair& queue, const initiator::Namespace& space);
  /// Requests without end, until `end` or until the connection is lost.
  void run(Instant end);
  /// Takes every write for durable as soon as it is answered: to show that the difference is noticed.
  void believe_everything() noexcept { credulous_ = true; }
  /// The target is about to die: from now on an answer is no news.
  void stop_believing() noexcept { believing_ = false; }
  /// Waits for what is under way, however it ends. The queue pair is not needed after this.
  void detach();

  /// Empty: no promise has been broken.
  [[nodiscard]] const std::string& failure() const noexcept { return failure_; }
  [[nodiscard]] bool failed() const noexcept { return !failure_.empty(); }
  void fail(std::string what);

  std::atomic<std::uint64_t> requests{0};  ///< relaxed: for whoever waits until there have been some
  std::uint64_t unknown = 0;               ///< requests that were cut off
  std::uint64_t lost = 0;                  ///< blocks that came back other than last answered: lost, or never answered

 private:
  static constexpr std::size_t kWorkers = 8;
  static constexpr std::uint64_t kTransferBlocks = 8;
  static constexpr std::size_t kWorkerBytes = kTransferBlocks * 4096;

  /// One request at a time, with memory of its own.
  struct Worker {
    DurableLoad* load = nullptr;
    initiator::Request request{};
    std::span<std::byte> memory;
    iovec piece{};
    BlockRange range;
    std::uint64_t tag = 0;
    Moment began = 0;
    bool durable = false;
    bool busy = false;
  };

  void submit(Worker& worker);
  [[nodiscard]] initiator::Submitted submit_chosen(Worker& worker, initiator::Operation operation);
  void finish(Worker& worker);
  void check_read(const Worker& worker);
  void compare(const Worker& worker);
  [[nodiscard]] bool idle() const;
  [[nodiscard]] std::size_t block_size() const noexcept { return space_->block_size(); }

  transport::Reactor& reactor_;
  Random& random_;
  transport::SharedMemory arena_;
  std::array<Worker, kWorkers> workers_{};
  DurabilityModel model_;
  std::vector<std::uint64_t> last_;  // by block: the tag of the last write that was answered
  initiator::QueuePair* queue_ = nullptr;
  const initiator::Namespace* space_ = nullptr;
  bool believing_ = false;
  bool credulous_ = false;
  Moment moment_ = 1;
  std::uint64_t next_tag_ = 1;
  std::string failure_;
};

}  // namespace rbt::test
