#pragma once
// A first-in-first-out queue that allocates only while it grows to its working size (std::deque allocates for good).

#include <bit>
#include <cstddef>
#include <utility>
#include <vector>

namespace rbt::transport::sim {

template <typename T>
class Fifo {
 public:
  [[nodiscard]] bool empty() const noexcept { return head_ == tail_; }
  [[nodiscard]] std::size_t size() const noexcept { return tail_ - head_; }

  void push(T value) {
    if (size() == items_.size()) grow();
    items_[tail_++ & (items_.size() - 1)] = std::move(value);
  }
  /// The oldest; the queue must not be empty.
  T pop() { return std::move(items_[head_++ & (items_.size() - 1)]); }
  /// The i-th oldest.
  [[nodiscard]] T& operator[](std::size_t i) noexcept { return items_[(head_ + i) & (items_.size() - 1)]; }

 private:
  void grow() {
    std::vector<T> larger(items_.empty() ? 16 : items_.size() * 2);
    const std::size_t count = size();
    for (std::size_t i = 0; i < count; ++i)
      larger[i] = std::move((*this)[i]);
    items_ = std::move(larger);
    head_ = 0;
    tail_ = count;
  }
  std::vector<T> items_;  // a power of two
  std::size_t head_ = 0;
  std::size_t tail_ = 0;
};

}  // namespace rbt::transport::sim
