#pragma once
// What a block may hold while a disk is up, and after it has died: independent of how a target works, it only knows what
// was asked for, when the answers came, and what had been promised to last.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/sim/block_model.h"

namespace rbt::test {

/// Blocks 0 to n-1, all zero (tag 0), and durable, in the beginning.
class DurabilityModel {
 public:
  explicit DurabilityModel(std::uint64_t blocks) : writes_(blocks) {
    for (std::uint64_t block = 0; block < blocks; ++block)
      came_back(block, 0);
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return writes_.size(); }

  enum class Lasts : std::uint8_t {
    yes,    ///< FUA
    no,     ///< until a flush that begins after its end
    maybe,  ///< a discard: the old may stay, the zeroes may come
  };

  /// A write that puts `tag` into the block was submitted.
  void begin_write(std::uint64_t block, std::uint64_t tag, Moment now) { writes_[block].push_back({tag, now}); }
  /// The one that began at `began` succeeded. (One that failed, or was never answered, never ends.)
  void end_write(std::uint64_t block, std::uint64_t tag, Moment began, Lasts lasts, Moment now) {
    for (Write& write : writes_[block])
      if (write.tag == tag && write.began == began && write.ended == kNever) {
        write.ended = now;
        write.durable = lasts == Lasts::yes;
        write.certain = lasts != Lasts::maybe;
        break;
      }
    forget(block);
  }
  /// A flush submitted at `began` succeeded.
  void flushed(Moment began) {
    for (std::uint64_t block = 0; block < size(); ++block) {
      for (Write& write : writes_[block])
        if (write.certain && write.ended < began) write.durable = true;
      forget(block);
    }
  }
  /// A read submitted at `began` and answered now may have seen `tag`: no other write began after its end and ended
  /// before the read began.
  [[nodiscard]] bool may_read(std::uint64_t block, std::uint64_t tag, Moment began) const {
    return any(block, tag, [&](const Write& write) { return !overwritten(block, write, began); });
  }
  /// After a crash: nothing durable came after it.
  [[nodiscard]] bool may_survive(std::uint64_t block, std::uint64_t tag) const {
    return any(block, tag, [&](const Write& write) { return !outlived(block, write); });
  }
  /// The disk is up again, and this is what it holds.
  void came_back(std::uint64_t block, std::uint64_t tag) {
    writes_[block] = {Write{.tag = tag, .began = 0, .ended = 0, .durable = true, .certain = true}};
  }
  [[nodiscard]] std::string history(std::uint64_t block) const {
    std::string out;
    for (const Write& write : writes_[block])
      out += " " + std::to_string(write.tag) + (write.ended == kNever ? " (no answer)" : "") +
             (write.durable ? " (durable)" : "");
    return out;
  }
  /// No read that is under way began before `oldest`.
  void set_oldest_read(Moment oldest) noexcept { oldest_read_ = oldest; }

 private:
  struct Write {
    std::uint64_t tag = 0;
    Moment began = 0;
    Moment ended = kNever;
    bool durable = false;
    bool certain = false;
  };
  template <typename Condition>
  [[nodiscard]] bool any(std::uint64_t block, std::uint64_t tag, const Condition& condition) const {
    return std::any_of(writes_[block].begin(), writes_[block].end(),
                       [&](const Write& write) { return write.tag == tag && condition(write); });
  }
  [[nodiscard]] bool overwritten(std::uint64_t block, const Write& write, Moment began) const {
    return std::any_of(writes_[block].begin(), writes_[block].end(), [&](const Write& later) {
      return later.certain && later.began > write.ended && later.ended < began;
    });
  }
  [[nodiscard]] bool outlived(std::uint64_t block, const Write& write) const {
    return std::any_of(writes_[block].begin(), writes_[block].end(),
                       [&](const Write& later) { return later.durable && later.began > write.ended; });
  }
  void forget(std::uint64_t block) {
    std::vector<Write> kept;
    for (const Write& write : writes_[block])
      if (!outlived(block, write) || !overwritten(block, write, oldest_read_)) kept.push_back(write);
    writes_[block] = std::move(kept);
  }
  std::vector<std::vector<Write>> writes_;
  Moment oldest_read_ = 0;
};

}  // namespace rbt::test
