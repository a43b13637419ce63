#include "initiator/registration.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "common/check.h"

namespace rbt::initiator {

class RegistrationTable::Buffer final : public RegisteredBuffer {
 public:
  Buffer(RegistrationTable& table, const transport::MemorySpan& memory)
      : registered(memory, transport::RemoteAccess::read_write), table_(table) {}
  ~Buffer() override { table_.remove(*this); }
  [[nodiscard]] const transport::MemorySpan& span() const noexcept override { return registered.memory(); }
  [[nodiscard]] bool overlaps(const transport::MemorySpan& other) const noexcept {
    const std::less<> less;
    return less(span().data, other.data + other.size) && less(other.data, span().data + span().size);
  }
  transport::RegisteredMemory registered;

 private:
  RegistrationTable& table_;
};

Result<std::unique_ptr<RegisteredBuffer>> RegistrationTable::add(const transport::MemorySpan& memory) {
  if (memory.data == nullptr || memory.size == 0)
    return failure(ErrorKind::invalid_argument, "registering a buffer: it has no memory");
  auto buffer = std::make_unique<Buffer>(*this, memory);
  std::unique_lock lock(mutex_);
  const auto fail = [&](Error error) {
    lock.unlock();  // the buffer's destructor takes it
    return failure(std::move(error).within(fmt::format("registering a buffer of {} bytes", memory.size)));
  };
  for (const Buffer* other : buffers_)
    if (other->overlaps(memory))
      return fail(
          Error(ErrorKind::in_use, fmt::format("it overlaps a registered one of {} bytes", other->span().size)));
  for (transport::ProtectionDomain* domain : domains_)
    if (auto registered = buffer->registered.ensure(*domain); !registered) return fail(std::move(registered.error()));
  buffers_.push_back(buffer.get());
  generation_.fetch_add(1, std::memory_order_release);
  return buffer;
}

Result<void> RegistrationTable::add_domain(transport::ProtectionDomain& domain) {
  const std::lock_guard lock(mutex_);
  if (std::find(domains_.begin(), domains_.end(), &domain) != domains_.end()) return {};
  for (Buffer* buffer : buffers_)
    if (auto registered = buffer->registered.ensure(domain); !registered) return registered;
  domains_.push_back(&domain);
  generation_.fetch_add(1, std::memory_order_release);
  return {};
}

void RegistrationTable::append(const transport::ProtectionDomain& domain, std::vector<Reachable>& out) const {
  const std::lock_guard lock(mutex_);
  for (const Buffer* buffer : buffers_)
    if (const transport::MemoryRegion* region = buffer->registered.in(domain))
      out.push_back({buffer->span().data, buffer->span().data + buffer->span().size, region->lkey(), region->rkey(),
                     Lifetime::callers});
}

bool RegistrationTable::empty() const {
  const std::lock_guard lock(mutex_);
  return buffers_.empty();
}

void RegistrationTable::remove(Buffer& buffer) noexcept {
  const std::lock_guard lock(mutex_);
  if (std::erase(buffers_, &buffer) != 0) generation_.fetch_add(1, std::memory_order_release);
}

void ReachableMemory::add_own(transport::RegisteredMemory& memory) {
  const transport::MemoryRegion* const region = memory.in(domain_);
  check(region != nullptr, "a queue pair's own memory is registered with its domain");
  own_.push_back({memory.memory().data, memory.memory().data + memory.memory().size, region->lkey(), region->rkey(),
                  Lifetime::connection});
}

void ReachableMemory::refresh() {
  generation_ = table_.generation();  // before append(): a change in between is seen next time
  sorted_ = own_;
  table_.append(domain_, sorted_);
  std::sort(sorted_.begin(), sorted_.end(),
            [](const Reachable& a, const Reachable& b) { return std::less<>()(a.begin, b.begin); });
}

const Reachable* ReachableMemory::find(const void* data, std::size_t size) {
  // An entry of a buffer that is being destroyed meanwhile is never used: no request may name that memory any more, and
  // the removal is seen before the address can be anybody else's.
  if (generation_ != table_.generation()) refresh();
  const auto* const begin = static_cast<const std::byte*>(data);
  const auto after =
      std::upper_bound(sorted_.begin(), sorted_.end(), begin,
                       [](const std::byte* p, const Reachable& run) { return std::less<>()(p, run.begin); });
  if (after == sorted_.begin()) return nullptr;
  const Reachable& run = *std::prev(after);
  if (!std::less<>()(begin, run.end) || size > static_cast<std::size_t>(run.end - begin)) return nullptr;
  return &run;
}

}  // namespace rbt::initiator
