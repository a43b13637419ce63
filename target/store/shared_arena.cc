#include "target/store/shared_arena.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "common/check.h"
#include "target/store/null_store.h"

namespace rbt::target {

namespace {

constexpr std::uint64_t kHugePage = 2 * kMiB;

std::uint64_t whole_pages(std::uint64_t size) {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

}  // namespace

Result<StoreMemory> StoreMemory::create(Bytes size, const transport::SharedMemory::Options& options,
                                        SharedArena* arena) {
  const bool small = arena != nullptr && size.value() > 0 && size.value() <= SharedArena::kPartMax;
  const bool may_be_huge = options.huge_pages == transport::HugePages::if_any && size.value() >= kHugePage;
  if (small && !may_be_huge) return arena->take(size.value());
  auto own = transport::SharedMemory::create(size, options);
  if (!own) return failure(std::move(own.error()));
  if (small && !own->huge()) return arena->take(size.value());
  StoreMemory memory;
  memory.own_ = std::move(*own);
  memory.span_ = memory.own_.span();
  return memory;
}

StoreMemory::StoreMemory(StoreMemory&& other) noexcept
    : own_(std::move(other.own_)), arena_(std::exchange(other.arena_, nullptr)), span_(other.span_) {}

StoreMemory::~StoreMemory() {
  if (arena_ != nullptr) arena_->give(span_);
}

SharedArena::~SharedArena() {
  check(chunks_.empty(), "stores end before the memory that they share");
}

Result<StoreMemory> SharedArena::take(std::uint64_t size) {
  size = whole_pages(size);
  const std::lock_guard lock(mutex_);
  // The newest first: the older ones are full, unless stores have gone.
  for (auto chunk = chunks_.rbegin(); chunk != chunks_.rend(); ++chunk) {
    auto& free = (*chunk)->free;
    const auto hole = std::find_if(free.begin(), free.end(), [&](const auto& each) { return each.second >= size; });
    if (hole != free.end()) return part_of(**chunk, hole, size);
  }
  auto memory = transport::SharedMemory::create(Bytes(kChunk), {"rbt-stores", transport::HugePages::never, false});
  if (!memory) return failure(std::move(memory.error()).within("memory for small stores"));
  chunks_.push_back(std::make_unique<Chunk>(Chunk{std::move(*memory), {{0, kChunk}}}));
  Chunk& chunk = *chunks_.back();
  return part_of(chunk, chunk.free.begin(), size);
}

StoreMemory SharedArena::part_of(Chunk& chunk, std::map<std::uint64_t, std::uint64_t>::iterator hole,
                                 std::uint64_t size) {
  const auto [offset, length] = *hole;
  chunk.free.erase(hole);
  if (length > size) chunk.free.emplace(offset + size, length - size);
  StoreMemory part;
  part.arena_ = this;
  part.span_ = {chunk.memory.data() + offset, size, chunk.memory.span().fd, offset};
  return part;
}

void SharedArena::give(const transport::MemorySpan& part) noexcept {
  const std::lock_guard lock(mutex_);
  const auto chunk =
      std::find_if(chunks_.begin(), chunks_.end(), [&](const auto& each) { return each->memory.span().fd == part.fd; });
  check(chunk != chunks_.end(), "a part of a store's memory comes back to where it is from");
  // The next store must find zeroes. No fabric has it any more, so that its pages may go.
  if (::fallocate(part.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(part.fd_offset),
                  static_cast<off_t>(part.size)) != 0)
    std::memset(part.data, 0, part.size);
  auto& free = (*chunk)->free;
  auto hole = free.emplace(part.fd_offset, part.size).first;
  if (const auto next = std::next(hole); next != free.end() && next->first == hole->first + hole->second) {
    hole->second += next->second;
    free.erase(next);
  }
  if (hole != free.begin())
    if (const auto before = std::prev(hole); before->first + before->second == hole->first) {
      before->second += hole->second;
      free.erase(hole);
      hole = before;
    }
  if (hole->second == kChunk) chunks_.erase(chunk);
}

Result<std::shared_ptr<NullMemory>> SharedArena::null_memory() {
  const std::lock_guard lock(mutex_);
  if (auto there = null_memory_.lock()) return there;
  auto made = NullMemory::create();
  if (made) null_memory_ = *made;
  return made;
}

}  // namespace rbt::target
