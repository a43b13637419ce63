// Read, Write, Flush, Write Zeroes, Dataset Management over a RAM namespace.

#include <catch2/catch.hpp>

#include "tests/sim/io_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = IoRig::kBlock;
constexpr std::uint64_t kBlocks = IoRig::kBlocks;

}  // namespace

TEST_CASE("What was written is read back, from one block to a megabyte") {
  IoRig rig;
  std::uint64_t lba = 3;
  for (const std::uint64_t blocks : {1u, 2u, 7u, 64u, 256u}) {
    const auto data = some_bytes(blocks * kBlock, blocks);
    REQUIRE(rig.write(lba, data).status().ok());
    CHECK(rig.read(lba, blocks) == data);
    lba += blocks;
  }
  CHECK(rig.read(3, 1) == some_bytes(kBlock, 1));
}

TEST_CASE("In-capsule data is written from where it lies in the capsule") {
  IoRig rig;
  const auto data = some_bytes(kBlock, 5);
  auto sqe = IoRig::entry(IoOpcode::write, 9, 1);
  sqe.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock});
  REQUIRE(rig.execute(*rig.queue, sqe, data).status().ok());
  CHECK(rig.read(9, 1) == data);
}

TEST_CASE("A namespace of 512-byte blocks moves 512-byte blocks") {
  TargetRig rig({.store = "ram:size=1MiB,block=512"});
  const auto association = rig.associate();
  RawQueue& queue = rig.io_queue(association, Qid(1));
  auto memory = rig.memory(queue, 1024);
  const auto data = some_bytes(1024, 1);
  std::copy(data.begin(), data.end(), memory->bytes().begin());
  const auto sqe = [](IoOpcode opcode) {
    return nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(2046), .count = Blocks(2)});
  };
  REQUIRE(rig.transfer(queue, sqe(IoOpcode::write), *memory, 1024).status().ok());
  std::fill(memory->bytes().begin(), memory->bytes().end(), std::byte{0});
  REQUIRE(rig.transfer(queue, sqe(IoOpcode::read), *memory, 1024).status().ok());
  CHECK(std::equal(data.begin(), data.end(), memory->bytes().begin()));
}

TEST_CASE("The key is invalidated if, and only if, the host asks for it") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, kBlock);
  auto sqe = IoRig::entry(IoOpcode::read, 0, 1);
  sqe.sgl = memory->keyed(kBlock);
  CHECK_FALSE(rig.execute(*rig.queue, sqe).invalidated.has_value());
  sqe.sgl = memory->keyed(kBlock, 0, nvme::RemoteInvalidate::yes);
  CHECK(rig.execute(*rig.queue, sqe).invalidated == memory->rkey());
}

TEST_CASE("The key of a command that fails is invalidated, too") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, kBlock);
  auto sqe = IoRig::entry(IoOpcode::read, kBlocks, 1);
  sqe.sgl = memory->keyed(kBlock, 0, nvme::RemoteInvalidate::yes);
  const auto response = rig.execute(*rig.queue, sqe);
  CHECK(response.code() == StatusCode::lba_out_of_range);
  CHECK(response.invalidated == memory->rkey());
}

TEST_CASE("A read is two work requests and one doorbell, a write two and two") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, kBlock);
  auto before = rig.counters();
  REQUIRE(rig.transfer(*rig.queue, IoRig::entry(IoOpcode::read, 0, 1), *memory, kBlock).status().ok());
  auto after = rig.counters();
  CHECK(after.work_requests - before.work_requests == 2);  // WRITE, SEND
  CHECK(after.doorbells - before.doorbells == 1);
  before = after;
  REQUIRE(rig.transfer(*rig.queue, IoRig::entry(IoOpcode::write, 0, 1), *memory, kBlock).status().ok());
  after = rig.counters();
  CHECK(after.work_requests - before.work_requests == 2);  // READ, SEND
  CHECK(after.doorbells - before.doorbells == 2);
  before = after;
  auto sqe = IoRig::entry(IoOpcode::write, 0, 1);
  sqe.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock});
  REQUIRE(rig.execute(*rig.queue, sqe, memory->bytes()).status().ok());
  after = rig.counters();
  CHECK(after.work_requests - before.work_requests == 1);  // SEND
}

TEST_CASE("Ranges beyond the namespace are refused, also where they wrap") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, 2 * kBlock);
  const auto code = [&](std::uint64_t lba, std::uint64_t count) {
    return rig
        .transfer(*rig.queue, IoRig::entry(IoOpcode::read, lba, count), *memory,
                  static_cast<std::uint32_t>(count * kBlock))
        .code();
  };
  CHECK(code(kBlocks - 1, 1) == StatusCode::success);
  CHECK(code(kBlocks - 1, 2) == StatusCode::lba_out_of_range);
  CHECK(code(kBlocks, 1) == StatusCode::lba_out_of_range);
  CHECK(code(~std::uint64_t{0}, 1) == StatusCode::lba_out_of_range);
  CHECK(code(~std::uint64_t{0}, 2) == StatusCode::lba_out_of_range);
}

