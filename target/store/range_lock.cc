#include "target/store/range_lock.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "common/check.h"

namespace rbt::target {

namespace {

// What a lane's byte holds: bit 7, somebody waits for it; below that, how many readers, or kWriter.
constexpr std::uint64_t kEach = 0x0101010101010101;
constexpr std::uint64_t kWaited = kEach * 0x80;
constexpr std::uint64_t kUsers = kEach * 0x7f;
constexpr std::uint64_t kWriter = kEach * 0x7f;
// Added to a lane's users it reaches bit 7 from 126 on: a writer, or as many readers as a lane can count.
constexpr std::uint64_t kToFull = kEach * 2;

constexpr std::uint64_t users(Intent intent) noexcept {
  return intent == Intent::write ? kWriter : kEach;
}

/// Whether the lanes take one more, whoever waits for them.
constexpr bool room(std::uint64_t value, std::uint64_t lanes, Intent intent) noexcept {
  if (intent == Intent::write) return (value & kUsers & lanes) == 0;
  return (((value & kUsers) + kToFull) & kWaited & lanes) == 0;
}

}  // namespace

void RangeLock::Free::operator()(std::uint64_t* words) const noexcept {
  std::free(words);  // NOLINT(cppcoreguidelines-no-malloc): see the constructor
}

RangeLock::RangeLock(Blocks blocks, Growth growth)
    // at least a claim's length, so that no claim meets itself; and whole words
    : lanes_(std::bit_ceil(
          std::clamp<std::uint64_t>(blocks.value(), growth == Growth::never ? 8 : kBlocksMax, kLanesMax))),
      // calloc and not new: pages that are zeroes already need not be touched, and most never are
      words_(static_cast<std::uint64_t*>(std::calloc(lanes_ / 8, sizeof(std::uint64_t)))) {
  check(words_ != nullptr, "there is 1 MiB of memory for a lock");
}

// The part of `range` that comes after `taken` lanes, in ascending order of lanes: a range that goes over the end of the
// lanes begins with what comes around to their beginning.
RangeLock::Part RangeLock::part(BlockRange range, std::uint32_t taken) const noexcept {
  const std::uint64_t first = range.first.value() & (lanes_ - 1);
  const std::uint64_t count = range.count.value();
  const std::uint64_t around = first + count > lanes_ ? first + count - lanes_ : 0;
  const bool wrapped = taken < around;
  const std::uint64_t lane = wrapped ? taken : first + (taken - around);
  const std::uint64_t left = wrapped ? around - taken : count - taken;
  const std::uint64_t in_word = lane % 8;
  const auto here = static_cast<std::uint32_t>(std::min<std::uint64_t>(8 - in_word, left));
  return {lane / 8, (~std::uint64_t{0} >> (64 - 8 * here)) << (8 * in_word), here};
}

bool RangeLock::take_part(const Part& part, Intent intent) noexcept {
  const auto value = word(part.word);
  std::uint64_t seen = value.load(std::memory_order_relaxed);
  while ((seen & kWaited & part.lanes) == 0 && room(seen, part.lanes, intent))
    if (value.compare_exchange_weak(seen, seen + (users(intent) & part.lanes), std::memory_order_acquire,
                                    std::memory_order_relaxed))
      return true;
  return false;
}

bool RangeLock::take(Claim& claim) noexcept {
  check(claim.range.count <= Blocks(kBlocksMax), "a claim is no longer than the lanes");
  const auto count = static_cast<std::uint32_t>(claim.range.count.value());
  while (claim.taken < count) {
    const Part next = part(claim.range, claim.taken);
    if (!take_part(next, claim.intent)) return false;
    claim.taken += next.count;
  }
  return true;
}

bool RangeLock::wait(Claim& claim, HandOver& hand_over) {
  while (!take(claim)) {
    const Part next = part(claim.range, claim.taken);
    Line& queue = line(next.word);
    const std::lock_guard lock(queue.mutex);
    const auto value = word(next.word);
    std::uint64_t seen = value.load(std::memory_order_relaxed);
    while (true) {
      const bool free = (seen & kWaited & next.lanes) == 0 && room(seen, next.lanes, claim.intent);
      const std::uint64_t wanted = free ? seen + (users(claim.intent) & next.lanes) : seen | (kWaited & next.lanes);
      if (!value.compare_exchange_weak(seen, wanted, std::memory_order_acquire, std::memory_order_relaxed)) continue;
      if (free) {
        claim.taken += next.count;
        break;
      }
      // From now on whoever releases one of these lanes comes here.
      claim.hand_over = &hand_over;
      queue.waiting.push(claim);
      waits_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
  }
  return true;
}

void RangeLock::release(BlockRange range, Intent intent) noexcept {
  const auto count = static_cast<std::uint32_t>(range.count.value());
  for (std::uint32_t given = 0; given < count;) {
    const Part next = part(range, given);
    given += next.count;
    const std::uint64_t before = word(next.word).fetch_sub(users(intent) & next.lanes, std::memory_order_release);
    if ((before & kWaited & next.lanes) != 0) serve(next.word);
  }
}

/// Lanes that somebody waits for are taken here only, so that what is seen free stays free.
bool RangeLock::grant(Claim& claim, const Part& next) noexcept {
  const auto value = word(next.word);
  if (!room(value.load(std::memory_order_relaxed), next.lanes, claim.intent)) return false;
  value.fetch_add(users(claim.intent) & next.lanes, std::memory_order_acquire);
  claim.taken += next.count;
  return true;
}

void RangeLock::serve(std::uint64_t index) noexcept {
  Line& queue = line(index);
  const std::lock_guard lock(queue.mutex);
  RecordQueue<Claim> still;
  std::uint64_t waited = 0;  // lanes of those who go on waiting: nobody overtakes them
  while (!queue.waiting.empty()) {
    Claim& claim = queue.waiting.pop();
    const Part next = part(claim.range, claim.taken);
    const bool here = next.word == index;
    if (here && (next.lanes & waited) == 0 && grant(claim, next)) {
      claim.hand_over->give(claim);  // it may be gone now
      continue;
    }
    if (here) waited |= next.lanes;
    still.push(claim);
  }
  queue.waiting = still;
  word(index).fetch_and(~(kWaited & ~waited), std::memory_order_relaxed);
}

}  // namespace rbt::target
