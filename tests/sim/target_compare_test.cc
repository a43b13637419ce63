// Compare and Verify: what they answer, over which memory, and what they hold meanwhile.

#include <array>
#include <catch2/catch.hpp>

#include "tests/sim/io_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = IoRig::kBlock;
constexpr std::uint64_t kBlocks = IoRig::kBlocks;
constexpr std::array kStores = {"ram:size=16MiB,block=4096", "ram:size=16MiB,block=4096,atomic=shadow",
                                "ram:size=16MiB,block=4096,atomic=in-place", "drop-unflushed:ram:size=16MiB,block=4096",
                                "delay:1ms,ram:size=16MiB,block=4096"};

}  // namespace

TEST_CASE("Compare tells equal blocks from others, whichever byte it is, over every store") {
  const char* const store = GENERATE(from_range(kStores.begin(), kStores.end()));
  INFO(store);
  IoRig rig({.store = store});
  for (const std::uint64_t count : {1u, 5u, 256u}) {
    auto data = some_bytes(count * kBlock, count);
    REQUIRE(rig.write(7, data).status().ok());
    CHECK(rig.compare(7, data).status().ok());
    for (const std::size_t place : {std::size_t{0}, data.size() / 2, data.size() - 1}) {
      data[place] ^= std::byte{1};
      const auto response = rig.compare(7, data);
      CHECK(response.code() == StatusCode::compare_failure);
      CHECK(response.status().do_not_retry());
      data[place] ^= std::byte{1};
    }
    CHECK(rig.read(7, count) == data);  // it changes nothing
  }
}

TEST_CASE("Compare takes its data from the capsule, too") {
  IoRig rig;
  const auto data = some_bytes(kBlock, 1);
  REQUIRE(rig.write(3, data).status().ok());
  auto sqe = IoRig::entry(IoOpcode::compare, 3, 1);
  sqe.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock});
  CHECK(rig.execute(*rig.queue, sqe, data).status().ok());
  CHECK(rig.execute(*rig.queue, sqe, some_bytes(kBlock, 2)).code() == StatusCode::compare_failure);
}

TEST_CASE("Compare and Verify are judged like reads, and refuse what those refuse") {
  IoRig rig;
  auto memory = rig.memory(*rig.queue, 257 * kBlock);
  const auto code = [&](IoOpcode opcode, std::uint64_t lba, std::uint64_t count, std::uint32_t length) {
    return rig.transfer(*rig.queue, IoRig::entry(opcode, lba, count), *memory, length).code();
  };
  for (const auto opcode : {IoOpcode::compare, IoOpcode::verify}) {
    CHECK(code(opcode, kBlocks - 1, 1, kBlock) == StatusCode::success);
    CHECK(code(opcode, kBlocks - 1, 2, 2 * kBlock) == StatusCode::lba_out_of_range);
    CHECK(code(opcode, ~std::uint64_t{0}, 2, 2 * kBlock) == StatusCode::lba_out_of_range);
    CHECK(code(opcode, 0, 256, 256 * kBlock) == StatusCode::success);
    CHECK(code(opcode, 0, 257, 257 * kBlock) == StatusCode::invalid_field);  // MDTS, and VSL
    auto sqe = IoRig::entry(opcode, 0, 1);
    sqe.nsid = 2u;
    CHECK(rig.transfer(*rig.queue, sqe, *memory, kBlock).code() == StatusCode::invalid_namespace);
  }
  for (const std::uint32_t length : {0u, 512u, kBlock - 1, kBlock + 1, 2 * kBlock})
    CHECK(code(IoOpcode::compare, 0, 1, length) == StatusCode::sgl_invalid_length);
}

