// Copy: what it moves, what it refuses, and that sources and destination may lie over one another.

#include <array>
#include <catch2/catch.hpp>

#include "target/store/spec.h"
#include "tests/sim/changing_store.h"
#include "tests/sim/io_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = IoRig::kBlock;
constexpr std::uint64_t kBlocks = IoRig::kBlocks;
constexpr std::uint64_t kMost = 255;  // MCL and MSSRL of 4 KiB blocks
constexpr std::array kStores = {"ram:size=16MiB,block=4096", "ram:size=16MiB,block=4096,atomic=shadow",
                                "ram:size=16MiB,block=4096,atomic=in-place", "drop-unflushed:ram:size=16MiB,block=4096",
                                "delay:1ms,ram:size=16MiB,block=4096"};

nvme::CopyRange range(std::uint64_t first, std::uint64_t count) {
  return {Lba(first), Blocks(count)};
}

/// Blocks as a plain array has them: what Copy must do.
struct Model {
  explicit Model(std::size_t count) : bytes(some_bytes(count * kBlock, 11)) {}
  void copy(std::uint64_t to, const std::vector<nvme::CopyRange>& from) {
    std::vector<std::byte> all;
    for (const auto& each : from)
      all.insert(all.end(), bytes.begin() + static_cast<std::ptrdiff_t>(each.first.value() * kBlock),
                 bytes.begin() + static_cast<std::ptrdiff_t>((each.first.value() + each.count.value()) * kBlock));
    std::copy(all.begin(), all.end(), bytes.begin() + static_cast<std::ptrdiff_t>(to * kBlock));
  }
  std::vector<std::byte> bytes;
};

}  // namespace

TEST_CASE("Copy puts its sources one after the other, also where they overlap the destination or one another") {
  const char* const store = GENERATE(from_range(kStores.begin(), kStores.end()));
  INFO(store);
  IoRig rig({.store = store});
  Model model(128);
  REQUIRE(rig.write(0, model.bytes).status().ok());
  const auto copy = [&](std::uint64_t to, const std::vector<nvme::CopyRange>& from) {
    CHECK(rig.copy(to, from).status().ok());
    model.copy(to, from);
    CHECK(rig.read(0, 128) == model.bytes);
  };
  copy(64, {range(3, 1)});
  copy(70, {range(3, 5), range(20, 1), range(0, 2)});
  copy(4, {range(0, 10)});   // forward, into itself
  copy(0, {range(4, 10)});   // backward, into itself
  copy(40, {range(40, 8)});  // onto itself
  copy(50, {range(60, 4), range(50, 4), range(48, 6)});
  copy(90, {range(10, 2), range(10, 2), range(11, 1)});  // the same twice
}

TEST_CASE("Copy takes 128 ranges and as many blocks as Identify says, and no more") {
  IoRig rig;
  const auto data = some_bytes(256 * kBlock, 3);
  REQUIRE(rig.write(0, data).status().ok());
  const auto id = rig.read_structure<nvme_id_ns>(
      *rig.association.admin,
      nvme::encode_identify({.nsid = Nsid(1), .cns = NVME_IDENTIFY_CNS_NS, .cntlid = Cntlid(0)}));
  CHECK(nvme::from_le(id.mcl) == kMost);
  CHECK(nvme::from_le(id.mssrl) == kMost);
  CHECK(id.msrc == 127);
  CHECK(rig.copy(1000, {range(0, kMost)}).status().ok());
  CHECK(rig.read(1000, 1) == rig.read(0, 1));
  CHECK(rig.read(1254, 1) == rig.read(254, 1));
  CHECK(rig.copy(1000, {range(0, kMost + 1)}).code() == nvme::kCommandSizeLimitExceeded);
  CHECK(rig.copy(1000, {range(0, 200), range(0, 56)}).code() == nvme::kCommandSizeLimitExceeded);
  CHECK(rig.copy(1000, {range(0, 65536)}).code() == StatusCode::lba_out_of_range);
  std::vector<nvme::CopyRange> many(128, range(5, 1));
  CHECK(rig.copy(2000, many).status().ok());
  CHECK(rig.read(2127, 1) == rig.read(5, 1));
  CHECK(rig.read(2128, 1) == std::vector<std::byte>(kBlock));
  auto sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(0), .ranges = 128});
  sqe.cdw12 = sqe.cdw12.get() + 1;  // 129
  CHECK(rig.send(sqe, std::vector<std::byte>(4128)).code() == nvme::kCommandSizeLimitExceeded);
}

TEST_CASE("Copy judges every range and the destination before it changes a block") {
  IoRig rig;
  Model model(64);
  REQUIRE(rig.write(0, model.bytes).status().ok());
  const auto code = [&](std::uint64_t to, const std::vector<nvme::CopyRange>& from) {
    return rig.copy(to, from).code();
  };
  CHECK(code(0, {range(1, 1), range(kBlocks, 1)}) == StatusCode::lba_out_of_range);
  CHECK(code(0, {range(1, 1), range(kBlocks - 1, 2)}) == StatusCode::lba_out_of_range);
  CHECK(code(0, {range(1, 1), range(~std::uint64_t{0}, 2)}) == StatusCode::lba_out_of_range);
  CHECK(code(kBlocks, {range(1, 1)}) == StatusCode::lba_out_of_range);
  CHECK(code(kBlocks - 1, {range(1, 1), range(2, 1)}) == StatusCode::lba_out_of_range);
  CHECK(code(~std::uint64_t{0}, {range(1, 2)}) == StatusCode::lba_out_of_range);
  CHECK(code(kBlocks - 1, {range(1, 1)}) == StatusCode::success);
  CHECK(rig.read(0, 64) == model.bytes);
}

