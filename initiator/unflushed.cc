#include "initiator/unflushed.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"

namespace rbt::initiator {

namespace {

// One entry per 4 KiB of data, and enough for several discards of many ranges.
constexpr std::uint64_t kBytesPerEntry = 4096;
constexpr std::size_t kEntriesMin = 4 * UnflushedWrites::kRangesMax;

}  // namespace

Result<UnflushedWrites> UnflushedWrites::create(Bytes size) {
  auto memory = transport::SharedMemory::create(size, {.name = "rbt-unflushed"});
  if (!memory) return failure(std::move(memory.error()).within("memory for unflushed writes"));
  const std::size_t entries = std::max<std::size_t>(memory->size() / kBytesPerEntry, kEntriesMin);
  return UnflushedWrites(std::move(*memory), entries);
}

std::span<std::byte> UnflushedWrites::data(const Entry& entry) const noexcept {
  return {memory_.data() + entry.position % memory_.size(), entry.bytes};
}

std::optional<UnflushedWrites::Reservation> UnflushedWrites::reserve(const Request& request) {
  const bool discard = request.operation == Operation::discard;
  const auto count = static_cast<std::uint32_t>(discard ? request.ranges.size() : 1);
  if (next_ + count - first_ > entries_.size()) return std::nullopt;
  std::uint64_t bytes = 0;
  if (request.operation == Operation::write)
    for (const iovec& piece : request.data)
      bytes += piece.iov_len;
  check(bytes <= memory_.size() / 4 && count <= kRangesMax, "what is to be kept fits");
  std::uint64_t position = tail_;
  const std::uint64_t place = position % memory_.size();
  if (place + bytes > memory_.size()) position += memory_.size() - place;  // in one piece, so not around the end
  if (position + bytes - head_ > memory_.size()) return std::nullopt;
  const Reservation reservation{.first = next_, .count = count};
  for (std::uint32_t i = 0; i < count; ++i)
    entry(next_++) = {.state = Entry::State::reserved,
                      .operation = request.operation,
                      .deallocate = request.deallocate,
                      .range = discard ? request.ranges[i] : request.range,
                      .position = position,
                      .bytes = bytes};
  tail_ = position + bytes;
  if (request.operation == Operation::write) {
    std::byte* to = data(at(reservation.first)).data();
    for (const iovec& piece : request.data) {
      if (piece.iov_len != 0) std::memcpy(to, piece.iov_base, piece.iov_len);
      to += piece.iov_len;
    }
  }
  return reservation;
}

void UnflushedWrites::keep(const Reservation& reservation, std::uint64_t acknowledged) noexcept {
  for (std::uint64_t sequence = reservation.first; sequence < reservation.first + reservation.count; ++sequence) {
    entry(sequence).state = Entry::State::kept;
    entry(sequence).acknowledged = acknowledged;
  }
}

void UnflushedWrites::drop(const Reservation& reservation) noexcept {
  for (std::uint64_t sequence = reservation.first; sequence < reservation.first + reservation.count; ++sequence)
    entry(sequence).state = Entry::State::void_;
  pop_void();
}

void UnflushedWrites::flushed(std::uint64_t covered) noexcept {
  if (covered == covered_) return;
  covered_ = covered;
  for (std::uint64_t sequence = first_; sequence != next_; ++sequence) {
    Entry& each = entry(sequence);
    if (each.state == Entry::State::kept && each.acknowledged <= covered) each.state = Entry::State::void_;
  }
  pop_void();
}

bool UnflushedWrites::keeps_any() const noexcept {
  for (std::uint64_t sequence = first_; sequence != next_; ++sequence)
    if (at(sequence).state == Entry::State::kept) return true;
  return false;
}

void UnflushedWrites::pop_void() noexcept {
  while (first_ != next_ && at(first_).state == Entry::State::void_)
    ++first_;
  head_ = first_ == next_ ? tail_ : at(first_).position;
}

}  // namespace rbt::initiator
