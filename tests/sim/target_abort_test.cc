// Abort: what waits is stopped and says so; what is under way is not, and DW0 says so.

#include <catch2/catch.hpp>

#include "tests/sim/io_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::Fuse;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = IoRig::kBlock;
constexpr const char* kInPlace = "ram:size=16MiB,block=4096,atomic=in-place";

struct AbortRig : IoRig {
  explicit AbortRig(RigOptions options) : IoRig(std::move(options)), data(memory(*queue, 256 * kBlock)) {
    std::fill(data->bytes().begin(), data->bytes().end(), std::byte{1});
  }
  std::uint16_t submit(nvme::SubmissionQueueEntry sqe) {
    sqe.sgl = data->keyed((sqe.cdw12.get() % 65536 + 1) * kBlock);
    return queue->submit(sqe);
  }
  /// True: DW0 says that the command was aborted.
  bool abort(std::uint16_t cid, Qid qid = Qid(1)) {
    const auto response = execute(*association.admin, nvme::encode_abort({.qid = qid, .cid = Cid(cid)}));
    require_ok(response);
    CHECK(response.cqe.dw0() <= 1);
    return response.cqe.dw0() == 0;
  }
  StatusCode answer(std::uint16_t cid) {
    std::optional<Response> response;
    expect([&] { return (response = queue->take(cid)).has_value(); }, "the command is answered");
    return response->code();
  }
  std::unique_ptr<HostMemory> data;
};

}  // namespace

TEST_CASE("A command that waits for a buffer is stopped at once") {
  Gate gate;
  const std::size_t reactors = GENERATE(1u, 2u);
  AbortRig rig({.limits = {.buffers = Bytes(4 * kMiB)}, .reactors = reactors, .store = kInPlace, .gate = &gate});
  const auto holder = rig.submit(IoRig::entry(IoOpcode::compare, 0, 256));
  const auto other = rig.submit(IoRig::entry(IoOpcode::compare, 0, 256));
  rig.expect([&] { return gate.waiting() == 2; }, "two have all there is");
  const auto waits = rig.submit(IoRig::entry(IoOpcode::compare, 0, 1));
  const auto behind = rig.submit(IoRig::entry(IoOpcode::compare, 0, 1));
  static_cast<void>(rig.run_until([] { return false; }, std::chrono::milliseconds(50)));
  CHECK(rig.abort(waits));
  CHECK(rig.answer(waits) == StatusCode::abort_requested);
  CHECK(gate.waiting() == 2);
  CHECK_FALSE(rig.abort(waits));  // it is over
  gate.open = true;
  gate.let_all_through();
  CHECK(rig.answer(holder) == StatusCode::compare_failure);
  CHECK(rig.answer(other) == StatusCode::compare_failure);
  CHECK(rig.answer(behind) == StatusCode::compare_failure);
}

TEST_CASE("A write that waits for the store's memory is stopped when that lets go, and writes nothing") {
  Gate gate;
  const std::size_t reactors = GENERATE(1u, 2u);
  AbortRig rig({.reactors = reactors, .store = kInPlace, .gate = &gate});
  const auto write = rig.submit(IoRig::entry(IoOpcode::write, 3, 1));
  rig.expect([&] { return gate.waiting() == 1; }, "the store is asked");
  CHECK(rig.abort(write));
  CHECK(rig.abort(write));  // it is still there
  CHECK(rig.queue->responses.empty());
  gate.open = true;
  gate.let_all_through();
  CHECK(rig.answer(write) == StatusCode::abort_requested);
  CHECK(rig.read(3, 1) == std::vector<std::byte>(kBlock));
}

TEST_CASE("A command that the store is at goes on, and Abort says so") {
  Gate gate;
  AbortRig rig({.store = kInPlace, .gate = &gate});
  const auto write = rig.submit(IoRig::entry(IoOpcode::write, 3, 1));
  rig.expect([&] { return gate.waiting() == 1; }, "the store is asked for memory");
  gate.let_one_through();
  rig.expect([&] { return gate.waiting() == 1; }, "the write is committed");
  CHECK_FALSE(rig.abort(write));
  gate.open = true;
  gate.let_all_through();
  CHECK(rig.answer(write) == StatusCode::success);
  CHECK(rig.read(3, 1) == std::vector<std::byte>(kBlock, std::byte{1}));
}

