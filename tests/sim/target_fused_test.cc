// Fused Compare and Write: what each half is answered, and that nothing comes between the two.

#include <array>
#include <catch2/catch.hpp>

#include "target/store/spec.h"
#include "tests/sim/io_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::Fuse;
using nvme::IoOpcode;
using nvme::Status;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = IoRig::kBlock;
constexpr std::uint64_t kBlocks = IoRig::kBlocks;
constexpr std::array kStores = {"ram:size=16MiB,block=4096", "ram:size=16MiB,block=4096,atomic=shadow",
                                "ram:size=16MiB,block=4096,atomic=in-place", "drop-unflushed:ram:size=16MiB,block=4096",
                                "delay:1ms,ram:size=16MiB,block=4096"};
constexpr const char* kInPlace = "ram:size=16MiB,block=4096,atomic=in-place";

void wait(IoRig& rig) {
  static_cast<void>(rig.run_until([] { return false; }, std::chrono::milliseconds(50)));
}

Response answer(IoRig& rig, std::uint16_t cid) {
  std::optional<Response> response;
  rig.expect([&] { return (response = rig.queue->take(cid)).has_value(); }, "the command is answered");
  return *response;
}

/// Halves and other commands with one memory of zeroes behind them all.
struct HalvesRig : IoRig {
  explicit HalvesRig(RigOptions options = {}) : IoRig(std::move(options)), zeroes(memory(*queue, 2 * kBlock)) {}
  std::uint16_t submit(nvme::SubmissionQueueEntry sqe) {
    sqe.sgl = zeroes->keyed((sqe.cdw12.get() % 65536 + 1) * kBlock);
    return queue->submit(sqe);
  }
  std::unique_ptr<HostMemory> zeroes;
};

}  // namespace

TEST_CASE("A pair writes where its first half finds what it expects, and nothing where it does not, over every store") {
  const char* const store = GENERATE(from_range(kStores.begin(), kStores.end()));
  INFO(store);
  IoRig rig({.store = store});
  const auto old = some_bytes(kBlock, 1), fresh = some_bytes(kBlock, 2);
  REQUIRE(rig.write(5, old).status().ok());
  CHECK(rig.compare_and_write(5, fresh, fresh) ==
        IoRig::Pair{Status::permanent(StatusCode::compare_failure), StatusCode::fused_failed});
  CHECK(rig.read(5, 1) == old);
  CHECK(rig.compare_and_write(5, old, fresh) == IoRig::Pair{Status(), Status()});
  CHECK(rig.read(5, 1) == fresh);
  CHECK(rig.compare_and_write(5, fresh, old) == IoRig::Pair{Status(), Status()});
  CHECK(rig.read(5, 1) == old);
  const auto ns = rig.target->statistics().namespaces.at(0);
  CHECK(ns.writes == 3);
  CHECK(ns.errors == 2);
}

TEST_CASE("The data of either half may be in its capsule") {
  IoRig rig;
  const auto old = some_bytes(kBlock, 1), fresh = some_bytes(kBlock, 2);
  const bool first_inside = GENERATE(true, false), second_inside = GENERATE(true, false);
  REQUIRE(rig.write(5, old).status().ok());
  auto memory = rig.memory(*rig.queue, 2 * kBlock);
  std::copy(fresh.begin(), fresh.end(), std::copy(old.begin(), old.end(), memory->bytes().begin()));
  const auto submit = [&](Fuse which, bool inside, const std::vector<std::byte>& data, std::uint32_t place) {
    auto sqe = IoRig::half(which, 5, 1);
    sqe.sgl = inside ? nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock}) : memory->keyed(kBlock, place);
    return rig.queue->submit(sqe, inside ? std::span<const std::byte>(data) : std::span<const std::byte>());
  };
  const auto first = submit(Fuse::first, first_inside, old, 0);
  const auto second = submit(Fuse::second, second_inside, fresh, kBlock);
  CHECK(rig.pair(*rig.queue, first, second) == IoRig::Pair{Status(), Status()});
  CHECK(rig.read(5, 1) == fresh);
}

