#pragma once
// What a block may hold: every write that could have been the last one when the read was under way. Independent of how
// target and initiator work; it only knows what was asked for, and when the answers came.

#include <cstdint>
#include <string>
#include <vector>

#include "common/units.h"

namespace rbt::test {

/// Order of events as the host sees them: the number of submissions and completions so far.
using Moment = std::uint64_t;
inline constexpr Moment kNever = ~Moment{0};

/// Blocks 0 to n-1, all zero (tag 0) in the beginning.
class BlockModel {
 public:
  explicit BlockModel(std::uint64_t blocks) : writes_(blocks) {
    for (auto& writes : writes_)
      writes.push_back({.tag = 0, .began = 0, .ended = 0});
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return writes_.size(); }

  /// A write that puts `tag` into the block was submitted.
  void begin_write(std::uint64_t block, std::uint64_t tag, Moment now) { writes_[block].push_back({tag, now, kNever}); }
  /// The one that began at `began` succeeded. (One that failed, or whose fate is unknown, never ends: it may land at any time.)
  void end_write(std::uint64_t block, std::uint64_t tag, Moment began, Moment now) {
    for (Write& write : writes_[block])
      if (write.tag == tag && write.began == began && write.ended == kNever) {
        write.ended = now;
        break;
      }
    forget(block);
  }
  /// True if a read submitted at `began` and answered now may have seen `tag`: it was submitted before now, and no other
  /// write began after its end and ended before the read began.
  [[nodiscard]] bool may_read(std::uint64_t block, std::uint64_t tag, Moment began) const {
    for (const Write& write : writes_[block])
      if (write.tag == tag && !overwritten(block, write, began)) return true;
    return false;
  }
  [[nodiscard]] std::string allowed(std::uint64_t block, Moment began) const {
    std::string out;
    for (const Write& write : writes_[block])
      if (!overwritten(block, write, began)) out += " " + std::to_string(write.tag);
    return out;
  }
  /// No read that is still under way began before `oldest`: what was overwritten before need not be remembered.
  void set_oldest_read(Moment oldest) noexcept { oldest_read_ = oldest; }

 private:
  struct Write {
    std::uint64_t tag = 0;
    Moment began = 0;
    Moment ended = kNever;
  };
  [[nodiscard]] bool overwritten(std::uint64_t block, const Write& write, Moment began) const {
    for (const Write& later : writes_[block])
      if (later.ended != kNever && later.began > write.ended && later.ended < began) return true;
    return false;
  }
  void forget(std::uint64_t block) {
    std::vector<Write> kept;
    for (const Write& write : writes_[block])
      if (!overwritten(block, write, oldest_read_)) kept.push_back(write);
    writes_[block] = std::move(kept);
  }
  std::vector<std::vector<Write>> writes_;
  Moment oldest_read_ = 0;
};

}  // namespace rbt::test
