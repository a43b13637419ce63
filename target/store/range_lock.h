#pragma once
// Who may touch which blocks: readers share them, a writer has them alone. A reader beside a writer would see a block half
// old and half new, in memory that data lands in as well as on a medium that blocks are read from and written to.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "common/units.h"
#include "target/store/hand_over.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// Thread-safe: one for all queues of a store. A byte ("lane") per block, eight to a word: a free range is taken and given
/// back with one atomic operation for up to eight blocks, without a mutex. Memory is bounded: blocks that are
/// kLanesMax apart share a lane, and then wait for one another without need. Lanes are taken in ascending order, so that
/// there is no deadlock; who waits keeps what he has, and is served first come, first served, by HandOver.
class RangeLock {
 public:
  static constexpr std::uint64_t kLanesMax = std::uint64_t{1} << 20;  // 1 MiB
  /// The longest range of one claim.
  static constexpr std::uint64_t kBlocksMax = 65536;

  enum class Growth : std::uint8_t { possible, never };
  /// For a store of `blocks`. Memory comes with use.
  explicit RangeLock(Blocks blocks, Growth growth = Growth::possible);
  RangeLock(const RangeLock&) = delete;
  RangeLock& operator=(const RangeLock&) = delete;

  /// A wish for a range, and how far it has come. While it waits it stays where it is.
  struct Claim : HandOver::Record {
    BlockRange range;
    Intent intent = Intent::read;  ///< write: alone

   private:
    friend class RangeLock;
    friend class RecordQueue<Claim>;
    Claim* next = nullptr;  // in a line
    HandOver* hand_over = nullptr;
    std::uint32_t taken = 0;  // lanes so far; it waits for the part behind them
  };

  /// Takes what is free. True: has all of its range until release(). False: not all; then wait().
  [[nodiscard]] bool take(Claim& claim) noexcept;
  /// Goes on until it has its range (true), or must wait (false): then `hand_over` gives the claim to its reactor, once,
  /// and wait() is to be called again. The caller expects that of `hand_over`.
  [[nodiscard]] bool wait(Claim& claim, HandOver& hand_over);
  /// Gives back the whole range of a claim that had it.
  void release(BlockRange range, Intent intent) noexcept;
  /// Claims that had to wait since the beginning, for statistics and tests.
  [[nodiscard]] std::uint64_t waits() const noexcept { return waits_.load(std::memory_order_relaxed); }

 private:
  struct Part {  // of a claim: within one word
    std::uint64_t word;
    std::uint64_t lanes;
    std::uint32_t count;
  };
  struct alignas(64) Line {
    std::mutex mutex;
    RecordQueue<Claim> waiting;  // guarded by mutex
  };
  static constexpr std::size_t kLines = 64;
  struct Free {
    void operator()(std::uint64_t* words) const noexcept;
  };

  [[nodiscard]] Part part(BlockRange range, std::uint32_t taken) const noexcept;
  [[nodiscard]] std::atomic_ref<std::uint64_t> word(std::uint64_t index) const noexcept {
    return std::atomic_ref(words_[index]);
  }
  [[nodiscard]] Line& line(std::uint64_t word) noexcept { return lines_[word % kLines]; }
  [[nodiscard]] bool take_part(const Part& part, Intent intent) noexcept;
  void serve(std::uint64_t word) noexcept;
  [[nodiscard]] bool grant(Claim& claim, const Part& next) noexcept;

  std::uint64_t lanes_;  // a power of two
  std::unique_ptr<std::uint64_t[], Free> words_;
  std::array<Line, kLines> lines_;
  std::atomic<std::uint64_t> waits_{0};
};

}  // namespace rbt::target