TEST_CASE("A pair may be as long as NACWU says, and no longer") {
  IoRig rig({.store = kInPlace});
  const auto id = rig.read_structure<nvme_id_ns>(
      *rig.association.admin,
      nvme::encode_identify({.nsid = Nsid(1), .cns = NVME_IDENTIFY_CNS_NS, .cntlid = Cntlid(0)}));
  REQUIRE(nvme::from_le(id.nacwu) == 127);
  const auto fresh = some_bytes(128 * kBlock, 3);
  CHECK(rig.compare_and_write(9, std::vector<std::byte>(128 * kBlock), fresh) == IoRig::Pair{Status(), Status()});
  CHECK((rig.read(9, 128) == fresh));  // half a megabyte is not for printing
  CHECK(rig.compare_and_write(200, std::vector<std::byte>(129 * kBlock), some_bytes(129 * kBlock, 1)) ==
        IoRig::Pair{Status::permanent(StatusCode::atomic_write_unit_exceeded), StatusCode::fused_failed});
  CHECK(rig.read(200, 1) == std::vector<std::byte>(kBlock));
}

TEST_CASE("A half without the other is told that the other is missing") {
  HalvesRig rig;
  SECTION("first, then something else") {
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    const auto other = rig.submit(IoRig::entry(IoOpcode::read, 0, 1));
    CHECK(answer(rig, first).code() == StatusCode::fused_missing);
    CHECK(answer(rig, other).status().ok());
  }
  SECTION("second, without a first") {
    CHECK(answer(rig, rig.submit(IoRig::half(Fuse::second, 0, 1))).code() == StatusCode::fused_missing);
  }
  SECTION("something between them") {
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    const auto between = rig.submit(IoRig::entry(IoOpcode::verify, 0, 1));
    const auto second = rig.submit(IoRig::half(Fuse::second, 0, 1));
    CHECK(answer(rig, first).code() == StatusCode::fused_missing);
    CHECK(answer(rig, between).status().ok());
    CHECK(answer(rig, second).code() == StatusCode::fused_missing);
    CHECK(rig.target->statistics().namespaces[0].writes == 0);
  }
  SECTION("two firsts: the later one has its second") {
    const auto lost = rig.submit(IoRig::half(Fuse::first, 0, 1));
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    const auto second = rig.submit(IoRig::half(Fuse::second, 0, 1));
    CHECK(answer(rig, lost).code() == StatusCode::fused_missing);
    CHECK(rig.pair(*rig.queue, first, second) == IoRig::Pair{Status(), Status()});
  }
  SECTION("two seconds") {
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    const auto second = rig.submit(IoRig::half(Fuse::second, 0, 1));
    const auto again = rig.submit(IoRig::half(Fuse::second, 0, 1));
    CHECK(rig.pair(*rig.queue, first, second) == IoRig::Pair{Status(), Status()});
    CHECK(answer(rig, again).code() == StatusCode::fused_missing);
  }
  SECTION("first, then nothing at all") {
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    CHECK(answer(rig, first).code() == StatusCode::fused_missing);
    CHECK(answer(rig, rig.submit(IoRig::half(Fuse::second, 0, 1))).code() == StatusCode::fused_missing);
  }
  SECTION("a second on another queue is none") {
    RawQueue& other = rig.io_queue(rig.association, Qid(2));
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    CHECK(rig.transfer(other, IoRig::half(Fuse::second, 0, 1), *rig.zeroes, kBlock).code() ==
          StatusCode::fused_missing);
    const auto second = rig.submit(IoRig::half(Fuse::second, 0, 1));
    CHECK(rig.pair(*rig.queue, first, second) == IoRig::Pair{Status(), Status()});
  }
}

