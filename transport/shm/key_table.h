#pragma once
// Keys to what they stand for: a hash table for the data path.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace rbt::transport::shm {

/// Open addressing with linear probing; a key is never 0. Keys are random already, so the low bits are the hash. find()
/// remembers its last hit: a queue uses one or two regions. One thread.
template <typename Value>
class KeyTable {
 public:
  KeyTable() : entries_(kSizeMin) {}

  /// Null if there is no such key. Valid until the next change.
  [[nodiscard]] Value* find(std::uint32_t key) noexcept {
    if (key == 0) return nullptr;
    if (entries_[last_].key == key) return &entries_[last_].value;
    for (std::size_t i = key & mask();; i = (i + 1) & mask()) {
      if (entries_[i].key == 0) return nullptr;
      if (entries_[i].key != key) continue;
      last_ = i;
      return &entries_[i].value;
    }
  }
  /// `key` is not 0 and not there yet.
  void insert(std::uint32_t key, Value value) {
    if (2 * (size_ + 1) > entries_.size()) grow();
    place(key, std::move(value));
    ++size_;
  }
  /// False if there was no such key.
  bool erase(std::uint32_t key) noexcept {
    if (find(key) == nullptr) return false;
    std::size_t hole = last_;
    // Close the gap: whoever was pushed past it moves back (Knuth, TAOCP 6.4, algorithm R).
    for (std::size_t i = (hole + 1) & mask(); entries_[i].key != 0; i = (i + 1) & mask()) {
      const std::size_t home = entries_[i].key & mask();
      if (((i - home) & mask()) < ((i - hole) & mask())) continue;
      entries_[hole] = std::move(entries_[i]);
      hole = i;
    }
    entries_[hole] = Entry{};
    --size_;
    return true;
  }
  void clear() noexcept {
    for (Entry& entry : entries_)
      entry = Entry{};
    size_ = 0;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  template <typename Visitor>
  void for_each(Visitor visit) const {
    for (const Entry& entry : entries_)
      if (entry.key != 0) visit(entry.key, entry.value);
  }

 private:
  static constexpr std::size_t kSizeMin = 16;
  struct Entry {
    std::uint32_t key = 0;
    Value value{};
  };
  [[nodiscard]] std::size_t mask() const noexcept { return entries_.size() - 1; }
  void place(std::uint32_t key, Value value) {
    std::size_t i = key & mask();
    while (entries_[i].key != 0)
      i = (i + 1) & mask();
    entries_[i] = Entry{key, std::move(value)};
  }
  void grow() {
    std::vector<Entry> old(entries_.size() * 2);
    old.swap(entries_);
    last_ = 0;
    for (Entry& entry : old)
      if (entry.key != 0) place(entry.key, std::move(entry.value));
  }
  std::vector<Entry> entries_;
  std::size_t size_ = 0;
  std::size_t last_ = 0;
};

}  // namespace rbt::transport::shm
