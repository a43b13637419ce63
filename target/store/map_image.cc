#include "target/store/map_image.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace rbt::target {

namespace {

/// Read by many commands at a time, so that long runs of zeroes are few segments.
constexpr std::uint64_t kZeroes = kMiB;

/// Closed at the end of the scope.
struct Descriptor {
  explicit Descriptor(const std::string& path) : fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd;
};

/// It has no read(2), and is mapped in units of its alignment.
Result<void> read_devdax(int fd, std::vector<std::byte>& bytes) {
  for (const std::uint64_t size : {2 * kMiB, kGiB}) {
    const auto mapping = Mapping::create(fd, size, {.writable = false});
    if (!mapping && size == kGiB) return failure(mapping.error());
    if (!mapping) continue;
    std::memcpy(bytes.data(), mapping->span().data, bytes.size());
    break;
  }
  return {};
}

}  // namespace

Result<std::vector<std::byte>> MapImage::beginning(const std::string& path, MapKind kind) {
  std::vector<std::byte> bytes(ShadowLayout::kHeaderSize);
  const std::string what = fmt::format("store 'map:{}': reading its first bytes", path);
  struct stat about {};
  if (::stat(path.c_str(), &about) != 0) return errno_failure(errno, what);
  if (kind == MapKind::other || (kind != MapKind::devdax && !S_ISREG(about.st_mode))) return std::vector<std::byte>();
  const Descriptor file(path);
  if (file.fd < 0) return errno_failure(errno, what);
  if (kind == MapKind::devdax) {
    if (auto done = read_devdax(file.fd, bytes); !done) return failure(std::move(done.error()).within(what));
    return bytes;
  }
  const auto length = ::pread(file.fd, bytes.data(), bytes.size(), 0);
  if (length < 0) return errno_failure(errno, what);
  bytes.resize(static_cast<std::size_t>(length));
  return bytes;
}

Result<ShadowLayout> MapImage::understand(const std::string& path, const MapFound& found) {
  const std::string what = fmt::format("store 'map:{}'", path);
  if (found.kind == MapKind::other || found.kind == MapKind::fsdax)
    return failure(ErrorKind::unsupported,
                   fmt::format("{}: atomic=shadow serves images on tmpfs, hugetlbfs, in memfds and on devdax, and this "
                               "is {}: copy it there, or make a plain one of it: rbt-target --convert-image FROM TO "
                               "--to raw",
                               what, found.is));
  const auto bytes = beginning(path, found.kind);
  if (!bytes) return failure(bytes.error());
  auto layout = parse_header(*bytes);
  if (!layout) return failure(std::move(layout.error()).within(what));
  return layout;
}

MapImage::MapImage(const ShadowLayout& layout, transport::SharedMemory zeroes)
    : table_(layout), zeroes_(std::move(zeroes)), registered_zeroes_(zeroes_.span(), transport::RemoteAccess::none) {}

Result<std::unique_ptr<MapImage>> MapImage::open(const ShadowLayout& layout, std::uint64_t size,
                                                 const ImageTable::Read& read) {
  // First of all: what follows takes memory by what the header says.
  if (size < layout.size())
    return failure(
        ErrorKind::mismatch,
        fmt::format("its shadow image has {} bytes, and only {} are there: it was cut short", layout.size(), size));
  ShadowHeader header;
  if (auto done = read(0, header); !done) return failure(std::move(done.error()));
  const auto again = parse_header(header);
  if (!again) return failure(again.error());
  if (encode_header(*again) != encode_header(layout))
    return failure(ErrorKind::in_use, "somebody else has just written another header into it");
  auto zeroes = transport::SharedMemory::create(Bytes(kZeroes), {"rbt-map-zeroes", transport::HugePages::never, false});
  if (!zeroes) return failure(std::move(zeroes.error()));
  std::unique_ptr<MapImage> image(new MapImage(layout, std::move(*zeroes)));
  if (auto loaded = image->table_.load(read); !loaded) return failure(std::move(loaded.error()));
  return image;
}

Geometry MapImage::geometry(Geometry geometry) const noexcept {
  geometry.block_shift = layout().block_shift;
  geometry.blocks = layout().blocks;
  geometry.transfer_max =
      std::min(geometry.transfer_max, Bytes(layout().landing.value() << layout().block_shift.value()));
  geometry.write_cache = false;
  geometry.discard = geometry.read_only ? Ability::none : Ability::native;
  geometry.discard_granularity = Blocks(1);
  geometry.discard_reads_zero = !geometry.read_only;
  geometry.write_zeroes = Ability::native;
  geometry.atomic_write = Blocks(1);  // entries change one by one
  geometry.atomic_write_failing = Blocks(1);
  return geometry;
}

}  // namespace rbt::target