TEST_CASE("Halves that do not fit are refused, both of them, and nothing is written") {
  HalvesRig rig({.configure = nullptr});
  const auto pair = [&](const nvme::SubmissionQueueEntry& first, const nvme::SubmissionQueueEntry& second) {
    const auto first_cid = rig.submit(first), second_cid = rig.submit(second);
    const auto answers = rig.pair(*rig.queue, first_cid, second_cid);
    return std::pair(answers.compare.code(), answers.write.code());
  };
  const auto invalid = std::pair(StatusCode::invalid_field, StatusCode::invalid_field);
  CHECK(pair(IoRig::half(Fuse::first, 0, 1), IoRig::half(Fuse::second, 1, 1)) == invalid);
  CHECK(pair(IoRig::half(Fuse::first, 0, 1), IoRig::half(Fuse::second, 0, 2)) == invalid);
  CHECK(pair(IoRig::half(Fuse::first, 0, 2), IoRig::half(Fuse::second, 0, 1)) == invalid);
  // One of them is wrong by itself: the other one fails with it.
  CHECK(pair(IoRig::half(Fuse::first, kBlocks, 1), IoRig::half(Fuse::second, kBlocks - 1, 1)) ==
        std::pair(StatusCode::lba_out_of_range, StatusCode::fused_failed));
  CHECK(pair(IoRig::half(Fuse::first, kBlocks - 1, 1), IoRig::half(Fuse::second, kBlocks, 1)) ==
        std::pair(StatusCode::fused_failed, StatusCode::lba_out_of_range));
  auto elsewhere = IoRig::half(Fuse::second, 0, 1);
  elsewhere.nsid = 9u;
  CHECK(pair(IoRig::half(Fuse::first, 0, 1), elsewhere) ==
        std::pair(StatusCode::fused_failed, StatusCode::invalid_namespace));
  // What is no Compare and no Write cannot be a half, nor can these in each other's place.
  auto read = IoRig::entry(IoOpcode::read, 0, 1);
  read.flags |= 1;
  CHECK(pair(read, IoRig::half(Fuse::second, 0, 1)) == std::pair(StatusCode::invalid_field, StatusCode::fused_failed));
  read.flags ^= 3;
  CHECK(pair(IoRig::half(Fuse::first, 0, 1), read) == std::pair(StatusCode::fused_failed, StatusCode::invalid_field));
  auto write = IoRig::entry(IoOpcode::write, 0, 1);
  write.flags |= 3;
  CHECK(pair(IoRig::half(Fuse::first, 0, 1), write) == std::pair(StatusCode::fused_missing, StatusCode::invalid_field));
  CHECK(rig.target->statistics().namespaces[0].writes == 0);
}

TEST_CASE("Halves of different namespaces are refused") {
  Random random(1);
  HalvesRig rig({.configure = [&](target::Target& target) {
    transport::sim::Network elsewhere;
    auto store = target::make_store("ram:size=1MiB,block=4096",
                                    {.clock = elsewhere.clock(), .random = random, .logger = null_logger()});
    REQUIRE(target.add_namespace(nqn(kSubsystem), std::move(*store)).has_value());
  }});
  auto second = IoRig::half(Fuse::second, 0, 1);
  second.nsid = 2u;
  const auto first_cid = rig.submit(IoRig::half(Fuse::first, 0, 1)), second_cid = rig.submit(second);
  const auto both = rig.pair(*rig.queue, first_cid, second_cid);
  CHECK(both.compare.code() == StatusCode::invalid_field);
  CHECK(both.write.code() == StatusCode::invalid_field);
}

TEST_CASE("The admin queue knows no pairs") {
  IoRig rig;
  for (const unsigned fuse : {1u, 2u, 3u}) {
    auto sqe = nvme::encode_plain(nvme::AdminOpcode::keep_alive);
    sqe.flags = static_cast<std::uint8_t>(sqe.flags | fuse);
    CHECK(rig.execute(*rig.association.admin, sqe).code() == StatusCode::invalid_field);
  }
}

