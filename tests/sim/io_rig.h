#pragma once
// A target with one namespace of 4 KiB blocks, an I/O queue to it, and verbs for that.

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "tests/sim/target_rig.h"

namespace rbt::test {

struct IoRig : TargetRig {
  static constexpr std::uint32_t kBlock = 4096;
  static constexpr std::uint64_t kBlocks = 16 * kMiB / kBlock;

  explicit IoRig(RigOptions options = {}) : TargetRig(with_blocks(std::move(options))) {
    association = associate();
    queue = &io_queue(association, Qid(1), 128);
  }
  static RigOptions with_blocks(RigOptions options) {
    if (options.store == RigOptions{}.store) options.store = "ram:size=16MiB,block=4096";
    return options;
  }
  static nvme::SubmissionQueueEntry entry(nvme::IoOpcode opcode, std::uint64_t lba, std::uint64_t count) {
    return nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(count)});
  }
  /// A command that sends `data` from the host's memory.
  Response send(const nvme::SubmissionQueueEntry& sqe, std::span<const std::byte> data) {
    auto from = memory(*queue, data.size());
    std::copy(data.begin(), data.end(), from->bytes().begin());
    return transfer(*queue, sqe, *from, static_cast<std::uint32_t>(data.size()));
  }
  Response write(std::uint64_t lba, std::span<const std::byte> data) {
    return send(entry(nvme::IoOpcode::write, lba, data.size() / kBlock), data);
  }
  Response compare(std::uint64_t lba, std::span<const std::byte> data) {
    return send(entry(nvme::IoOpcode::compare, lba, data.size() / kBlock), data);
  }
  std::vector<std::byte> read(std::uint64_t lba, std::uint64_t count) {
    auto to = memory(*queue, count * kBlock);
    require_ok(
        transfer(*queue, entry(nvme::IoOpcode::read, lba, count), *to, static_cast<std::uint32_t>(count * kBlock)));
    return {to->bytes().begin(), to->bytes().end()};
  }
  Response copy(std::uint64_t to, const std::vector<nvme::CopyRange>& from) {
    return send(
        nvme::encode_copy({.nsid = Nsid(1), .first = Lba(to), .ranges = static_cast<std::uint32_t>(from.size())}),
        copy_ranges(from));
  }
  static std::vector<std::byte> copy_ranges(const std::vector<nvme::CopyRange>& from) {
    std::vector<std::byte> bytes(from.size() * sizeof(nvme::CopyRangeWire));
    for (std::size_t i = 0; i < from.size(); ++i) {
      const auto wire = nvme::encode_copy_range(from[i]);
      std::memcpy(bytes.data() + i * sizeof wire, &wire, sizeof wire);
    }
    return bytes;
  }
  transport::PollGroupCounters counters() {
    transport::PollGroupCounters sum;
    for (const auto& reactor : target->statistics().reactors)
      for (const auto& group : reactor.groups) {
        sum.work_requests += group.counters.work_requests;
        sum.doorbells += group.counters.doorbells;
      }
    return sum;
  }
  Association association;
  RawQueue* queue = nullptr;
};

}  // namespace rbt::test
