#pragma once
// For layers that want to hear of the end of what they pass on.

#include <cstddef>
#include <memory>
#include <vector>

#include "common/check.h"
#include "target/store/store.h"

namespace rbt::target {

/// Records of what a queue has under way: as many as were ever under way together, used again and again. One thread.
template <typename Record>
class RecordPool {
 public:
  ~RecordPool() { check(free_.size() == all_.size(), "a store queue is destroyed when nothing is pending"); }
  RecordPool() = default;
  RecordPool(const RecordPool&) = delete;
  RecordPool& operator=(const RecordPool&) = delete;

  template <typename... Args>
  [[nodiscard]] Record& take(Args&&... args) {
    if (free_.empty()) {
      all_.push_back(std::make_unique<Record>(std::forward<Args>(args)...));
      free_.reserve(all_.capacity());  // so that give() never allocates
      return *all_.back();
    }
    Record& record = *free_.back();
    free_.pop_back();
    return record;
  }
  void give(Record& record) noexcept { free_.push_back(&record); }

 private:
  std::vector<std::unique_ptr<Record>> all_;
  std::vector<Record*> free_;
};

}  // namespace rbt::target