TEST_CASE("Nobody changes the blocks of a pair between its halves, and everybody goes on behind it") {
  Gate gate;
  IoRig rig({.store = kInPlace, .gate = &gate});
  RawQueue& other = rig.io_queue(rig.association, Qid(2), 128);
  gate.open = true;
  CHECK(rig.compare_and_write(50, std::vector<std::byte>(kBlock), some_bytes(kBlock, 9)).write.ok());
  gate.open = false;
  auto memory = rig.memory(other, 4096);
  const auto command = GENERATE(0, 1, 2, 3, 4);
  INFO(command);
  const auto submit = [&] {
    const auto with = [&](nvme::SubmissionQueueEntry sqe, std::uint32_t bytes) {
      if (bytes > 0) sqe.sgl = memory->keyed(bytes);
      return other.submit(sqe);
    };
    const auto put = [&](const auto& wire) { std::memcpy(memory->bytes().data(), &wire, sizeof wire); };
    switch (command) {
      case 0: return with(IoRig::entry(IoOpcode::write, 10, 1), kBlock);
      case 1: return with(IoRig::entry(IoOpcode::write_zeroes, 0, 64), 0);
      case 2:
        put(nvme::encode_copy_range({Lba(2), Blocks(4)}));
        return with(nvme::encode_copy({.nsid = Nsid(1), .first = Lba(8), .ranges = 1}), 32);
      case 3:
        put(nvme::encode_dataset_range({Lba(0), Blocks(64)}));
        return with(nvme::encode_dataset_management({.nsid = Nsid(1), .deallocate = nvme::Deallocate::yes}), 16);
      default: {
        auto first = IoRig::half(Fuse::first, 10, 1);
        first.sgl = memory->keyed(kBlock);
        other.submit(first);
        return with(IoRig::half(Fuse::second, 10, 1), kBlock);
      }
    }
  };
  auto mine = rig.memory(*rig.queue, 2 * kBlock);
  const auto fresh = some_bytes(kBlock, 4);
  std::copy(fresh.begin(), fresh.end(), mine->bytes().begin() + kBlock);
  auto first = IoRig::half(Fuse::first, 10, 1), second = IoRig::half(Fuse::second, 10, 1);
  first.sgl = mine->keyed(kBlock);
  second.sgl = mine->keyed(kBlock, kBlock);
  const auto first_cid = rig.queue->submit(first), second_cid = rig.queue->submit(second);
  rig.expect([&] { return gate.waiting() == 1; }, "the pair reads");
  const auto theirs = submit();
  // A Copy reads before it has its turn.
  const std::size_t reads = command == 2 ? 1 : 0;
  wait(rig);
  CHECK(gate.waiting() == 1 + reads);
  for (std::size_t i = 0; i < 1 + reads; ++i)
    gate.let_one_through();
  rig.expect([&] { return gate.waiting() == 1; }, "the pair wants to write");
  wait(rig);
  CHECK(gate.waiting() == 1);
  gate.let_one_through();
  rig.expect([&] { return gate.waiting() == 1; }, "the pair writes");
  wait(rig);
  CHECK(gate.waiting() == 1);
  CHECK_FALSE(other.take(theirs).has_value());
  gate.let_one_through();
  gate.open = true;
  CHECK(rig.pair(*rig.queue, first_cid, second_cid) == IoRig::Pair{Status(), Status()});
  rig.expect(
      [&] {
        if (gate.waiting() > 0) gate.let_all_through();
        return other.take(theirs).has_value();
      },
      "the other one is answered");
}

TEST_CASE("What lies beside a pair's blocks is written meanwhile") {
  Gate gate;
  HalvesRig rig({.store = kInPlace, .gate = &gate});
  RawQueue& other = rig.io_queue(rig.association, Qid(2), 128);
  gate.open = true;
  CHECK(rig.compare_and_write(50, std::vector<std::byte>(kBlock), some_bytes(kBlock, 9)).write.ok());
  gate.open = false;
  rig.submit(IoRig::half(Fuse::first, 10, 1));
  rig.submit(IoRig::half(Fuse::second, 10, 1));
  rig.expect([&] { return gate.waiting() == 1; }, "the pair reads");
  gate.open = true;
  CHECK(rig.transfer(other, IoRig::entry(IoOpcode::write, 11, 1), *rig.zeroes, kBlock).status().ok());
  CHECK(rig.transfer(other, IoRig::entry(IoOpcode::write, 9, 1), *rig.zeroes, kBlock).status().ok());
  gate.let_all_through();
  rig.expect([&] { return rig.queue->responses.size() == 2; }, "the pair is answered");
}

TEST_CASE("The first pair of a namespace waits for the writes that came before it") {
  Gate gate;
  HalvesRig rig({.store = kInPlace, .gate = &gate});
  RawQueue& other = rig.io_queue(rig.association, Qid(2), 128);
  auto write = IoRig::entry(IoOpcode::write, 99, 1);
  write.sgl = rig.zeroes->keyed(kBlock);
  const auto earlier = other.submit(write);
  rig.expect([&] { return gate.waiting() == 1; }, "the write is in the store");
  const auto first = rig.submit(IoRig::half(Fuse::first, 10, 1)), second = rig.submit(IoRig::half(Fuse::second, 10, 1));
  wait(rig);
  CHECK(gate.waiting() == 1);
  gate.open = true;
  gate.let_all_through();
  CHECK(rig.pair(*rig.queue, first, second) == IoRig::Pair{Status(), Status()});
  CHECK(other.take(earlier)->status().ok());
}

