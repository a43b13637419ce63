// I/O commands that reach for blocks that are not theirs, halves of pairs, and hosts that do not play their part of RDMA:
// keys that are none, answers that nobody takes, ends in the middle of everything.

#include <algorithm>
#include <cstring>

#include "target/opcodes.h"
#include "tests/wire/hostile_host.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = HostileRig::kBlock;
constexpr std::uint64_t kBlocks = HostileRig::kBlocks;
constexpr std::uint64_t kLast = ~std::uint64_t{0};

struct Intruder : HostileRig {
  explicit Intruder(RigOptions options = {}) : HostileRig(std::move(options)) {
    come_in();
    mine = memory(*queue, 256 * kBlock);
  }
  ~Intruder() { mine.reset(); }
  StatusCode ask(nvme::SubmissionQueueEntry sqe, std::uint32_t length) {
    if (length != 0) sqe.sgl = mine->keyed(length);
    return code(*queue, sqe);
  }
  StatusCode ask(IoOpcode opcode, std::uint64_t lba, std::uint64_t count, std::uint32_t length) {
    return ask(entry(opcode, lba, count), length);
  }
  void put(std::span<const std::byte> bytes) { std::ranges::copy(bytes, mine->bytes().begin()); }
  /// Reads and writes of a block each, as many as the queue holds.
  void submit_io(std::uint32_t count = 15) {
    for (std::uint32_t i = 0; i < count; ++i) {
      auto sqe = entry(i % 2 == 0 ? IoOpcode::write : IoOpcode::read, i);
      sqe.sgl = mine->keyed(kBlock, i * kBlock);
      queue->submit(sqe);
    }
  }
  std::unique_ptr<HostMemory> mine;
};

}  // namespace

// ---- ranges

TEST_CASE("Ranges that end behind the last block, or wrap around, are out of range, of every command that names one") {
  Intruder intruder;
  for (const auto opcode :
       {IoOpcode::read, IoOpcode::write, IoOpcode::compare, IoOpcode::verify, IoOpcode::write_zeroes})
    for (const auto& [lba, count] :
         std::initializer_list<std::pair<std::uint64_t, std::uint64_t>>{{kBlocks, 1},
                                                                        {kBlocks - 1, 2},
                                                                        {kLast, 1},
                                                                        {kLast, 2},
                                                                        {kLast - 1, 2},
                                                                        {std::uint64_t{1} << 63, 1},
                                                                        {std::uint64_t{1} << 52, 1},
                                                                        {kBlocks - 1, 65536},
                                                                        {kLast - 65535, 65536}})
      CHECK(intruder.ask(opcode, lba, count, kBlock) == StatusCode::lba_out_of_range);
}

TEST_CASE("More blocks than a command may move are Invalid Field, up to the most that can be said") {
  HostileRig rig({.store = "null:size=1GiB,block=4096"});
  rig.come_in();
  for (const std::uint64_t count : {257u, 4096u, 65536u})
    for (const auto opcode : {IoOpcode::read, IoOpcode::write, IoOpcode::compare, IoOpcode::verify})
      CHECK(rig.code(*rig.queue, HostileRig::entry(opcode, 0, count)) == StatusCode::invalid_field);
}

TEST_CASE("Namespaces that are not there, and everybody else's, are Invalid Namespace") {
  Intruder intruder;
  for (const std::uint32_t nsid : DoubleWords{0, 2, 4096, 4097, 0xfffffffe, 0xffffffff})
    for (const auto opcode : {IoOpcode::read, IoOpcode::write, IoOpcode::compare, IoOpcode::verify,
                              IoOpcode::write_zeroes, IoOpcode::dataset_management, IoOpcode::copy}) {
      auto sqe = HostileRig::entry(opcode, 0);
      sqe.nsid = nsid;
      CHECK(intruder.ask(sqe, kBlock) == StatusCode::invalid_namespace);
    }
}

TEST_CASE("Dataset Management with fewer bytes than ranges touches nothing") {
  Intruder intruder;
  for (const std::uint32_t ranges : {2u, 255u, 256u})
    for (const std::uint32_t length : {0u, 1u, 16u, 16 * ranges - 1}) {
      auto sqe =
          nvme::encode_dataset_management({.nsid = Nsid(1), .ranges = ranges, .deallocate = nvme::Deallocate::yes});
      CHECK(intruder.ask(sqe, length) == StatusCode::sgl_invalid_length);
    }
}

