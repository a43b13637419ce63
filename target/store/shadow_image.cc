#include "target/store/shadow_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cstring>

#include "common/nvme/endian.h"
#include "target/store/shadow.h"

namespace rbt::target {

namespace {

using nvme::Le32;
using nvme::Le64;

constexpr std::array<char, 16> kMagic{'r', 'b', 't', ' ', 's', 'h', 'a', 'd', 'o', 'w', ' ', 'i', 'm', 'a', 'g', 'e'};
constexpr std::uint32_t kVersion = 1;

/// docs/shadow_image.md
struct Header {
  std::array<char, 16> magic;
  Le32 version;
  Le32 block_size;
  Le64 blocks;
  Le64 landing;
  Le64 table_offset;
  Le64 data_offset;
  Identity identity;
  std::array<std::byte, 4020> zero;
  Le32 checksum;  // crc32c of all that is before it
};
static_assert(sizeof(Header) == ShadowLayout::kHeaderSize && alignof(Header) == 1);
static_assert(offsetof(Header, version) == 16 && offsetof(Header, block_size) == 20);
static_assert(offsetof(Header, blocks) == 24 && offsetof(Header, landing) == 32);
static_assert(offsetof(Header, table_offset) == 40 && offsetof(Header, data_offset) == 48);
static_assert(offsetof(Header, identity) == 56 && offsetof(Header, checksum) == 4092);

std::uint32_t checksum(std::span<const std::byte> header) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(header.data(), offsetof(Header, checksum));
  return crc.checksum();
}

tl::unexpected<Error> damaged(const std::string& what) {
  return failure(ErrorKind::mismatch, "the header of its shadow image is damaged or not ours: " + what);
}

}  // namespace

Result<ShadowLayout> ShadowLayout::plan(Blocks blocks, BlockShift block_shift, const Identity& identity) {
  const std::uint64_t most = BlockTable::kPlacesMax - block_shift.blocks(kLandingMax).value();
  if (blocks.value() == 0 || blocks.value() > most)
    return failure(ErrorKind::unsupported,
                   fmt::format("{} blocks of {} are not possible in a shadow image: 1 to {} are", blocks.value(),
                               block_shift.block_size(), most));
  const Bytes size(blocks.value() << block_shift.value());
  return ShadowLayout{block_shift, blocks, block_shift.blocks(landing_size(size)), identity};
}

ShadowHeader encode_header(const ShadowLayout& layout) noexcept {
  Header header{};
  header.magic = kMagic;
  header.version = kVersion;
  header.block_size = layout.block_shift.block_size();
  header.blocks = layout.blocks.value();
  header.landing = layout.landing.value();
  header.table_offset = layout.entry_offset(Lba(0));
  header.data_offset = layout.data_offset();
  header.identity = layout.identity;
  ShadowHeader bytes;
  std::memcpy(bytes.data(), &header, sizeof header);
  header.checksum = checksum(bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

bool begins_like_shadow_image(std::span<const std::byte> beginning) noexcept {
  return beginning.size() >= kMagic.size() && std::memcmp(beginning.data(), kMagic.data(), kMagic.size()) == 0;
}

Result<ShadowLayout> parse_header(std::span<const std::byte> bytes) {
  const auto header = nvme::read_wire<Header>(bytes);
  if (!header) return damaged(fmt::format("there are {} bytes, it has {}", bytes.size(), sizeof(Header)));
  if (!begins_like_shadow_image(bytes))
    return failure(ErrorKind::mismatch,
                   "it is no image in rbt's shadow format, which begins with \"rbt shadow image\": make one of it, "
                   "rbt-target --convert-image FROM TO --to shadow");
  if (header->version.get() != kVersion)
    return failure(ErrorKind::unsupported,
                   fmt::format("it is a shadow image of version {}; this rbt knows version {}: convert it with the one "
                               "that made it",
                               header->version.get(), kVersion));
  if (const std::uint32_t sum = checksum(bytes); header->checksum.get() != sum)
    return damaged(fmt::format("its checksum is {:08x}, that of its bytes {:08x}", header->checksum.get(), sum));
  const auto shift = BlockShift::of(header->block_size.get());
  if (!shift)
    return damaged(fmt::format("blocks of {} bytes: 512, 1024, 2048 and 4096 are allowed", header->block_size.get()));
  // Compared by subtraction: the numbers are anybody's.
  if (header->blocks.get() == 0 || header->blocks.get() >= BlockTable::kPlacesMax)
    return damaged(fmt::format("{} blocks: 1 to {} are allowed", header->blocks.get(), BlockTable::kPlacesMax - 1));
  const std::uint64_t most = BlockTable::kPlacesMax - header->blocks.get();
  if (header->landing.get() == 0 || header->landing.get() > most)
    return damaged(fmt::format("{} landing blocks: 1 to {} are allowed", header->landing.get(), most));
  const ShadowLayout layout{*shift, Blocks(header->blocks.get()), Blocks(header->landing.get()), header->identity};
  if (header->table_offset.get() != layout.entry_offset(Lba(0)) || header->data_offset.get() != layout.data_offset())
    return damaged(fmt::format("table and data begin at {} and {}: {} and {} are where", header->table_offset.get(),
                               header->data_offset.get(), layout.entry_offset(Lba(0)), layout.data_offset()));
  if (layout.identity == Identity{}) return damaged("its identity is all zeroes");
  return layout;
}

}  // namespace rbt::target
