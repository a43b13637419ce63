// No heap allocation per command: those that only a raw host sends. The host of this rig allocates for each command itself,
// the same for every kind: what a target added for one kind would show beside Flush.

#include <catch2/catch.hpp>

#include "tests/sim/counting_allocator.h"
#include "tests/sim/io_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::Fuse;
using nvme::IoOpcode;

TEST_CASE("Verify, Copy, Dataset Management, Write Zeroes and pairs allocate no more than Flush does") {
  const std::string store =
      GENERATE("ram:size=16MiB,block=4096,atomic=in-place", "ram:size=16MiB,block=4096,atomic=shadow");
  constexpr std::uint32_t kBlock = IoRig::kBlock;
  constexpr std::uint64_t kCommands = 400;
  constexpr std::uint64_t kNoise = kCommands / 8;  // queues that grow by a chunk at a time
  IoRig rig({.store = store});
  auto zeroes = rig.memory(*rig.queue, kBlock);
  auto ranges = rig.memory(*rig.queue, 64);
  const auto entry = [&](unsigned kind, std::uint64_t i) {
    nvme::SubmissionQueueEntry sqe;
    switch (kind) {
      case 0: return nvme::encode_flush(Nsid(1));
      case 1: return IoRig::entry(IoOpcode::verify, i % 100, 4);
      case 2: return IoRig::entry(IoOpcode::write_zeroes, i % 100, 4);
      case 3: sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(200), .ranges = 2}); break;
      case 4:
        sqe = nvme::encode_dataset_management({.nsid = Nsid(1), .ranges = 2, .deallocate = nvme::Deallocate::yes});
        break;
      default:
        sqe = IoRig::half(i % 2 == 0 ? Fuse::first : Fuse::second, 300, 1);
        sqe.sgl = zeroes->keyed(kBlock);
        return sqe;
    }
    sqe.sgl = ranges->keyed(kind == 3 ? 64 : 32);
    return sqe;
  };
  const auto fill = [&](const auto& first, const auto& second) {
    std::memcpy(ranges->bytes().data(), &first, sizeof first);
    std::memcpy(ranges->bytes().data() + sizeof first, &second, sizeof second);
  };
  const auto cost = [&](unsigned kind) {
    if (kind == 3)
      fill(nvme::encode_copy_range({Lba(1), Blocks(4)}), nvme::encode_copy_range({Lba(9), Blocks(4)}));
    else
      fill(nvme::encode_dataset_range({Lba(1), Blocks(4)}), nvme::encode_dataset_range({Lba(9), Blocks(4)}));
    std::uint64_t before = 0;
    for (int round = 0; round < 2; ++round) {  // the first one warms up
      before = allocations();
      for (std::uint64_t i = 0; i < kCommands; i += 2) {
        rig.queue->submit(entry(kind, i));
        rig.queue->submit(entry(kind, i + 1));
        rig.expect([&] { return rig.queue->responses.size() == 2; }, "both are answered");
        CHECK((rig.queue->responses[0].status().ok() && rig.queue->responses[1].status().ok()));
        rig.queue->responses.clear();
      }
    }
    return allocations() - before;
  };
  const std::uint64_t flush = cost(0);
  CHECK(flush > kCommands);  // it counts
  for (unsigned kind = 1; kind <= 5; ++kind) {
    INFO(kind);
    CHECK(cost(kind) < flush + kNoise);
  }
  // And once more, now that there are turns.
  for (unsigned kind = 2; kind <= 4; ++kind) {
    INFO(kind);
    CHECK(cost(kind) < flush + kNoise);
  }
}
