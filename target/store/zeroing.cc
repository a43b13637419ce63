#include "target/store/zeroing.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/check.h"

namespace rbt::target {

Zeroing::~Zeroing() {
  check(work_.empty(), "a store queue is destroyed when nothing is pending");
  if (listed_) reactor_.remove(*this);
}

Progress Zeroing::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  Work work;
  work.ranges = ranges.data();
  work.ranges_left = ranges.size();
  work.deallocate = StoreQueue::Deallocate::yes;
  load(work);
  return begin(work, request);
}

Progress Zeroing::write_zeroes(BlockRange range, StoreQueue::Deallocate deallocate, Durability durability,
                               StoreRequest& request) {
  Work work;
  work.offset = bytes(range.first);
  work.end = bytes(range.end());
  work.deallocate = deallocate;
  work.durability = durability;
  return begin(work, request);
}

Progress Zeroing::begin(Work& work, StoreRequest& request) {
  if (work_.empty()) {  // else claims would get mixed up
    switch (zero_slice(work)) {
      case Slice::done: return Progress::done();
      case Slice::refused: return give_up(work, request);
      case Slice::waits: parked_ = true; break;
      case Slice::more: break;
    }
  }
  auto& record = StoreRequestAccess::make<Work>(request);
  record = work;
  record.request = &request;
  work_.push(record);
  if (!parked_) list();
  return Progress::later();
}

void Zeroing::list() {
  if (!std::exchange(listed_, true)) reactor_.add(*this);
}

void Zeroing::resume() {
  check(parked_, "only what waits is resumed");
  parked_ = false;
  list();
}

/// `work` does not lie in `request`, where another's record is about to be made.
Progress Zeroing::give_up(const Work& work, StoreRequest& request) {
  const Lba first(work.offset >> block_shift_.value());
  const BlockRange range{first, Blocks((work.end - work.offset) >> block_shift_.value())};
  return memory_.take_over({{work.ranges, work.ranges_left}, range, work.deallocate, work.durability}, request);
}

std::size_t Zeroing::poll() {
  const Slice slice = zero_slice(work_.front());
  parked_ = slice == Slice::waits;
  if (slice == Slice::done || slice == Slice::refused) {
    const Work work = work_.pop();
    const Progress progress = slice == Slice::done ? Progress::done() : give_up(work, *work.request);
    if (!progress.pending) work.request->on_store_done(progress.status);
  }
  if (work_.empty() || parked_) {
    listed_ = false;
    reactor_.remove(*this);
  }
  return 1;
}

void Zeroing::load(Work& work) const noexcept {
  if (work.ranges_left == 0) return;
  work.offset = bytes(work.ranges->first);
  work.end = bytes(work.ranges->end());
}

Zeroing::Slice Zeroing::zero_slice(Work& work) {
  std::uint64_t budget = kSliceMax;
  while (true) {
    while (work.offset < work.end) {
      if (budget == 0) return Slice::more;
      if (const Slice slice = zero_some(work, budget); slice != Slice::done) return slice;
    }
    if (work.ranges_left == 0) return Slice::done;
    ++work.ranges;
    if (--work.ranges_left == 0) return Slice::done;
    load(work);
  }
}

/// One piece of at most `budget`. What is short is claimed as a whole, before it is known where data lies in it.
Zeroing::Slice Zeroing::zero_some(Work& work, std::uint64_t& budget) {
  const bool whole = work.end - work.offset <= kSliceMax;
  if (whole && work.end - work.offset > budget) {  // next turn
    budget = 0;
    return Slice::done;
  }
  if (whole && !memory_.claim(work.offset, work.end - work.offset)) return Slice::waits;
  const std::uint64_t data = memory_.next_data(work.offset, work.end);
  const std::uint64_t length = std::min(budget, work.end - data);
  if (!whole && length != 0 && !memory_.claim(data, length)) return Slice::waits;
  const bool zeroed = length == 0 || memory_.zero(data, length);
  if (whole || length != 0) memory_.unclaim();
  if (!zeroed) return Slice::refused;
  work.offset = data + length;
  budget -= length;
  return Slice::done;
}

std::uint64_t next_data_in_file(int fd, std::uint64_t offset, std::uint64_t end) noexcept {
  const ::off_t data = ::lseek(fd, static_cast<::off_t>(offset), SEEK_DATA);
  // Whole pages hold data or holes, so that `offset` itself lies in what the kernel answers for.
  if (data >= 0) return std::min(static_cast<std::uint64_t>(data), end);
  return errno == ENXIO ? end : offset;  // hugetlbfs cannot tell: all of it is data then
}

}  // namespace rbt::target
