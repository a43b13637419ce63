#include "target/store/shadow.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"

namespace rbt::target {

namespace {

// Lease::token: the size class of the lease's array of segments, 0 for none; and whether its places are blocks now.
constexpr std::uintptr_t kCommitted = 256;

}  // namespace

ShadowMemory::Piece ShadowMemory::zeroes(const Lease&) noexcept {
  check(false, "whoever zeroes entries of the table has zeroes to show");
  return {};
}

transport::Segment* SegmentArrays::take(std::size_t count, unsigned& size_class) {
  size_class = static_cast<unsigned>(std::bit_width(count - 1));
  check(size_class < kClasses, "a lease has no more segments than blocks");
  Class& kind = classes_[size_class];
  if (kind.free.empty()) {
    kind.all.push_back(std::make_unique<transport::Segment[]>(std::size_t{1} << size_class));
    kind.free.reserve(kind.all.capacity());  // so that give() never needs memory
    return kind.all.back().get();
  }
  transport::Segment* const array = kind.free.back();
  kind.free.pop_back();
  return array;
}

void SegmentArrays::give(transport::Segment* array, unsigned size_class) noexcept {
  classes_[size_class].free.push_back(array);
}

Progress Shadow::acquire(Lease& lease, StoreRequest& request) {
  const std::uint64_t count = lease.range.count.value();
  check(count <= kBlocksMax, "a lease is no longer than transfer_max");
  if (lease.intent == Intent::read) {
    for (std::uint64_t i = 0; i < count; ++i)
      places_[i] = table_.pin(lease.range.first + Blocks(i));
  } else if (!table_.take({places_.get(), count})) {
    auto& wait = StoreRequestAccess::make<Wait>(request);
    wait.request = &request;
    wait.lease = &lease;
    if (!table_.take_or_wait({places_.get(), count}, wait, hand_over_)) {
      hand_over_.expect();
      return Progress::later();
    }
  }
  hold(lease, count);
  return Progress::done();
}

/// `places_` become the lease's segments, neighbours together. The array is as long as it could have to be, so that the heap
/// is not asked again when blocks move apart.
void Shadow::hold(Lease& lease, std::size_t count) {
  const std::uint32_t block = block_shift_.block_size();
  unsigned size_class = 0;
  transport::Segment* const array = count <= lease.few.size() ? lease.few.data() : arrays_.take(count, size_class);
  ShadowMemory::Piece piece;
  std::size_t used = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t place = places_[i];
    if (place == BlockTable::kZeroes) {
      i += hold_zeroes(lease, array[used++], i, count);
      continue;
    }
    const bool same_piece = place - piece.first < piece.count;
    if (same_piece && i > 0 && place == std::uint64_t{places_[i - 1]} + 1) {  // never behind zeroes
      array[used - 1].length += block;
      continue;
    }
    if (!same_piece) piece = memory_.piece(places_[i], lease);
    array[used++] = {piece.data + ((place - piece.first) << block_shift_.value()), block, piece.lkey};
  }
  lease.segments = {array, used};
  lease.token = size_class;
}

/// As many blocks of zeroes from places_[i] on as are one segment; returns how many there are behind the first.
std::size_t Shadow::hold_zeroes(const Lease& lease, transport::Segment& segment, std::size_t i, std::size_t count) {
  const ShadowMemory::Piece zeroes = memory_.zeroes(lease);
  std::size_t more = 0;
  while (more + 1 < zeroes.count && i + more + 1 < count && places_[i + more + 1] == BlockTable::kZeroes)
    ++more;
  segment = {zeroes.data, static_cast<std::uint32_t>((more + 1) << block_shift_.value()), zeroes.lkey};
  return more;
}

/// each(Lba, Place) for every block, in order.
template <typename Each>
void Shadow::for_each_place(const Lease& lease, Each each) const {
  Lba lba = lease.range.first;
  for (const transport::Segment& segment : lease.segments) {
    BlockTable::Place place = memory_.place_of(segment.data);
    for (std::uint32_t at = 0; at < segment.length; at += block_shift_.block_size()) {
      each(lba, place);
      if (place != BlockTable::kZeroes) ++place;
      lba = lba + Blocks(1);
    }
  }
}

StoreStatus Shadow::commit(Lease& lease) {
  std::size_t count = 0;
  for_each_place(lease, [&](Lba, BlockTable::Place place) { places_[count++] = place; });
  lease.token |= kCommitted;
  return memory_.move(lease.range.first, {places_.get(), count});
}

void Shadow::release(Lease& lease) noexcept {
  if ((lease.token & kCommitted) == 0) {
    BlockTable::Freed freed(table_);
    if (lease.intent == Intent::read)
      for_each_place(lease, [&](Lba, BlockTable::Place place) { table_.unpin(place, freed); });
    else
      for_each_place(lease, [&](Lba, BlockTable::Place place) { freed.add(place); });
  }
  if (const auto size_class = static_cast<unsigned>(lease.token & (kCommitted - 1)); size_class != 0)
    arrays_.give(const_cast<transport::Segment*>(lease.segments.data()), size_class);
  lease.segments = {};
}

bool Shadow::claim(std::uint64_t count) {
  if (own_waits_) return false;
  if (own_.size() == count) return true;
  unclaim();  // he thought of something else while he waited
  own_.resize(count);
  own_wait_ = {};
  if (table_.take_or_wait(own_, own_wait_, hand_over_)) return true;
  own_waits_ = true;
  hand_over_.expect();
  return false;
}

void Shadow::zero(BlockRange range) {
  BlockTable::Freed freed(table_);
  const Lease nobody;
  for (Lba lba = range.first; lba < range.end(); lba = lba + Blocks(1)) {
    const BlockTable::Place place = own_.at(own_used_++);
    const ShadowMemory::Piece piece = memory_.piece(place, nobody);
    std::memset(piece.data + ((place - piece.first) << block_shift_.value()), 0, block_shift_.block_size());
    table_.commit(lba, place, freed);
  }
}

void Shadow::unclaim() noexcept {
  BlockTable::Freed freed(table_);
  for (; own_used_ < own_.size(); ++own_used_)
    freed.add(own_[own_used_]);
  own_.clear();
  own_used_ = 0;
}

void Shadow::on_handed_over(HandOver::Record& record) {
  auto& wait = static_cast<BlockTable::Wait&>(record);
  if (&wait == &own_wait_) {
    table_.take_reserved(own_);
    own_waits_ = false;
    memory_.on_claimed();
    return;
  }
  const Wait done = static_cast<Wait&>(wait);  // the request's place is for whoever comes next
  table_.take_reserved({places_.get(), done.count});
  hold(*done.lease, done.count);
  done.request->on_store_done(StoreStatus::ok);
}

}  // namespace rbt::target
