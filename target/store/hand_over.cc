#include "target/store/hand_over.h"

#include <thread>

#include "common/check.h"

namespace rbt::target {

HandOver::~HandOver() {
  check(expected_ == 0, "nobody waits for what another reactor holds when a store queue is destroyed");
  // Whoever gave the last record may be between his push and his return: a few instructions.
  while (givers_.load(std::memory_order_acquire) != 0)
    std::this_thread::yield();
}

void HandOver::expect() {
  if (expected_++ == 0) reactor_.add(*this);
}

void HandOver::give(Record& record) noexcept {
  givers_.fetch_add(1, std::memory_order_relaxed);
  Record* first = given_.load(std::memory_order_relaxed);
  do
    record.next_handed = first;
  while (!given_.compare_exchange_weak(first, &record, std::memory_order_seq_cst, std::memory_order_relaxed));
  if (sleeping_.load(std::memory_order_seq_cst)) reactor_.wake();
  givers_.fetch_sub(1, std::memory_order_release);
}

std::size_t HandOver::poll() {
  if (given_.load(std::memory_order_relaxed) == nullptr) return 0;
  Record* in_order = nullptr;
  for (Record* each = given_.exchange(nullptr, std::memory_order_acquire); each != nullptr;) {
    Record* const next = each->next_handed;
    each->next_handed = in_order;
    in_order = each;
    each = next;
  }
  std::size_t received = 0;
  while (in_order != nullptr) {
    Record& record = *in_order;
    in_order = record.next_handed;
    ++received;
    receiver_.on_handed_over(record);
  }
  // Only now: a receiver that goes on waiting expects again, and need not be listed anew.
  expected_ -= received;
  if (expected_ == 0) reactor_.remove(*this);
  return received;
}

bool HandOver::arm() {
  sleeping_.store(true, std::memory_order_seq_cst);
  if (given_.load(std::memory_order_seq_cst) == nullptr) return true;
  sleeping_.store(false, std::memory_order_relaxed);
  return false;
}

}  // namespace rbt::target