TEST_CASE("Of Dataset Management's ranges one that is wrong keeps all from being deallocated") {
  Intruder intruder;
  const auto data = some_bytes(kBlock, 8);
  intruder.put(data);
  REQUIRE(intruder.ask(IoOpcode::write, 0, 1, kBlock) == StatusCode::success);
  for (const auto& bad : {nvme::DatasetRange{Lba(kBlocks), Blocks(1)}, nvme::DatasetRange{Lba(1), Blocks(0xffffffff)},
                          nvme::DatasetRange{Lba(kLast), Blocks(2)}}) {
    const std::array ranges = {nvme::encode_dataset_range({Lba(0), Blocks(1)}), nvme::encode_dataset_range(bad)};
    intruder.put(std::as_bytes(std::span(ranges)));
    CHECK(intruder.ask(
              nvme::encode_dataset_management({.nsid = Nsid(1), .ranges = 2, .deallocate = nvme::Deallocate::yes}),
              sizeof ranges) == StatusCode::lba_out_of_range);
  }
  REQUIRE(intruder.ask(IoOpcode::read, 0, 1, kBlock) == StatusCode::success);
  CHECK(std::ranges::equal(data, intruder.mine->bytes().first(kBlock)));
}

TEST_CASE("The whole namespace deallocated 256 times in one command, again and again, holds nobody up") {
  Intruder intruder;
  std::vector<nvme::DatasetRangeWire> ranges(256, nvme::encode_dataset_range({Lba(0), Blocks(kBlocks)}));
  intruder.put(std::as_bytes(std::span(ranges)));
  auto sqe = nvme::encode_dataset_management({.nsid = Nsid(1), .ranges = 256, .deallocate = nvme::Deallocate::yes});
  sqe.sgl = intruder.mine->keyed(256 * sizeof(nvme::DatasetRangeWire));
  for (int i = 0; i < 15; ++i)
    intruder.queue->submit(sqe);
  intruder.let_neighbour_work();
  intruder.expect([&] { return intruder.queue->responses.size() == 15; }, "all are answered");
}

TEST_CASE("Copy with ranges, counts and formats that cannot be changes nothing") {
  Intruder intruder;
  const auto copy = [&](std::uint64_t to, const nvme::CopyRangeWire& from, std::uint32_t length = 32) {
    intruder.put(nvme::wire_bytes(from));
    return intruder.ask(nvme::encode_copy({.nsid = Nsid(1), .first = Lba(to), .ranges = 1}), length);
  };
  const auto one = nvme::encode_copy_range({Lba(0), Blocks(1)});
  CHECK(copy(kBlocks, one) == StatusCode::lba_out_of_range);
  CHECK(copy(kLast, one) == StatusCode::lba_out_of_range);
  CHECK(copy(0, nvme::encode_copy_range({Lba(kLast), Blocks(2)})) == StatusCode::lba_out_of_range);
  CHECK(copy(0, nvme::encode_copy_range({Lba(kBlocks - 1), Blocks(2)})) == StatusCode::lba_out_of_range);
  CHECK(copy(0, nvme::encode_copy_range({Lba(0), Blocks(65536)})) == StatusCode::lba_out_of_range);
  CHECK(copy(0, one, 31) == StatusCode::sgl_invalid_length);
  for (unsigned format = 1; format < 16; ++format) {
    auto sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(0), .ranges = 1});
    sqe.cdw12 = format << 8;
    CHECK(intruder.ask(sqe, 32) == StatusCode::invalid_field);
  }
  auto sqe = nvme::encode_copy({.nsid = Nsid(1), .first = Lba(0), .ranges = 1});
  sqe.cdw12 = 255u;
  CHECK(intruder.ask(sqe, 256 * 32) == nvme::kCommandSizeLimitExceeded);
}

TEST_CASE("Protection information, which no namespace here has, is asked for in vain and without harm") {
  Intruder intruder;
  const auto data = some_bytes(kBlock, 4);
  for (std::uint8_t protection = 1; protection < 16; ++protection) {
    intruder.put(data);
    for (const auto opcode : {IoOpcode::write, IoOpcode::compare, IoOpcode::verify, IoOpcode::read}) {
      auto sqe = nvme::encode_block_command(
          opcode, {.nsid = Nsid(1), .first = Lba(3), .count = Blocks(1), .protection = protection});
      sqe.cdw14 = sqe.cdw15 = 0xffffffffu;
      CHECK(intruder.ask(sqe, kBlock) == StatusCode::success);
    }
  }
}

TEST_CASE("Commands of zoned namespaces and of other command sets do not exist") {
  Intruder intruder;
  for (const unsigned opcode : {0x79u, 0x7au, 0x7du, 0x04u, 0x12u, 0x18u, 0x80u, 0xffu}) {
    if (target::find_operation(target::QueueKind::io, static_cast<std::uint8_t>(opcode))) continue;
    auto sqe = HostileRig::entry(IoOpcode::read, 0);
    sqe.opcode = static_cast<std::uint8_t>(opcode);
    CHECK(intruder.ask(sqe, 4) == StatusCode::invalid_opcode);
  }
}