TEST_CASE("Counters that several hosts increase with pairs lose no increase") {
  const char* const store =
      GENERATE("delay:read=0-3ms,write=0-3ms,commit=0-3ms,ram:size=16MiB,block=4096,atomic=in-place",
               "delay:read=0-3ms,write=0-3ms,commit=0-3ms,ram:size=16MiB,block=4096,atomic=shadow");
  INFO(store);
  IoRig rig({.store = store});
  static constexpr std::uint64_t kGoal = 40;
  struct Host {
    RawQueue* queue;
    std::unique_ptr<HostMemory> memory;
    std::uint64_t seen = 0, increases = 0;
    std::uint16_t first = 0, second = 0;
  };
  std::vector<Host> hosts;
  for (std::uint16_t qid = 2; qid < 6; ++qid) {
    RawQueue& queue = rig.io_queue(rig.association, Qid(qid));
    hosts.push_back({&queue, rig.memory(queue, 2 * kBlock)});
  }
  const auto attempt = [&](Host& host) {
    const std::uint64_t next = host.seen + 1;
    std::memcpy(host.memory->bytes().data(), &host.seen, sizeof host.seen);
    std::memcpy(host.memory->bytes().data() + kBlock, &next, sizeof next);
    auto first = IoRig::half(Fuse::first, 10, 1), second = IoRig::half(Fuse::second, 10, 1);
    first.sgl = host.memory->keyed(kBlock);
    second.sgl = host.memory->keyed(kBlock, kBlock);
    host.first = host.queue->submit(first);
    host.second = host.queue->submit(second);
  };
  for (Host& host : hosts)
    attempt(host);
  rig.expect(
      [&] {
        for (Host& host : hosts) {
          const auto written = host.queue->take(host.second);
          if (!written) continue;
          CHECK(host.queue->take(host.first).has_value());  // it was answered before
          if (written->status().ok()) ++host.increases;
          // Who lost tries the next number: somebody has had this one.
          if (++host.seen < kGoal) attempt(host);
        }
        return std::all_of(hosts.begin(), hosts.end(), [](const Host& host) { return host.seen == kGoal; });
      },
      "all have tried all numbers");
  std::uint64_t sum = 0;
  for (const Host& host : hosts)
    sum += host.increases;
  CHECK(sum == kGoal);
  std::uint64_t counter = 0;
  const auto block = rig.read(10, 1);
  std::memcpy(&counter, block.data(), sizeof counter);
  CHECK(counter == kGoal);
}

TEST_CASE("A medium that fails under a pair is told to the half that it fails") {
  IoRig rig({.store = "error:read,lba=30,error:commit,lba=40,ram:size=16MiB,block=4096"});
  const std::vector<std::byte> zeroes(kBlock);
  CHECK(rig.compare_and_write(30, zeroes, zeroes) ==
        IoRig::Pair{StatusCode::unrecovered_read_error, StatusCode::fused_failed});
  CHECK(rig.compare_and_write(40, zeroes, zeroes) == IoRig::Pair{Status(), StatusCode::write_fault});
  CHECK(rig.compare_and_write(50, zeroes, zeroes) == IoRig::Pair{Status(), Status()});
}

TEST_CASE("A connection that dies with a pair under way leaves nothing behind, wherever that is") {
  Gate gate;
  const int steps = GENERATE(-2, -1, 0, 1, 2, 3);  // before the second half; with both; n operations of the store
  INFO(steps);
  HalvesRig rig({.store = kInPlace, .gate = &gate});
  rig.submit(IoRig::half(Fuse::first, 10, 1));
  if (steps > -2) rig.submit(IoRig::half(Fuse::second, 10, 1));
  for (int i = 0; i < steps; ++i) {
    rig.expect([&] { return gate.waiting() == 1; }, "the store is asked");
    if (i + 1 < steps) gate.let_one_through();
  }
  if (steps == -2) wait(rig);
  rig.queue->connection->close();
  rig.expect([&] { return rig.queue->closed; }, "the host has closed");
  wait(rig);
  gate.open = true;
  gate.let_all_through();
  RawQueue& again = rig.io_queue(rig.association, Qid(2));
  const std::vector<std::byte> zeroes(kBlock);
  CHECK(rig.compare_and_write(10, zeroes, zeroes, &again) == IoRig::Pair{Status(), Status()});
}

TEST_CASE("Pairs that fill the side pool wait for one another and all come back") {
  IoRig rig({.limits = {.buffers = Bytes(4 * kMiB)}, .store = kInPlace});
  auto memory = rig.memory(*rig.queue, 128 * kBlock);
  for (std::uint32_t i = 0; i < 40; ++i)
    for (const auto which : {Fuse::first, Fuse::second}) {
      auto sqe = IoRig::half(which, i * 3, 128);
      sqe.sgl = memory->keyed(128 * kBlock);
      rig.queue->submit(sqe);
    }
  rig.expect([&] { return rig.queue->responses.size() == 80; }, "all are answered");
  for (const auto& response : rig.queue->responses)
    CHECK(response.status().ok());
}
