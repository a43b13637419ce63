#include "transport/shm/remote_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "transport/shm/memfd.h"
#include "transport/shm/memory.h"

namespace rbt::transport::shm {

Result<void> RemoteMemory::announce(const AnnounceMessage& message, const Descriptor& descriptor) {
  const auto bad = [&](std::string_view what) {
    return failure(ErrorKind::protocol,
                   fmt::format("the peer announced a region of {} bytes: {}", message.length, what));
  };
  if (!descriptor.valid()) return bad("no descriptor came with it");
  if (regions_.size() >= kRegionsMax)
    return bad(fmt::format("it has announced {} already, which is the limit", regions_.size()));
  if (message.key == 0 || regions_.find(message.key) != nullptr) return bad("its key is zero or in use");
  if (message.access < static_cast<std::uint32_t>(RemoteAccess::read) ||
      message.access > static_cast<std::uint32_t>(RemoteAccess::read_write))
    return bad(fmt::format("access rights {} do not exist", message.access));
  if (message.length == 0 || message.length > ~message.base || message.length > ~message.fd_offset)
    return bad("it is empty or wraps around");
  const auto access = static_cast<RemoteAccess>(message.access);
  auto mapping = map(descriptor, message.fd_offset + message.length, access != RemoteAccess::read);
  if (!mapping) return bad(mapping.error().message());
  regions_.insert(message.key, Window{.data = mappings_[*mapping].data + message.fd_offset,
                                      .base = message.base,
                                      .length = message.length,
                                      .mapping = *mapping,
                                      .access = access});
  ++mappings_[*mapping].regions;
  return {};
}

Result<std::uint32_t> RemoteMemory::map(const Descriptor& descriptor, std::uint64_t end, bool writable) {
  auto file = inspect_memfd(descriptor.get());
  if (!file) return failure(std::move(file.error()));
  if (file->huge && !limits_.huge_pages)
    return failure(ErrorKind::unsupported,
                   "it is on huge pages, which this side takes only from its own user or root (docs/shm.md)");
  if (end > file->size) return failure(ErrorKind::protocol, fmt::format("its memfd has only {} bytes", file->size));
  for (std::uint32_t i = 0; i < mappings_.size(); ++i) {
    const Mapping& known = mappings_[i];
    if (known.data != nullptr && known.device == file->device && known.inode == file->inode && end <= known.size &&
        (known.writable || !writable))
      return i;
  }
  const auto slot = static_cast<std::uint32_t>(
      std::find_if(mappings_.begin(), mappings_.end(), [](const Mapping& m) { return m.data == nullptr; }) -
      mappings_.begin());
  if (slot >= limits_.mappings_max)
    return failure(ErrorKind::resource, fmt::format("it is in memfd number {} of this connection: {} are allowed",
                                                    slot + 1, limits_.mappings_max));
  if (file->size > limits_.mapped_bytes_max - mapped_bytes_)
    return failure(ErrorKind::resource,
                   fmt::format("its memfd has {} bytes and {} are mapped already: {} are allowed for one connection",
                               file->size, mapped_bytes_, limits_.mapped_bytes_max));
  // Sealed against shrinking, so every page up to file->size is there for as long as the mapping.
  void* const data =
      ::mmap(nullptr, file->size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, descriptor.get(), 0);
  if (data == MAP_FAILED) return errno_failure(errno, "mapping it");
  if (slot == mappings_.size()) mappings_.emplace_back();
  mappings_[slot] = Mapping{static_cast<std::byte*>(data), file->size, file->device, file->inode, writable, 0};
  mapped_bytes_ += file->size;
  return slot;
}

void RemoteMemory::release(std::uint32_t mapping) noexcept {
  Mapping& entry = mappings_[mapping];
  if (--entry.regions != 0) return;
  ::munmap(entry.data, entry.size);
  mapped_bytes_ -= entry.size;
  entry = Mapping{};
}

bool RemoteMemory::revoke(std::uint32_t key) {
  const Window* const window = regions_.find(key);
  if (window == nullptr) return false;
  const std::uint32_t mapping = window->mapping;
  regions_.erase(key);
  release(mapping);
  return true;
}

void RemoteMemory::invalidate(std::uint32_t key) {
  if (Window* const window = regions_.find(key)) window->invalidated = true;
}

void RemoteMemory::clear() noexcept {
  regions_.clear();
  for (const Mapping& mapping : mappings_)
    if (mapping.data != nullptr) ::munmap(mapping.data, mapping.size);
  mappings_.clear();
  mapped_bytes_ = 0;
}

RemoteMemory::Found RemoteMemory::find(std::uint32_t key, std::uint64_t address, std::uint64_t length,
                                       Use use) noexcept {
  const Window* const window = regions_.find(key);
  if (window == nullptr) return {Found::Verdict::unknown_key, nullptr};
  const std::uint64_t offset = address - window->base;  // an address below the base wraps to a huge offset
  if (window->invalidated || offset > window->length || length > window->length - offset)
    return {Found::Verdict::refused, nullptr};
  const RemoteAccess needed = use == Use::read ? RemoteAccess::read : RemoteAccess::write;
  if (window->access != needed && window->access != RemoteAccess::read_write) return {Found::Verdict::refused, nullptr};
  return {Found::Verdict::granted, window->data + offset};
}

}  // namespace rbt::transport::shm