// ---- pairs

TEST_CASE("A first half whose second never comes is told so, and its queue goes on") {
  Intruder intruder;
  auto first = HostileRig::entry(IoOpcode::compare, 0);
  first.flags |= 1;
  first.sgl = intruder.mine->keyed(kBlock);
  const std::uint16_t cid = intruder.queue->submit(first);
  std::optional<Response> response;
  intruder.expect([&] { return (response = intruder.queue->take(cid)).has_value(); }, "it is answered");
  CHECK(response->code() == StatusCode::fused_missing);
  intruder.expect_alive(*intruder.queue);
}

TEST_CASE("A host that hangs up, is reset or dies between the halves of a pair leaves nothing behind") {
  for (const int how : {0, 1, 2}) {
    Intruder intruder;
    auto first = HostileRig::entry(IoOpcode::compare, 0);
    first.flags |= 1;
    first.sgl = HostileRig::in_capsule(0, kBlock);
    intruder.queue->submit(first, some_bytes(kBlock, 1));
    intruder.run_for(1ms);
    if (how == 0) intruder.queue->connection->close();
    if (how == 1) intruder.code(*intruder.admin, nvme::encode_property_set({.offset = 0x14, .value = 0}));
    if (how == 2) intruder.network.faults().partition("host", "target");
    if (how == 2) intruder.run_for(6s);
    intruder.let_neighbour_work();
  }
}

TEST_CASE("Second halves alone, first halves of everything, and the reserved place are refused") {
  Intruder intruder;
  for (unsigned opcode = 0; opcode < 256; ++opcode)
    for (const unsigned place : {1u, 2u, 3u}) {
      if (opcode == nvme::kFabricsOpcode || (opcode == 0x05 && place == 1)) continue;
      auto sqe = HostileRig::entry(IoOpcode::read, 0);
      sqe.opcode = static_cast<std::uint8_t>(opcode);
      sqe.flags = static_cast<std::uint8_t>(0x40 | place);
      CHECK(intruder.ask(sqe, kBlock) != StatusCode::success);
    }
}

// ---- keys

TEST_CASE(
    "A key of nobody's, of the neighbour's, for the other direction or too short kills its own connection alone") {
  for (int which = 0; which < 6; ++which) {
    Intruder intruder;
    HostMemory for_reading(intruder.queue->connection->domain(), kBlock, transport::RemoteAccess::read);
    HostMemory for_writing(intruder.queue->connection->domain(), kBlock, transport::RemoteAccess::write);
    HostMemory for_nothing(intruder.queue->connection->domain(), kBlock, transport::RemoteAccess::none);
    auto sqe = HostileRig::entry(which == 1 ? IoOpcode::write : IoOpcode::read, 0);
    if (which == 0) sqe.sgl = for_reading.keyed(kBlock);
    if (which == 1) sqe.sgl = for_writing.keyed(kBlock);
    if (which == 2) sqe.sgl = nvme::encode_data_pointer(nvme::KeyedData{for_writing.address(), kBlock, 0xdeadbeef});
    if (which == 3) sqe.sgl = for_writing.keyed(kBlock, 1);
    if (which == 4) sqe.sgl = for_nothing.keyed(kBlock);
    if (which == 5) sqe.sgl = nvme::encode_data_pointer(nvme::KeyedData{0, kBlock, for_writing.rkey()});
    intruder.queue->submit(sqe);
    intruder.expect_closed(*intruder.queue);
    CHECK_FALSE(intruder.admin->ended());
    intruder.expect_alive(*intruder.admin);
  }
}

TEST_CASE("Memory that its host takes back while commands are in flight kills that connection alone") {
  for (int delay = 0; delay < 12; ++delay) {
    Intruder intruder;
    intruder.submit_io();
    intruder.run_for(std::chrono::nanoseconds(delay * 1500));
    intruder.mine.reset();
    intruder.expect([&] { return intruder.queue->ended() || intruder.queue->responses.size() == 15; },
                    "answered or closed");
    intruder.expect_alive(*intruder.admin);
  }
}

TEST_CASE("A key that a host has invalidated twice, or that is none, costs it no more than its connection") {
  Intruder intruder;
  auto sqe = HostileRig::entry(IoOpcode::read, 0);
  sqe.sgl = intruder.mine->keyed(kBlock, 0, nvme::RemoteInvalidate::yes);
  intruder.queue->submit(sqe);
  intruder.queue->submit(sqe);
  intruder.expect_closed(*intruder.queue);
  intruder.expect_alive(*intruder.admin);
  RawQueue& again = intruder.io_queue(intruder.association, Qid(2), 16);
  auto flush = nvme::encode_flush(Nsid(1));  // moves nothing, whatever its descriptor says
  flush.sgl = nvme::encode_data_pointer(nvme::KeyedData{1, 1, 0xbad, nvme::RemoteInvalidate::yes});
  CHECK(intruder.code(again, flush) == StatusCode::success);
}

