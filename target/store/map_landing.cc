#include "target/store/map_landing.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "target/store/map_store.h"

namespace rbt::target {

std::size_t MapLanding::land(std::byte* at, std::span<const std::byte> data) noexcept {
  const auto offset = static_cast<std::uint64_t>(at - store_.mapping()->span().data);
  const auto apart = reinterpret_cast<std::uintptr_t>(data.data()) ^ reinterpret_cast<std::uintptr_t>(at);
  if (apart % store_.block_shift().block_size() == 0) return put(offset, data) ? data.size() : 0;
  // Some page takes its data from two pages. The kernel has to find the second one in the middle, and may rather end there.
  alignas(kUnit) std::array<std::byte, kUnit> page;
  for (std::size_t done = 0; done < data.size();) {
    const std::size_t in_page = (offset + done) % kUnit;
    const auto piece = data.subspan(done, std::min<std::size_t>(kUnit - in_page, data.size() - done));
    std::memcpy(page.data() + in_page, piece.data(), piece.size());
    if (!put(offset + done, {page.data() + in_page, piece.size()})) return 0;
    done += piece.size();
  }
  return 2 * data.size();
}

/// False: `data` cannot be read.
bool MapLanding::put(std::uint64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const std::int64_t moved = write(offset, data);
    if (moved > 0) {
      offset += static_cast<std::uint64_t>(moved);
      data = data.subspan(static_cast<std::size_t>(moved));
    } else if (moved != -EINTR) {
      std::byte probe{};
      if (moved == -EFAULT && copy_from_mapping(data.data(), &probe, 1) != 1) return false;
      fail(offset, data.size(), moved == 0 || moved == -EFAULT ? EIO : static_cast<int>(-moved));
      return true;
    }
  }
  return true;
}

std::int64_t MapLanding::write(std::uint64_t offset, std::span<const std::byte> data) const noexcept {
  // tmpfs: by way of the descriptor it costs half, and a file system that is full says so.
  if (store_.kind() != MapKind::tmpfs)
    return copy_to_mapping(data.data(), store_.mapping()->span().data + offset, data.size());
  const ::ssize_t moved = ::pwrite(store_.file().medium().fd(), data.data(), data.size(), static_cast<::off_t>(offset));
  return moved >= 0 ? moved : -errno;
}

void MapLanding::fail(std::uint64_t offset, std::uint64_t length, int error) {
  store_.report(Intent::write, offset, length, error);
  const std::lock_guard lock(mutex_);
  failed_.push_back({offset, file_status(error, Intent::write)});
  failures_.store(failed_.size(), std::memory_order_relaxed);
}

StoreStatus MapLanding::take(std::uint64_t offset, std::uint64_t length) noexcept {
  if (failures_.load(std::memory_order_relaxed) == 0) return StoreStatus::ok;
  const std::lock_guard lock(mutex_);
  StoreStatus status = StoreStatus::ok;
  std::erase_if(failed_, [&](const Failed& each) {
    const bool ours = each.offset - offset < length;  // an offset below wraps to a huge number
    if (ours && status == StoreStatus::ok) status = each.status;
    return ours;
  });
  failures_.store(failed_.size(), std::memory_order_relaxed);
  return status;
}

}  // namespace rbt::target