TEST_CASE("More than MDTS, and the largest block count there is, are Invalid Field") {
  IoRig rig({.store = "null:size=1GiB,block=4096"});
  auto memory = rig.memory(*rig.queue, 257 * kBlock);
  CHECK(rig.transfer(*rig.queue, IoRig::entry(IoOpcode::read, 0, 256), *memory, 256 * kBlock).status().ok());
  CHECK(rig.transfer(*rig.queue, IoRig::entry(IoOpcode::read, 0, 257), *memory, 257 * kBlock).code() ==
        StatusCode::invalid_field);
  CHECK(rig.transfer(*rig.queue, IoRig::entry(IoOpcode::read, 0, 65536), *memory, kBlock).code() ==
        StatusCode::invalid_field);
}

TEST_CASE("The data pointer's length must be the command's") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, 2 * kBlock);
  for (const auto opcode : {IoOpcode::read, IoOpcode::write})
    for (const std::uint32_t length : {0u, 512u, kBlock - 1, kBlock + 1, 2 * kBlock})
      CHECK(rig.transfer(*rig.queue, IoRig::entry(opcode, 0, 1), *memory, length).code() ==
            StatusCode::sgl_invalid_length);
}

TEST_CASE("Unknown namespaces and opcodes are refused") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, kBlock);
  for (const std::uint32_t nsid : {0u, 2u, 1024u, 0xfffffffeu, 0xffffffffu}) {
    auto sqe = IoRig::entry(IoOpcode::read, 0, 1);
    sqe.nsid = nsid;
    CHECK(rig.transfer(*rig.queue, sqe, *memory, kBlock).code() == StatusCode::invalid_namespace);
  }
  CHECK(rig.transfer(*rig.queue, IoRig::entry(IoOpcode::write_uncorrectable, 0, 1), *memory, kBlock).code() ==
        StatusCode::invalid_opcode);
}

TEST_CASE("Flush reaches one namespace or all, and no other") {
  IoRig rig;
  CHECK(rig.execute(*rig.queue, nvme::encode_flush(Nsid(1))).status().ok());
  CHECK(rig.execute(*rig.queue, nvme::encode_flush(nvme::kNsidAll)).status().ok());
  CHECK(rig.execute(*rig.queue, nvme::encode_flush(Nsid(2))).code() == StatusCode::invalid_namespace);
}

TEST_CASE("Write Zeroes makes zeroes of its range and of nothing else") {
  IoRig rig;
  const auto data = some_bytes(4 * kBlock, 8);
  REQUIRE(rig.write(10, data).status().ok());
  for (const auto deallocate : {nvme::Deallocate::no, nvme::Deallocate::yes}) {
    const auto sqe = nvme::encode_block_command(
        IoOpcode::write_zeroes, {.nsid = Nsid(1), .first = Lba(11), .count = Blocks(2), .deallocate = deallocate});
    CHECK(rig.execute(*rig.queue, sqe).status().ok());
  }
  const auto now = rig.read(10, 4);
  CHECK(std::equal(data.begin(), data.begin() + kBlock, now.begin()));
  CHECK(std::all_of(now.begin() + kBlock, now.begin() + 3 * kBlock, [](std::byte b) { return b == std::byte{0}; }));
  CHECK(std::equal(data.begin() + 3 * kBlock, data.end(), now.begin() + 3 * kBlock));
  CHECK(rig.execute(*rig.queue, IoRig::entry(IoOpcode::write_zeroes, kBlocks - 1, 2)).code() ==
        StatusCode::lba_out_of_range);
}

TEST_CASE("Dataset Management checks every range before it touches one") {
  IoRig rig;
  const auto deallocate = [&](std::vector<nvme::DatasetRange> ranges, std::uint32_t claimed, std::uint32_t length) {
    auto memory = rig.memory(*rig.queue, 4096);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const auto wire = nvme::encode_dataset_range(ranges[i]);
      std::memcpy(memory->bytes().data() + i * sizeof wire, &wire, sizeof wire);
    }
    const auto sqe =
        nvme::encode_dataset_management({.nsid = Nsid(1), .ranges = claimed, .deallocate = nvme::Deallocate::yes});
    return rig.transfer(*rig.queue, sqe, *memory, length).code();
  };
  const nvme::DatasetRange good{Lba(0), Blocks(8)}, last{Lba(kBlocks - 1), Blocks(1)}, beyond{Lba(kBlocks), Blocks(1)};
  const nvme::DatasetRange wraps{Lba(~std::uint64_t{0}), Blocks(0xffffffff)}, nothing{Lba(0), Blocks(0)};
  CHECK(deallocate({good, nothing, last}, 3, 48) == StatusCode::success);
  CHECK(deallocate({good, last}, 2, 4096) == StatusCode::success);  // Linux sends the whole page
  CHECK(deallocate({good, beyond}, 2, 32) == StatusCode::lba_out_of_range);
  CHECK(deallocate({wraps}, 1, 16) == StatusCode::lba_out_of_range);
  CHECK(deallocate({good, last}, 2, 16) == StatusCode::sgl_invalid_length);
  CHECK(deallocate({}, 256, 4080) == StatusCode::sgl_invalid_length);
  CHECK(deallocate({good}, 256, 4096) == StatusCode::success);
}

