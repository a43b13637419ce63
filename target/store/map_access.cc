#include "target/store/map_access.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace rbt::target {

using transport::coherence::Passage;

namespace {

/// Until all of it has moved, the file ends, or something fails: bytes moved, or -errno.
template <typename Call>
std::int64_t all_of(std::uint64_t length, Call&& call) {
  std::uint64_t moved = 0;
  while (moved < length) {
    const std::int64_t result = call(moved, length - moved);
    if (result == -EINTR) continue;
    if (result < 0 && moved == 0) return result;
    if (result <= 0) break;
    moved += static_cast<std::uint64_t>(result);
  }
  return static_cast<std::int64_t>(moved);
}

std::int64_t result_of(ssize_t result) noexcept {
  return result >= 0 ? result : -errno;
}

}  // namespace

bool MapAccess::mapped(std::uint64_t end) const noexcept {
  // tmpfs: the same pages by way of the descriptor, which also works when the file is somebody else's for the moment.
  return store_.mapping() != nullptr && store_.kind() != MapKind::tmpfs && end <= store_.mapping()->span().size;
}

StoreStatus MapAccess::read(std::uint64_t offset, std::span<std::byte> data) {
  const std::uint64_t end = offset + data.size();
  std::int64_t moved = 0;
  if (mapped(end)) {
    const std::byte* const place = store_.mapping()->span().data + offset;
    moved = all_of(data.size(), [&](std::uint64_t at, std::uint64_t left) {
      return copy_from_mapping(place + at, data.data() + at, left);
    });
  } else {
    moved = all_of(data.size(), [&](std::uint64_t at, std::uint64_t left) {
      return result_of(::pread(store_.file().medium().fd(), data.data() + at, left, static_cast<::off_t>(offset + at)));
    });
  }
  return ended(end, data.size(), moved, Intent::read);
}

StoreStatus MapAccess::write(std::uint64_t offset, std::span<const std::byte> data) {
  const std::uint64_t end = offset + data.size();
  if (mapped(end)) {
    const auto pass = use_.enter();
    if (pass || store_.mapping()->persistence() == Persistence::none) {
      std::byte* const place = store_.mapping()->span().data + offset;
      const std::int64_t moved = all_of(data.size(), [&](std::uint64_t at, std::uint64_t left) {
        return copy_to_mapping(data.data() + at, place + at, left);
      });
      if (!pass) return ended(end, data.size(), moved, Intent::write);
      if (moved > 0) store_.mapping()->persist(offset, static_cast<std::uint64_t>(moved));
      if (use_.leave(pass) == Passage::clean) return ended(end, data.size(), moved, Intent::write);
    }
  }
  // A write behind the end would make a file that has shrunk longer again, with a hole that nobody wrote.
  if (!store_.file().reaches(end)) return StoreStatus::out_of_range;
  unsynced_ = store_.kind() == MapKind::fsdax;
  const std::int64_t moved = all_of(data.size(), [&](std::uint64_t at, std::uint64_t left) {
    return result_of(::pwrite(store_.file().medium().fd(), data.data() + at, left, static_cast<::off_t>(offset + at)));
  });
  return ended(end, data.size(), moved, Intent::write);
}

StoreStatus MapAccess::zero(std::uint64_t offset, std::uint64_t length) {
  while (length != 0) {
    const std::uint64_t piece = std::min<std::uint64_t>(length, ZeroPages::kSize);
    if (const auto status = write(offset, {store_.file().zeroes().data(), piece}); status != StoreStatus::ok)
      return status;
    offset += piece;
    length -= piece;
  }
  return StoreStatus::ok;
}

StoreStatus MapAccess::ended(std::uint64_t end, std::uint64_t length, std::int64_t moved, Intent intent) const {
  if (moved == static_cast<std::int64_t>(length)) return StoreStatus::ok;
  const int error = moved < 0 ? static_cast<int>(-moved) : 0;
  if ((error == 0 || error == EFAULT) && !store_.file().reaches(end)) return StoreStatus::out_of_range;
  const int seen = error == 0 || error == EFAULT ? EIO : error;
  store_.report(intent, end - length, length, seen);
  return file_status(seen, intent);
}

}  // namespace rbt::target