TEST_CASE("Copy refuses other descriptor formats, namespaces and lengths") {
  IoRig rig;
  const auto ranges = IoRig::copy_ranges({range(0, 1), range(1, 1)});
  for (std::uint32_t format = 1; format < 16; ++format) {
    auto sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(9), .ranges = 2});
    sqe.cdw12 = sqe.cdw12.get() | format << 8;
    CHECK(rig.send(sqe, ranges).code() == StatusCode::invalid_field);
  }
  const auto sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(9), .ranges = 2});
  CHECK(rig.send(sqe, std::span(ranges).first(63)).code() == StatusCode::sgl_invalid_length);
  CHECK(rig.send(sqe, std::vector<std::byte>(4096)).status().ok());  // a whole page of ranges
  auto elsewhere = sqe;
  elsewhere.nsid = 2u;
  CHECK(rig.send(elsewhere, ranges).code() == StatusCode::invalid_namespace);
}

TEST_CASE(
    "A Copy whose source cannot be read, or whose destination cannot be written, says so and changes nothing else") {
  IoRig rig({.store = "error:read,lba=30,error:commit,lba=40,ram:size=16MiB,block=4096"});
  Model model(16);
  REQUIRE(rig.write(0, model.bytes).status().ok());
  const auto unread = rig.copy(8, {range(0, 1), range(30, 1)});
  CHECK(unread.code() == StatusCode::unrecovered_read_error);
  CHECK(unread.cqe.dw0() == 0);  // nothing was copied
  CHECK(rig.read(0, 16) == model.bytes);
  CHECK(rig.copy(40, {range(0, 1)}).code() == StatusCode::write_fault);
  CHECK(rig.read(0, 16) == model.bytes);
  const auto ns = rig.target->statistics().namespaces.at(0);
  CHECK(ns.errors == 2);
}

TEST_CASE("Copy is durable before its answer if, and only if, the host asks for it") {
  StoreHand hand;
  hand.write_cache = true;
  Random random(7);
  const SystemClock clock;
  IoRig rig({.configure = [&](target::Target& target) {
    auto inner =
        target::make_store("ram:size=1MiB,block=4096", {.clock = clock, .random = random, .logger = null_logger()});
    REQUIRE(target.add_namespace(nqn(kSubsystem), make_changing_store(std::move(*inner), hand)).has_value());
  }});
  for (const auto fua : {nvme::ForceUnitAccess::no, nvme::ForceUnitAccess::yes}) {
    const auto sqe = nvme::encode_copy({.nsid = Nsid(2), .first = Lba(5), .ranges = 1, .fua = fua});
    CHECK(rig.send(sqe, IoRig::copy_ranges({range(0, 1)})).status().ok());
    CHECK((hand.last_durability == target::Durability::durable) == (fua == nvme::ForceUnitAccess::yes));
  }
}

TEST_CASE("Copies that fill the side pool wait for one another and all come back") {
  IoRig rig({.limits = {.buffers = Bytes(4 * kMiB)}});
  const auto ranges = IoRig::copy_ranges({range(0, 100), range(100, 100)});
  auto memory = rig.memory(*rig.queue, ranges.size());
  std::copy(ranges.begin(), ranges.end(), memory->bytes().begin());
  for (std::uint64_t i = 0; i < 40; ++i) {
    // towards one another: what one reads, others write
    auto sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(i * 7), .ranges = 2});
    sqe.sgl = memory->keyed(static_cast<std::uint32_t>(ranges.size()));
    rig.queue->submit(sqe);
  }
  rig.expect([&] { return rig.queue->responses.size() == 40; }, "all are answered");
  for (const auto& response : rig.queue->responses)
    CHECK(response.status().ok());
}

TEST_CASE("A connection that dies in the middle of a Copy leaves nothing behind, wherever that is") {
  Gate gate;
  const std::size_t steps = GENERATE(0u, 1u, 2u, 3u, 4u);  // two reads, the write's memory, its commit
  IoRig rig({.store = "ram:size=16MiB,block=4096", .gate = &gate});
  const auto ranges = IoRig::copy_ranges({range(0, 1), range(1, 1)});
  auto memory = rig.memory(*rig.queue, ranges.size());
  std::copy(ranges.begin(), ranges.end(), memory->bytes().begin());
  auto sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(9), .ranges = 2});
  sqe.sgl = memory->keyed(static_cast<std::uint32_t>(ranges.size()));
  rig.queue->submit(sqe);
  for (std::size_t i = 0; i < steps; ++i) {
    rig.expect([&] { return gate.waiting() == 1; }, "the store is asked");
    if (i + 1 < steps) gate.let_one_through();
  }
  rig.queue->connection->close();
  rig.expect([&] { return rig.queue->closed; }, "the host has closed");
  static_cast<void>(rig.run_until([] { return false; }, std::chrono::milliseconds(100)));
  gate.let_all_through();
  gate.open = true;
  RawQueue& again = rig.io_queue(rig.association, Qid(2));
  CHECK(rig.transfer(again, sqe, *memory, static_cast<std::uint32_t>(ranges.size())).status().ok());
}
