#include "target/store/image_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "common/nvme/endian.h"

namespace rbt::target {

namespace {

constexpr std::uint64_t kReadAtOnce = 32768;  // entries

std::uint64_t entry_at(std::span<const std::byte> table, std::uint64_t index) noexcept {
  return nvme::read_wire<nvme::Le64>(table.subspan(index * ShadowLayout::kEntrySize))->get();
}

tl::unexpected<Error> damaged(const std::string& what) {
  return failure(
      ErrorKind::mismatch,
      fmt::format("the table of its shadow image is damaged: {}; nothing of it is served: restore a copy", what));
}

}  // namespace

Result<void> ImageTable::load(const Read& read) {
  std::vector<std::byte> bytes;
  const std::uint64_t blocks = layout_.blocks.value();
  for (std::uint64_t first = 0; first < blocks; first += kReadAtOnce) {
    bytes.resize(std::min(kReadAtOnce, blocks - first) * ShadowLayout::kEntrySize);
    if (auto done = read(layout_.entry_offset(Lba(first)), bytes); !done) return done;
    for (std::uint64_t i = 0; i < bytes.size() / ShadowLayout::kEntrySize; ++i) {
      const Lba lba(first + i);
      const std::uint64_t value = entry_at(bytes, i);
      if (value == 0) continue;
      const auto entry = decode_entry(lba, value, layout_);
      if (!entry)
        return damaged(fmt::format("the entry of block {} is {:016x}h, which is none of its {} places", lba.value(),
                                   value, blocks + layout_.landing.value()));
      table_.restore(lba, entry->place, entry->zeroes);
    }
  }
  if (const auto twice = table_.restored())
    return damaged(
        fmt::format("block {} lies at place {}, which another block has", twice->value(), table_.look(*twice).place));
  return {};
}

Result<void> ImageTable::compare(const Read& read) {
  std::array<std::byte, kGroup * ShadowLayout::kEntrySize> bytes{};
  for (Lba first(0); first.value() < layout_.blocks.value(); first = first + Blocks(kGroup)) {
    const auto count = std::min(kGroup, layout_.blocks.value() - first.value());
    const std::span piece = std::span(bytes).first(count * ShadowLayout::kEntrySize);
    const std::lock_guard lock(lock_of(first));
    if (auto done = read(layout_.entry_offset(first), piece); !done) return done;
    for (std::uint64_t i = 0; i < count; ++i) {
      const Lba lba = first + Blocks(i);
      if (entry_at(piece, i) == encode_entry(lba, table_.look(lba))) continue;
      broken_.store(true, std::memory_order_release);
      return damaged(fmt::format("somebody else has written the entry of block {}", lba.value()));
    }
  }
  return {};
}

/// Group by group: `entry(i)` is what the i-th block's becomes in the file, `apply(i)` the same in memory.
template <typename Change, typename Entry>
StoreStatus ImageTable::change(BlockRange range, TableMedium& medium, Entry entry, Change apply) {
  Entries entries;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled as far as it is used
  for (std::uint64_t done = 0; done < range.count.value();) {
    const Lba first = range.first + Blocks(done);
    const auto count = std::min(kGroup - first.value() % kGroup, range.count.value() - done);
    const std::lock_guard lock(lock_of(first));
    for (std::uint64_t i = 0; i < count; ++i)
      entries[i] = entry(done + i);
    if (const auto status = medium.write_entries(first, {entries.data(), count}); status != StoreStatus::ok) {
      broken_.store(true, std::memory_order_release);
      return status;
    }
    for (std::uint64_t i = 0; i < count; ++i)
      apply(done + i);
    done += count;
  }
  return StoreStatus::ok;
}

StoreStatus ImageTable::move(Lba first, std::span<const BlockTable::Place> places, TableMedium& medium) {
  BlockTable::Freed freed(table_);
  return change(
      {first, Blocks(places.size())}, medium,
      [&](std::uint64_t i) {
        return encode_entry(first + Blocks(i), {places[i], false});
      },
      [&](std::uint64_t i) { table_.commit(first + Blocks(i), places[i], freed); });
}

StoreStatus ImageTable::zero(BlockRange range, TableMedium& medium) {
  return change(
      range, medium,
      [&](std::uint64_t i) {
        const Lba lba = range.first + Blocks(i);
        return encode_entry(lba, {table_.look(lba).place, true});
      },
      [&](std::uint64_t i) { table_.zero(range.first + Blocks(i)); });
}

}  // namespace rbt::target
