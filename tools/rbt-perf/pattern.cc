#include "tools/rbt-perf/pattern.h"

#include <fmt/format.h>

#include <cstring>

#include "tools/program/crc32c.h"

namespace rbt::tools {

namespace {

constexpr std::uint64_t kMagic = 0x6b636f6c622d7462;  // "bt-block"

struct Header {
  std::uint64_t magic;
  std::uint64_t lba;
  std::uint64_t generation;
  std::uint64_t run;
  std::uint32_t crc;  // of the block with zero here
  std::uint32_t filler;
};
static_assert(sizeof(Header) == 40);

std::uint32_t crc32c(std::span<const std::byte> bytes) {
  Crc32c crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

// The block that belongs to these numbers, but for its checksum.
void fill(std::span<std::byte> block, Lba lba, std::uint64_t generation, std::uint64_t run) {
  std::uint64_t word = (lba.value() * 0x9e3779b97f4a7c15ULL) ^ (generation << 32) ^ run;
  for (std::size_t at = 0; at < block.size(); at += sizeof word) {
    word =
        word * 6364136223846793005ULL + 1442695040888963407ULL;  // Knuth's MMIX generator: enough to be all different
    std::memcpy(block.data() + at, &word, sizeof word);
  }
  const Header header{kMagic, lba.value(), generation, run, 0, 0};
  std::memcpy(block.data(), &header, sizeof header);
}

}  // namespace

void stamp(std::span<std::byte> block, Lba lba, std::uint64_t generation, std::uint64_t run) {
  fill(block, lba, generation, run);
  const std::uint32_t crc = crc32c(block);
  std::memcpy(block.data() + offsetof(Header, crc), &crc, sizeof crc);
}

std::optional<std::string> mismatch(std::span<const std::byte> block, Lba lba, std::uint64_t generation,
                                    std::uint64_t run) {
  Header header{};
  std::memcpy(&header, block.data(), sizeof header);
  const std::string wanted = fmt::format("LBA {} generation {}", lba.value(), generation);
  if (header.magic != kMagic)
    return fmt::format("{}: not a block of ours: it begins with {:016x}", wanted, header.magic);
  if (header.run != run)
    return fmt::format("{}: a block of another run ({:016x}, this is {:016x})", wanted, header.run, run);
  if (header.lba != lba.value()) return fmt::format("{}: the block of LBA {} is here", wanted, header.lba);
  if (header.generation != generation)
    return fmt::format("{}: generation {} is here ({})", wanted, header.generation,
                       header.generation < generation ? "a lost write" : "from the future");
  Crc32c crc;
  const std::uint32_t zero = 0;
  crc.process_bytes(block.data(), offsetof(Header, crc));
  crc.process_bytes(&zero, sizeof zero);
  crc.process_bytes(block.data() + offsetof(Header, filler), block.size() - offsetof(Header, filler));
  if (crc.checksum() != header.crc)
    return fmt::format("{}: checksum {:08x}, computed {:08x}: a torn or damaged block", wanted, header.crc,
                       crc.checksum());
  return std::nullopt;
}

}  // namespace rbt::tools