TEST_CASE("Compare reads what overlapping writes left, whole, while they go on") {
  // Every write fills its two blocks with one byte; a Compare with that byte must never see a mixture that has both.
  IoRig rig({.store = "ram:size=16MiB,block=4096,atomic=in-place"});
  auto memory = rig.memory(*rig.queue, 4 * 2 * kBlock);
  for (std::uint32_t i = 0; i < 4; ++i)
    std::fill_n(memory->bytes().begin() + i * 2 * kBlock, 2 * kBlock, std::byte(i));
  std::size_t equal = 0;
  std::vector<std::uint16_t> compares;
  for (std::uint32_t i = 0; i < 40; ++i) {
    auto write = IoRig::entry(IoOpcode::write, 10, 2);
    write.sgl = memory->keyed(2 * kBlock, (i % 4) * 2 * kBlock);
    rig.queue->submit(write);
    for (const std::uint64_t half : {0u, 1u}) {  // each half for itself, in one go
      auto compare = IoRig::entry(IoOpcode::compare, 10 + half, 1);
      compare.sgl = memory->keyed(kBlock, (i % 4) * 2 * kBlock);
      compares.push_back(rig.queue->submit(compare));
    }
  }
  rig.expect([&] { return rig.queue->responses.size() == 120; }, "all are answered");
  for (const auto& response : rig.queue->responses) {
    const bool is_compare = std::find(compares.begin(), compares.end(), response.cqe.cid.get()) != compares.end();
    if (is_compare && response.status().ok()) ++equal;
    CHECK((response.status().ok() || (is_compare && response.code() == StatusCode::compare_failure)));
  }
  CHECK(equal > 0);
}

TEST_CASE("A medium that cannot be read fails Compare and Verify, and counts as one") {
  IoRig rig({.store = "error:read,lba=100,ram:size=16MiB,block=4096"});
  const auto data = some_bytes(2 * kBlock, 1);
  REQUIRE(rig.write(99, data).status().ok());
  CHECK(rig.compare(99, data).code() == StatusCode::unrecovered_read_error);
  CHECK(rig.execute(*rig.queue, IoRig::entry(IoOpcode::verify, 99, 1)).status().ok());
  CHECK(rig.execute(*rig.queue, IoRig::entry(IoOpcode::verify, 99, 2)).code() == StatusCode::unrecovered_read_error);
  CHECK(rig.execute(*rig.queue, IoRig::entry(IoOpcode::verify, 0, 101)).code() == StatusCode::unrecovered_read_error);
  const auto ns = rig.target->statistics().namespaces.at(0);
  CHECK(ns.errors == 3);
  CHECK(ns.reads == 1);
  CHECK(ns.bytes_read == kBlock);
}

TEST_CASE("Verify moves no data, whatever its data pointer says") {
  IoRig rig;
  const auto before = rig.counters().work_requests;
  auto memory = rig.memory(*rig.queue, kBlock);
  CHECK(rig.transfer(*rig.queue, IoRig::entry(IoOpcode::verify, 0, 256), *memory, kBlock).status().ok());
  CHECK(rig.counters().work_requests - before == 1);  // SEND
}

TEST_CASE("Compares that fill the side pool wait for one another and all come back, while others read and write") {
  // The smallest pools there are: two Compares of a megabyte at a time.
  IoRig rig({.limits = {.buffers = Bytes(4 * kMiB)}});
  auto memory = rig.memory(*rig.queue, 256 * kBlock);
  for (std::uint32_t i = 0; i < 40; ++i) {
    auto sqe = IoRig::entry(i % 4 == 0 ? IoOpcode::read : IoOpcode::compare, 0, 256);
    sqe.sgl = memory->keyed(256 * kBlock);
    rig.queue->submit(sqe);
  }
  rig.expect([&] { return rig.queue->responses.size() == 40; }, "all are answered");
  for (const auto& response : rig.queue->responses)
    CHECK(response.status().ok());
}

TEST_CASE("A connection that dies in the middle of a Compare leaves nothing behind, wherever that is") {
  Gate gate;
  const int steps = GENERATE(0, 1);
  IoRig rig({.store = "ram:size=16MiB,block=4096", .gate = &gate});
  auto memory = rig.memory(*rig.queue, kBlock);
  auto sqe = IoRig::entry(IoOpcode::compare, 0, 1);
  sqe.sgl = memory->keyed(kBlock);
  rig.queue->submit(sqe);
  if (steps > 0) rig.expect([&] { return gate.waiting() == 1; }, "the store is asked");
  rig.queue->connection->close();
  rig.expect([&] { return rig.queue->closed; }, "the host has closed");
  if (steps > 0) {
    static_cast<void>(rig.run_until([] { return false; }, std::chrono::milliseconds(100)));
    gate.let_all_through();
  }
  gate.open = true;
  RawQueue& again = rig.io_queue(rig.association, Qid(2));
  CHECK(rig.transfer(again, IoRig::entry(IoOpcode::compare, 0, 1), *memory, kBlock).status().ok());
}
