#include "transport/reactor/timer.h"

#include <utility>

namespace rbt::transport {

void Timer::arm(Instant at) {
  cancel();
  at_ = at;
  queue_.insert(*this);
}

void Timer::cancel() noexcept {
  if (armed()) queue_.erase(*this);
}

std::size_t TimerQueue::run(Instant now) {
  std::size_t ran = 0;
  // What is armed meanwhile for a past time waits for the next call: bounded by what was due at the start.
  std::size_t due_at_most = heap_.size();
  while (due_at_most-- > 0 && !heap_.empty() && heap_.front()->at_ <= now) {
    Timer& timer = *heap_.front();
    erase(timer);
    ++ran;
    timer.callback_();
  }
  return ran;
}

std::optional<Instant> TimerQueue::next() const noexcept {
  if (heap_.empty()) return std::nullopt;
  return heap_.front()->at_;
}

void TimerQueue::insert(Timer& timer) {
  heap_.push_back(&timer);
  timer.position_ = heap_.size() - 1;
  sift_up(timer.position_);
}

void TimerQueue::erase(Timer& timer) noexcept {
  const std::size_t hole = timer.position_;
  timer.position_ = Timer::kNowhere;
  Timer* const last = heap_.back();
  heap_.pop_back();
  if (last == &timer) return;
  place(hole, last);
  sift_up(hole);
  sift_down(last->position_);
}

void TimerQueue::sift_up(std::size_t position) noexcept {
  Timer* const timer = heap_[position];
  while (position > 0) {
    const std::size_t parent = (position - 1) / 2;
    if (heap_[parent]->at_ <= timer->at_) break;
    place(position, heap_[parent]);
    position = parent;
  }
  place(position, timer);
}

void TimerQueue::sift_down(std::size_t position) noexcept {
  Timer* const timer = heap_[position];
  while (true) {
    std::size_t child = 2 * position + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && heap_[child + 1]->at_ < heap_[child]->at_) ++child;
    if (timer->at_ <= heap_[child]->at_) break;
    place(position, heap_[child]);
    position = child;
  }
  place(position, timer);
}

void TimerQueue::place(std::size_t position, Timer* timer) noexcept {
  heap_[position] = timer;
  timer->position_ = position;
}

}  // namespace rbt::transport
