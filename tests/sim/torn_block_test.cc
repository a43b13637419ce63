// A logical block is whole, always: writers that are cut off in the middle of their transfers, beside readers of the same
// blocks.

#include <catch2/catch.hpp>
#include <cstring>

#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::IoOpcode;

namespace {

constexpr std::uint32_t kBlocks = 4;  // that everybody writes and reads
constexpr int kCuts = 200;

struct Torn {
  int mixed = 0;    // blocks that were read half old and half new
  int changed = 0;  // rounds after which the blocks were not as before: writes did get through
  int cut = 0;      // rounds whose writes were not answered
};

/// `bytes` as blocks that say in every word what they are.
void describe(std::span<std::byte> bytes, std::uint64_t what) {
  for (std::size_t at = 0; at < bytes.size(); at += sizeof what)
    std::memcpy(&bytes[at], &what, sizeof what);
}

int count_mixed(std::span<const std::byte> bytes, std::uint32_t block_size) {
  int mixed = 0;
  for (std::size_t at = 0; at < bytes.size(); at += block_size) {
    const auto block = bytes.subspan(at, block_size);
    mixed += std::memcmp(block.data(), block.data() + 8, block_size - 8) != 0 ? 1 : 0;
  }
  return mixed;
}

/// A reader on one queue pair, writers that die on another.
class Cutter {
 public:
  Cutter(const std::string& spec, std::uint32_t block_size, std::uint32_t path_mtu, std::uint64_t seed)
      : block_size_(block_size),
        bytes_(kBlocks * block_size),
        rig_({.network = {.seed = seed, .path_mtu = path_mtu}, .store = spec + ",block=" + std::to_string(block_size)}),
        association_(rig_.associate()),
        reader_(rig_.io_queue(association_, Qid(1))),
        from_(rig_.memory(reader_, 2 * bytes_)),
        to_(rig_.memory(reader_, 2 * bytes_)) {
    describe(from_->bytes(), 0);
    REQUIRE(rig_.transfer(reader_, command(IoOpcode::write), *from_, bytes_).status().ok());
  }

  Torn run() {
    for (int round = 1; round <= kCuts; ++round)
      cut_one(static_cast<std::uint64_t>(round));
    return torn_;
  }
  /// What the target says of them.
  [[nodiscard]] std::uint64_t writes_cut_off() {
    std::uint64_t sum = 0;
    for (const auto& reactor : rig_.target->statistics().reactors)
      sum += reactor.writes_cut_off;
    return sum;
  }
  TargetRig& rig() { return rig_; }

 private:
  static nvme::SubmissionQueueEntry command(IoOpcode opcode) {
    return nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(0), .count = Blocks(kBlocks)});
  }
  std::uint16_t submit(RawQueue& queue, IoOpcode opcode, HostMemory& memory, std::uint32_t offset) {
    auto sqe = command(opcode);
    sqe.sgl = memory.keyed(bytes_, offset);
    return queue.submit(sqe);
  }
  void look(std::uint32_t offset) { torn_.mixed += count_mixed(to_->bytes().subspan(offset, bytes_), block_size_); }

  void cut_one(std::uint64_t round) {
    RawQueue& writer = rig_.io_queue(association_, Qid(2));
    // Two writes and two reads at a time, on the same blocks.
    describe(from_->bytes().first(bytes_), 2 * round);
    describe(from_->bytes().subspan(bytes_), 2 * round + 1);
    submit(writer, IoOpcode::write, *from_, 0);
    const auto first = submit(reader_, IoOpcode::read, *to_, 0);
    submit(writer, IoOpcode::write, *from_, bytes_);
    const auto second = submit(reader_, IoOpcode::read, *to_, bytes_);
    for (auto steps = rig_.network.random().below(100); steps > 0; --steps)
      if (!rig_.network.step()) break;
    if (writer.responses.size() < 2) ++torn_.cut;
    if (writer.connection != nullptr) writer.connection->close();
    for (const auto cid : {first, second})
      rig_.expect([&] { return reader_.take(cid).has_value(); }, "reads are answered whoever dies");
    look(0);
    look(bytes_);
    rig_.expect([&] { return writer.closed && rig_.target->statistics().connections() == 2; }, "the writer is gone");
    REQUIRE(rig_.transfer(reader_, command(IoOpcode::read), *to_, bytes_).status().ok());
    look(0);
    std::uint64_t now = 0;
    std::memcpy(&now, to_->bytes().data(), sizeof now);
    if (now >= 2 * round) ++torn_.changed;
  }

  std::uint32_t block_size_;
  std::uint32_t bytes_;
  TargetRig rig_;
  Association association_;
  RawQueue& reader_;
  std::unique_ptr<HostMemory> from_;
  std::unique_ptr<HostMemory> to_;
  Torn torn_;
};

}  // namespace

