// A file that says it is a shadow image: the header as it is and under a right checksum, and a table of a small disk.

#include <cstring>
#include <vector>

#include "common/nvme/endian.h"
#include "target/store/image_table.h"
#include "target/store/shadow_image.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::target;

namespace {

void same_again(const ShadowLayout& layout) {
  const ShadowHeader header = encode_header(layout);
  const auto parsed = parse_header(header);
  if (!parsed) return;
  check(encode_header(*parsed) == header, "what is accepted is what was written");
  check(parsed->size() > parsed->data_offset() && parsed->size() < std::uint64_t{1} << 48, "sizes do not wrap");
}

/// Every block has a place of its own, or the table is refused.
void table(std::span<const std::byte> input) {
  ShadowLayout layout{BlockShift::of(512).value(), Blocks(64), Blocks(8)};
  std::vector<std::byte> bytes(layout.blocks.value() * ShadowLayout::kEntrySize);
  std::memcpy(bytes.data(), input.data(), std::min(bytes.size(), input.size()));
  ImageTable made(layout);
  const auto loaded = made.load([&](std::uint64_t offset, std::span<std::byte> into) -> Result<void> {
    check(offset - layout.entry_offset(Lba(0)) <= bytes.size() - into.size(), "it is read within the table");
    std::memcpy(into.data(), bytes.data() + (offset - layout.entry_offset(Lba(0))), into.size());
    return {};
  });
  if (!loaded) return check(!loaded.error().message().empty(), "a refusal has a reason");
  std::vector<bool> used(layout.blocks.value() + layout.landing.value());
  for (std::uint64_t lba = 0; lba < layout.blocks.value(); ++lba) {
    const auto place = made.blocks().look(Lba(lba)).place;
    check(!used.at(place), "no two blocks at one place");
    used[place] = true;
  }
  check(made.blocks().free() == layout.landing.value(), "all others are free");
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  if (const auto parsed = parse_header(input)) same_again(*parsed);
  table(input);
  struct Fields {
    nvme::Le64 blocks, landing;
    std::array<std::byte, 16> identity;
    std::uint8_t shift;
  };
  const auto fields = nvme::read_wire<Fields>(input);
  if (!fields) return 0;
  same_again({BlockShift::of(std::uint64_t{512} << fields->shift % 4).value(), Blocks(fields->blocks.get()),
              Blocks(fields->landing.get()), fields->identity});
  return 0;
}
