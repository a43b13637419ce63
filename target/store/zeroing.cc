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
  switch (zero_slice(work)) {
    case Slice::done: return Progress::done();
    case Slice::refused: return give_up(work, request);
    case Slice::more: break;
  }
  auto& record = StoreRequestAccess::make<Work>(request);
  record = work;
  record.request = &request;
  work_.push(record);
  if (!std::exchange(listed_, true)) reactor_.add(*this);
  return Progress::later();
}

/// `work` does not lie in `request`, where another's record is about to be made.
Progress Zeroing::give_up(const Work& work, StoreRequest& request) {
  const Lba first(work.offset >> block_shift_.value());
  const BlockRange range{first, Blocks((work.end - work.offset) >> block_shift_.value())};
  return memory_.take_over({{work.ranges, work.ranges_left}, range, work.deallocate, work.durability}, request);
}

std::size_t Zeroing::poll() {
  const Slice slice = zero_slice(work_.front());
  if (slice != Slice::more) {
    const Work work = work_.pop();
    const Progress progress = slice == Slice::done ? Progress::done() : give_up(work, *work.request);
    if (!progress.pending) work.request->on_store_done(progress.status);
  }
  if (work_.empty()) {
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
      const std::uint64_t data = memory_.next_data(work.offset, work.end);
      const std::uint64_t length = std::min(budget, work.end - data);
      if (length != 0 && !memory_.zero(data, length)) return Slice::refused;
      work.offset = data + length;
      budget -= length;
    }
    if (work.ranges_left == 0) return Slice::done;
    ++work.ranges;
    if (--work.ranges_left == 0) return Slice::done;
    load(work);
  }
}

std::uint64_t next_data_in_file(int fd, std::uint64_t offset, std::uint64_t end) noexcept {
  const ::off_t data = ::lseek(fd, static_cast<::off_t>(offset), SEEK_DATA);
  // Whole pages hold data or holes, so that `offset` itself lies in what the kernel answers for.
  if (data >= 0) return std::min(static_cast<std::uint64_t>(data), end);
  return errno == ENXIO ? end : offset;  // hugetlbfs cannot tell: all of it is data then
}

}  // namespace rbt::target