TEST_CASE("Hundreds of commands in flight all come back right") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, 127 * kBlock);
  const auto data = some_bytes(127 * kBlock, 4);
  std::copy(data.begin(), data.end(), memory->bytes().begin());
  std::vector<std::uint16_t> cids;
  for (const auto opcode : {IoOpcode::write, IoOpcode::read}) {
    for (std::uint32_t i = 0; i < 127; ++i) {
      auto sqe = IoRig::entry(opcode, 126 - i, 1);
      sqe.sgl = memory->keyed(kBlock, i * kBlock);
      cids.push_back(rig.queue->submit(sqe));
    }
    rig.expect([&] { return rig.queue->responses.size() == 127; }, "all are answered");
    for (const auto cid : cids)
      CHECK(rig.queue->take(cid)->status().ok());
    cids.clear();
    if (opcode == IoOpcode::write) std::fill(memory->bytes().begin(), memory->bytes().end(), std::byte{0});
  }
  CHECK(std::equal(data.begin(), data.end(), memory->bytes().begin()));
}

TEST_CASE("Transfers are cut to what the fabric can do, however little that is") {
  transport::sim::NetworkOptions network;
  network.send_depth_max = GENERATE(1u, 3u, 64u);
  network.read_depth_max = GENERATE(1u, 2u);
  network.message_max = GENERATE(std::uint64_t{4096}, std::uint64_t{20000});
  network.segments_max = 1;
  IoRig rig({.network = network});
  const auto data = some_bytes(64 * kBlock, 3);
  REQUIRE(rig.write(5, data).status().ok());
  CHECK(rig.read(5, 64) == data);
  // and several at a time
  auto memory = rig.memory(*rig.queue, 16 * 8 * kBlock);
  for (std::uint32_t i = 0; i < 16; ++i) {
    auto sqe = IoRig::entry(i % 2 == 0 ? IoOpcode::read : IoOpcode::write, 8 * i + 100, 8);
    sqe.sgl = memory->keyed(8 * kBlock, i * 8 * kBlock);
    rig.queue->submit(sqe);
  }
  rig.expect([&] { return rig.queue->responses.size() == 16; }, "all are answered");
  for (const auto& response : rig.queue->responses)
    CHECK(response.status().ok());
}

TEST_CASE("SQHD goes round the queue; with flow control off it says so") {
  TargetRig rig;
  const auto association = rig.associate();
  RawQueue& queue = rig.queue_up(Qid(1), 4, association.cntlid);
  const auto request = rig.connect_request(Qid(1), association.cntlid, 4);
  std::uint16_t expected = 1;
  CHECK(rig.connect(queue, request).cqe.sqhd.get() == expected);
  for (int i = 0; i < 9; ++i) {
    expected = static_cast<std::uint16_t>((expected + 1) % 4);
    CHECK(rig.execute(queue, nvme::encode_flush(Nsid(1))).cqe.sqhd.get() == expected);
  }
  RawQueue& without = rig.queue_up(Qid(2), 4, association.cntlid);
  auto off = rig.connect_request(Qid(2), association.cntlid, 4);
  off.flow_control = nvme::SqFlowControl::off;
  CHECK(rig.connect(without, off).cqe.sqhd.get() == 0xffff);
  CHECK(rig.execute(without, nvme::encode_flush(Nsid(1))).cqe.sqhd.get() == 0xffff);
}

TEST_CASE("Every command is counted for its namespace") {
  IoRig rig;
  REQUIRE(rig.write(0, some_bytes(2 * kBlock, 1)).status().ok());
  static_cast<void>(rig.read(0, 3));
  REQUIRE(rig.execute(*rig.queue, nvme::encode_flush(Nsid(1))).status().ok());
  const auto ns = rig.target->statistics().namespaces.at(0);
  CHECK(ns.writes == 1);
  CHECK(ns.reads == 1);
  CHECK(ns.other == 1);
  CHECK(ns.bytes_written == 2 * kBlock);
  CHECK(ns.bytes_read == 3 * kBlock);
}
