#pragma once
// What stores keep in a request while it is under way: see StoreRequest::scratch_.

#include <new>
#include <type_traits>

#include "target/store/store.h"

namespace rbt::target {

/// The scratch space of a request, for the store that holds it. A store's record lies there from the call that returned
/// Progress::later() until on_store_done().
class StoreRequestAccess {
 public:
  /// A fresh record. It is forgotten, not destroyed.
  template <typename Record>
  static Record& make(StoreRequest& request) noexcept {
    static_assert(std::is_trivially_destructible_v<Record>);
    static_assert(sizeof(Record) <= sizeof(request.scratch_) && alignof(Record) <= 8);
    return *new (request.scratch_.data()) Record{};
  }
};

/// First in, first out, through the records' own `next`. One thread.
template <typename Record>
class RecordQueue {
 public:
  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }
  [[nodiscard]] Record& front() const noexcept { return *first_; }
  void push(Record& record) noexcept {
    record.next = nullptr;
    (last_ != nullptr ? last_->next : first_) = &record;
    last_ = &record;
  }
  Record& pop() noexcept {
    Record& record = *first_;
    first_ = record.next;
    if (first_ == nullptr) last_ = nullptr;
    record.next = nullptr;
    return record;
  }
  /// Everything out of `other`, behind what is here.
  void take(RecordQueue& other) noexcept {
    if (other.empty()) return;
    (last_ != nullptr ? last_->next : first_) = other.first_;
    last_ = other.last_;
    other = RecordQueue();
  }

 private:
  Record* first_ = nullptr;
  Record* last_ = nullptr;
};

}  // namespace rbt::target