TEST_CASE("Writes that wait for read credits, or whose data is on its way, are stopped") {
  transport::sim::NetworkOptions network;
  network.read_depth_max = 1;
  AbortRig rig({.network = network, .store = kInPlace});
  std::vector<std::uint16_t> writes;
  for (std::uint64_t i = 0; i < 12; ++i)
    writes.push_back(rig.submit(IoRig::entry(IoOpcode::write, i * 256, 256)));
  rig.expect([&] { return !rig.queue->responses.empty(); }, "the first one is answered, so that all have come");
  std::vector<std::uint16_t> aborted;
  for (const std::size_t i : {11u, 9u, 10u})
    if (rig.abort(writes[i])) aborted.push_back(writes[i]);
  CHECK(aborted.size() == 3);
  for (std::size_t i = 0; i < writes.size(); ++i) {
    const bool stopped = std::find(aborted.begin(), aborted.end(), writes[i]) != aborted.end();
    CHECK(rig.answer(writes[i]) == (stopped ? StatusCode::abort_requested : StatusCode::success));
  }
}

TEST_CASE("Half a pair and whole pairs are stopped while they wait") {
  Gate gate;
  AbortRig rig({.store = kInPlace, .gate = &gate});
  SECTION("a first half alone; its second then finds that it failed") {
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    static_cast<void>(rig.run_until([] { return false; }, std::chrono::milliseconds(50)));
    CHECK(rig.abort(first));
    CHECK(rig.answer(first) == StatusCode::abort_requested);
    CHECK(rig.answer(rig.submit(IoRig::half(Fuse::second, 0, 1))) == StatusCode::fused_failed);
  }
  SECTION("a pair that waits for its turn, by either half") {
    const bool by_first = GENERATE(true, false);
    const auto first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    const auto second = rig.submit(IoRig::half(Fuse::second, 0, 1));
    rig.expect([&] { return gate.waiting() == 1; }, "this one has its turn");
    const auto waiting_first = rig.submit(IoRig::half(Fuse::first, 0, 1));
    const auto waiting_second = rig.submit(IoRig::half(Fuse::second, 0, 1));
    static_cast<void>(rig.run_until([] { return false; }, std::chrono::milliseconds(50)));
    CHECK(rig.abort(by_first ? waiting_first : waiting_second));
    CHECK_FALSE(rig.abort(second));  // that one is under way
    gate.open = true;
    gate.let_all_through();
    CHECK(rig.answer(waiting_first) == StatusCode::abort_requested);
    CHECK(rig.answer(waiting_second) == StatusCode::fused_failed);
    CHECK(rig.answer(first) == StatusCode::compare_failure);
    CHECK(rig.answer(second) == StatusCode::fused_failed);
  }
}

TEST_CASE("Abort of what does not exist changes nothing") {
  AbortRig rig({.store = kInPlace});
  CHECK_FALSE(rig.abort(0x7777));
  CHECK_FALSE(rig.abort(1, Qid(2)));
  CHECK_FALSE(rig.abort(1, Qid(0xffff)));
  CHECK_FALSE(rig.abort(0x7777, Qid(0)));
}

TEST_CASE("An Abort whose connections die in between leaves nothing behind") {
  Gate gate;
  const bool admin_dies = GENERATE(true, false);
  AbortRig rig({.store = kInPlace, .gate = &gate});
  const auto write = rig.submit(IoRig::entry(IoOpcode::write, 3, 1));
  rig.expect([&] { return gate.waiting() == 1; }, "the store is asked");
  rig.association.admin->submit(nvme::encode_abort({.qid = Qid(1), .cid = Cid(write)}));
  (admin_dies ? rig.association.admin : rig.queue)->connection->close();
  static_cast<void>(rig.run_until([] { return false; }, std::chrono::milliseconds(50)));
  gate.open = true;
  gate.let_all_through();
  const auto again = rig.associate();
  CHECK(rig.transfer(rig.io_queue(again, Qid(1)), IoRig::entry(IoOpcode::read, 3, 1), *rig.data, kBlock).status().ok());
}
