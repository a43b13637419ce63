#pragma once
// A target with one namespace of 4 KiB blocks, an I/O queue to it, and verbs for that.

#include <algorithm>
#include <memory>
#include <ostream>
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
  struct Pair {
    nvme::Status compare;
    nvme::Status write;
    friend bool operator==(const Pair&, const Pair&) = default;
    friend std::ostream& operator<<(std::ostream& out, const Pair& pair) {
      return out << nvme::describe(pair.compare) << ", then " << nvme::describe(pair.write);
    }
  };
  static nvme::SubmissionQueueEntry half(nvme::Fuse which, std::uint64_t lba, std::uint64_t count) {
    auto sqe = entry(which == nvme::Fuse::first ? nvme::IoOpcode::compare : nvme::IoOpcode::write, lba, count);
    sqe.flags = static_cast<std::uint8_t>(sqe.flags | static_cast<unsigned>(which));
    return sqe;
  }
  /// A fused Compare and Write of `from` (not null: on that queue).
  Pair compare_and_write(std::uint64_t lba, std::span<const std::byte> expected, std::span<const std::byte> data,
                         RawQueue* from = nullptr) {
    RawQueue& on = from != nullptr ? *from : *queue;
    auto place = memory(on, expected.size() + data.size());
    std::copy(data.begin(), data.end(), std::copy(expected.begin(), expected.end(), place->bytes().begin()));
    auto first = half(nvme::Fuse::first, lba, expected.size() / kBlock);
    auto second = half(nvme::Fuse::second, lba, data.size() / kBlock);
    first.sgl = place->keyed(static_cast<std::uint32_t>(expected.size()));
    second.sgl = place->keyed(static_cast<std::uint32_t>(data.size()), static_cast<std::uint32_t>(expected.size()));
    const std::uint16_t first_cid = on.submit(first);
    const std::uint16_t second_cid = on.submit(second);
    return pair(on, first_cid, second_cid);
  }
  Pair pair(RawQueue& on, std::uint16_t first, std::uint16_t second) {
    std::optional<Response> compared, written;
    expect([&] { return (compared = on.take(first)).has_value(); }, "the first half is answered");
    expect([&] { return (written = on.take(second)).has_value(); }, "the second half is answered");
    return {compared->status(), written->status()};
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