TEST_CASE("No block is ever read half new, however its writer ends") {
  struct Case {
    const char* spec;
    std::uint32_t block_size;
    std::uint32_t path_mtu;
  };
  const auto [spec, block_size, path_mtu] = GENERATE(Case{"ram:size=1MiB", 4096, 1024},                   // shadow
                                                     Case{"ram:size=1MiB,atomic=shadow", 512, 256},       //
                                                     Case{"ram:size=1MiB", 512, 256},                     // staged
                                                     Case{"ram:size=1MiB", 512, 1024},                    // in place
                                                     Case{"ram:size=1MiB,atomic=in-place", 4096, 4096});  //
  const auto seed = GENERATE(1u, 2u, 3u);
  INFO(spec << " blocks of " << block_size << " packets of " << path_mtu << " seed " << seed);
  Cutter cutter(spec, block_size, path_mtu, seed);
  const Torn torn = cutter.run();
  CHECK(torn.mixed == 0);
  CHECK(torn.cut > kCuts / 8);
  CHECK(cutter.writes_cut_off() > kCuts / 8);
  CHECK(torn.changed > kCuts / 8);
}

TEST_CASE("Forced in place, with packets smaller than a block, blocks are torn") {
  Cutter cutter("ram:size=1MiB,atomic=in-place", 4096, 1024, 1);
  const Torn torn = cutter.run();
  CHECK(torn.mixed > 0);
  CHECK(cutter.rig().logger.said("half new"));
}

TEST_CASE("Copies are counted: none for ram by the fabric's hands, one for data in a capsule or by way of a buffer") {
  const auto copied_by = [](const std::string& spec, std::uint32_t path_mtu, bool in_capsule) {
    TargetRig rig({.network = {.path_mtu = path_mtu}, .store = spec});
    const auto association = rig.associate();
    RawQueue& queue = rig.io_queue(association, Qid(1));
    const auto sum = [&] {
      std::uint64_t bytes = 0;
      for (const auto& reactor : rig.target->statistics().reactors)
        bytes += reactor.bytes_copied;
      return bytes;
    };
    const auto data = some_bytes(4096, 1);
    auto memory = rig.memory(queue, 4096);
    const auto command = [](IoOpcode opcode, std::uint64_t blocks) {
      return nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(3), .count = Blocks(blocks)});
    };
    const std::uint64_t blocks = spec.find("block=4096") != std::string::npos ? 1 : 8;
    auto write = command(IoOpcode::write, blocks);
    const std::uint64_t before = sum();
    if (in_capsule) {
      write.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, 4096});
      TargetRig::require_ok(rig.execute(queue, write, data));
    } else {
      TargetRig::require_ok(rig.transfer(queue, write, *memory, 4096));
    }
    TargetRig::require_ok(rig.transfer(queue, command(IoOpcode::read, blocks), *memory, 4096));
    return sum() - before;
  };
  CHECK(copied_by("ram:size=1MiB", 4096, false) == 0);
  CHECK(copied_by("ram:size=1MiB,block=4096", 1024, false) == 0);  // shadow
  CHECK(copied_by("ram:size=1MiB", 256, false) == 4096);           // staged
  CHECK(copied_by("ram:size=1MiB", 4096, true) == 4096);
  CHECK(copied_by("null:size=1MiB", 4096, false) == 0);
}