TEST_CASE("The key of a command that is refused, if it is none, costs its own connection at the most") {
  Intruder intruder;
  auto sqe = HostileRig::entry(IoOpcode::read, kLast);
  sqe.sgl = nvme::encode_data_pointer(nvme::KeyedData{0x1000, kBlock, 0xbad, nvme::RemoteInvalidate::yes});
  intruder.say(*intruder.queue, sqe);
  intruder.expect_alive(*intruder.admin);
}

TEST_CASE("In-flight commands that wait behind a READ or WRITE that fails end with their connection") {
  for (const bool reads : {true, false}) {
    Intruder intruder({.network = {.read_depth_max = 1}});
    for (std::uint32_t i = 0; i < 15; ++i) {
      auto sqe = HostileRig::entry(reads ? IoOpcode::read : IoOpcode::write, 16 * i, 16);
      sqe.sgl = intruder.mine->keyed(16 * kBlock, 16 * kBlock * i);
      if (i == 3) sqe.sgl = nvme::encode_data_pointer(nvme::KeyedData{intruder.mine->address(), 16 * kBlock, 0xbad});
      intruder.queue->submit(sqe);
    }
    intruder.expect_closed(*intruder.queue);
    intruder.expect_alive(*intruder.admin);
  }
}

// ---- ends

TEST_CASE("A host that dies, is cut off or loses its device in the middle of transfers leaves nothing behind") {
  for (int how = 0; how < 4; ++how)
    for (const auto after : {2us, 10us}) {
      Intruder intruder;
      intruder.submit_io();
      intruder.run_for(after);
      if (how == 0) intruder.network.faults().kill_process("host");
      if (how == 1) intruder.network.faults().partition("host", "target");
      if (how == 2) intruder.network.faults().remove_device("host");
      if (how == 3) intruder.network.faults().change_address("host");
      intruder.host_died = how == 0;
      intruder.run_for(how == 1 ? 3s : 1s);
    }
}

TEST_CASE("A flood on one queue stalls that queue, not the neighbour's, though they share receive buffers") {
  Intruder intruder;
  for (int round = 0; round < 40; ++round) {
    RawQueue& queue = intruder.io_queue(intruder.association, Qid(static_cast<std::uint16_t>(2 + round % 8)), 64);
    for (int i = 0; i < 63; ++i)
      queue.submit(nvme::encode_flush(Nsid(1)));
    intruder.let_neighbour_work(1);
    queue.connection->close();
    intruder.expect([&] { return intruder.target->statistics().connections() == 4; }, "the queue is gone");
  }
}

TEST_CASE("A host that takes no answers holds the target's buffers for a while, not for ever") {
  HostileRig rig({.limits = {.buffers = Bytes(4 * kMiB)}});
  rig.association = rig.associate();
  auto page = rig.memory(*rig.association.admin, kMiB);
  rig.network.faults().exhaust_receives("host", 1h);
  auto sqe = nvme::encode_get_log_page({.lid = 0x01, .length = Bytes(kMiB)});
  sqe.sgl = page->keyed(kMiB);
  for (int i = 0; i < 8; ++i)
    rig.association.admin->submit(sqe);
  rig.run_for(1ms);

  // Meanwhile there is nothing for those who come: neither for a connection's responses nor for Connect's data.
  const auto data =
      nvme::encode_cm_request({.qid = Qid(0), .host_receives = 32, .host_sends = 32, .cntlid = Cntlid(0)});
  rig.as_another_host([&] {
    CHECK(rig.refusal(nvme::wire_bytes(data)) == nvme::CmReject::no_resources);
    rig.run_for(21s);
    CHECK(rig.logger.said("has taken nothing"));
    CHECK(rig.refusal(nvme::wire_bytes(data)) == std::nullopt);
  });
}

TEST_CASE("A host that takes its answers late, but takes them, keeps its connection") {
  Intruder intruder;
  for (int i = 0; i < 6; ++i) {
    intruder.network.faults().exhaust_receives("host", 8s);
    intruder.queue->submit(nvme::encode_flush(Nsid(1)));
    intruder.run_for(9s);
    CHECK(intruder.queue->responses.size() == static_cast<std::size_t>(i + 1));
  }
  intruder.expect_alive(*intruder.queue);
}
