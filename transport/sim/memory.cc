#include "transport/sim/memory.h"

#include "common/check.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

bool within(const KeyTable::Entry& entry, std::uint64_t address, std::uint64_t length) noexcept {
  const auto start = reinterpret_cast<std::uintptr_t>(entry.data);
  return address >= start && address - start <= entry.size && length <= entry.size - (address - start);
}

bool allows(RemoteAccess granted, RemoteAccess wanted) noexcept {
  return granted == wanted || granted == RemoteAccess::read_write;
}

constexpr const char* kOneThread = "memory of the simulated world is registered and deregistered by its one thread";

}  // namespace

std::uint32_t KeyTable::add(const Domain& domain, std::byte* data, std::size_t size, RemoteAccess access) {
  check(std::this_thread::get_id() == owner_, kOneThread);
  std::uint32_t index;
  if (free_.empty()) {
    index = static_cast<std::uint32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    const auto pick = random_.below(free_.size());  // any free one: keys come back when nobody expects it
    index = free_[pick];
    free_[pick] = free_.back();
    free_.pop_back();
  }
  const auto tag = static_cast<std::uint32_t>(1 + random_.below(255));
  Entry& entry = entries_[index];
  entry = {(index << 8) | tag, &domain, data, size, access, false};
  check((entry.key & kLocalBit) == 0, "fewer than 2^23 regions at a time");
  return entry.key;
}

void KeyTable::remove(std::uint32_t rkey) noexcept {
  check(std::this_thread::get_id() == owner_, kOneThread);
  Entry& entry = entries_[rkey >> 8];
  check(entry.key == rkey, "a region is deregistered once");
  entry = {};
  free_.push_back(rkey >> 8);
}

const KeyTable::Entry* KeyTable::find(const Domain& domain, std::uint32_t rkey) const noexcept {
  const std::uint32_t index = rkey >> 8;
  if (rkey == 0 || index >= entries_.size()) return nullptr;
  const Entry& entry = entries_[index];
  return entry.key == rkey && entry.domain == &domain ? &entry : nullptr;
}

std::byte* KeyTable::remote(const Domain& domain, std::uint32_t rkey, std::uint64_t address, std::uint64_t length,
                            RemoteAccess wanted) const noexcept {
  const Entry* entry = find(domain, rkey);
  if (entry == nullptr || entry->invalidated || !allows(entry->access, wanted) || !within(*entry, address, length))
    return nullptr;
  return entry->data + (address - reinterpret_cast<std::uintptr_t>(entry->data));
}

bool KeyTable::local(const Domain& domain, const Segment& segment) const noexcept {
  if ((segment.lkey & kLocalBit) == 0) return false;
  const Entry* entry = find(domain, segment.lkey & ~kLocalBit);
  return entry != nullptr && within(*entry, reinterpret_cast<std::uintptr_t>(segment.data), segment.length);
}

bool KeyTable::invalidate(const Domain& domain, std::uint32_t rkey) noexcept {
  if (const Entry* found = find(domain, rkey);
      found == nullptr || found->invalidated || found->access == RemoteAccess::none)
    return false;
  entries_[rkey >> 8].invalidated = true;
  return true;
}

/// A registration. Destroying it is the fence: every packet looks its key up again.
class Region final : public MemoryRegion {
 public:
  Region(Domain& domain, const MemorySpan& memory, std::uint32_t rkey) noexcept
      : MemoryRegion(memory, rkey | KeyTable::kLocalBit, rkey), domain_(domain) {
    ++domain_.regions_;
  }
  ~Region() override {
    domain_.world_.keys().remove(rkey());
    --domain_.regions_;
  }

 private:
  Domain& domain_;
};

Result<std::unique_ptr<MemoryRegion>> Domain::register_memory(const MemorySpan& memory, RemoteAccess access) {
  if (memory.data == nullptr || memory.size == 0)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("registering memory with {}: no bytes given; at least 1 is needed", name_));
  if (removed_)
    return failure(
        ErrorKind::not_found,
        fmt::format("registering {} bytes with {}: the device was removed; open another", memory.size, name_));
  if (world_.fails(Operation::register_memory, machine_))
    return failure(ErrorKind::resource,
                   fmt::format("registering {} bytes with {}: RLIMIT_MEMLOCK (simulated fault) is used up; raise it "
                               "with `ulimit -l`",
                               memory.size, name_));
  const std::uint32_t rkey = world_.keys().add(*this, memory.data, memory.size, access);
  return std::make_unique<Region>(*this, memory, rkey);
}

}  // namespace rbt::transport::sim
