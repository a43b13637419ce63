// A store that is slow, fails or does not answer: what the target does meanwhile, and what it tells the host.

#include <catch2/catch.hpp>

#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::IoOpcode;
using nvme::StatusCode;
using target::StoreStatus;

namespace {

constexpr std::uint32_t kBlock = 4096;

struct SlowRig {
  explicit SlowRig(target::TargetLimits limits = {})
      : rig({.limits = limits, .store = "ram:size=16MiB,block=4096", .gate = &gate}),
        association(rig.associate(kSubsystem, std::chrono::seconds(2))),
        queue(rig.io_queue(association, Qid(1), 16)),
        memory(rig.memory(queue, 16 * kBlock)) {}
  std::uint16_t submit(IoOpcode opcode, std::uint64_t lba, nvme::ForceUnitAccess fua = nvme::ForceUnitAccess::no) {
    auto sqe = nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(1), .fua = fua});
    if (opcode != IoOpcode::write_zeroes)
      sqe.sgl = memory->keyed(kBlock, static_cast<std::uint32_t>(lba % 16) * kBlock);
    return queue.submit(sqe);
  }
  void expect_waiting(std::size_t count) {
    rig.expect([&] { return gate.waiting() == count; }, "the store is asked");
  }
  Response answer_to(std::uint16_t cid) {
    std::optional<Response> response;
    rig.expect([&] { return (response = queue.take(cid)).has_value(); }, "the command is answered");
    return *response;
  }
  Gate gate;
  TargetRig rig;
  Association association;
  RawQueue& queue;
  std::unique_ptr<HostMemory> memory;
};

}  // namespace

TEST_CASE("A store that answers later moves the same data as one that answers at once") {
  SlowRig slow;
  const auto data = some_bytes(kBlock, 7);
  std::copy(data.begin(), data.end(), slow.memory->bytes().begin());
  const auto written = slow.submit(IoOpcode::write, 0);
  slow.expect_waiting(1);  // acquire
  slow.gate.let_one_through();
  slow.expect_waiting(1);  // commit
  CHECK(slow.queue.responses.empty());
  slow.gate.let_one_through();
  CHECK(slow.answer_to(written).status().ok());
  std::fill(slow.memory->bytes().begin(), slow.memory->bytes().end(), std::byte{0});
  const auto read = slow.submit(IoOpcode::read, 0);
  slow.expect_waiting(1);
  slow.gate.let_one_through();
  CHECK(slow.answer_to(read).status().ok());
  CHECK(std::equal(data.begin(), data.end(), slow.memory->bytes().begin()));
}

TEST_CASE("What the store could not do is told in NVMe's words") {
  SlowRig slow;
  const auto outcome = [&](StoreStatus status, IoOpcode opcode) {
    slow.gate.answers.push_back(status);
    const auto cid = slow.submit(opcode, 0);
    slow.expect_waiting(1);
    slow.gate.let_one_through();
    return slow.answer_to(cid).status();
  };
  CHECK(outcome(StoreStatus::read_error, IoOpcode::read).code() == StatusCode::unrecovered_read_error);
  CHECK(outcome(StoreStatus::write_error, IoOpcode::write_zeroes).code() == StatusCode::write_fault);
  CHECK(outcome(StoreStatus::no_space, IoOpcode::write_zeroes).code() == StatusCode::capacity_exceeded);
  CHECK(outcome(StoreStatus::read_only, IoOpcode::write).code() == StatusCode::namespace_write_protected);
  CHECK(outcome(StoreStatus::out_of_range, IoOpcode::read).code() == StatusCode::lba_out_of_range);
  CHECK_FALSE(outcome(StoreStatus::unavailable, IoOpcode::read).do_not_retry());
  CHECK(slow.rig.target->statistics().namespaces[0].errors == 6);
}

TEST_CASE("Keep Alive is answered while the store is hung") {
  SlowRig slow;
  for (int i = 0; i < 15; ++i)
    slow.submit(IoOpcode::read, static_cast<std::uint64_t>(i));
  slow.expect_waiting(15);
  for (int i = 0; i < 10; ++i) {
    slow.rig.run_for(std::chrono::milliseconds(1500));
    CHECK(slow.rig.execute(*slow.association.admin, nvme::encode_plain(nvme::AdminOpcode::keep_alive)).status().ok());
  }
  CHECK_FALSE(slow.queue.ended());
  slow.gate.let_all_through();
  slow.rig.expect([&] { return slow.queue.responses.size() == 15; }, "all are answered in the end");
}

TEST_CASE("A connection that ends while the store is hung waits for the store, and nothing else does") {
  SlowRig slow;
  const auto opcode = GENERATE(IoOpcode::read, IoOpcode::write, IoOpcode::write_zeroes);
  for (int i = 0; i < 8; ++i)
    slow.submit(opcode, static_cast<std::uint64_t>(i));
  slow.expect_waiting(8);
  slow.queue.connection->close();
  slow.rig.run_for(std::chrono::seconds(1));
  CHECK(slow.rig.target->statistics().connections() == 2);
  CHECK(slow.rig.execute(*slow.association.admin, nvme::encode_plain(nvme::AdminOpcode::keep_alive)).status().ok());
  slow.gate.let_all_through();
  slow.rig.expect([&] { return slow.rig.target->statistics().connections() == 1; }, "then it is gone");
}

TEST_CASE("More commands than the queue has entries, kept by a hung store, close the connection") {
  SlowRig slow;
  for (int i = 0; i < 16; ++i)
    slow.submit(IoOpcode::read, static_cast<std::uint64_t>(i));
  slow.expect_waiting(16);
  CHECK_FALSE(slow.queue.ended());
  slow.submit(IoOpcode::read, 0);
  slow.rig.expect([&] { return slow.queue.ended(); }, "the connection is closed");
  slow.gate.let_all_through();
}

TEST_CASE("Drain lets commands in flight finish, then closes everything") {
  SlowRig slow;
  const auto cid = slow.submit(IoOpcode::read, 0);
  slow.expect_waiting(1);
  slow.rig.target->drain(std::chrono::seconds(1));
  slow.rig.run_for(std::chrono::milliseconds(500));
  CHECK_FALSE(slow.queue.ended());
  const auto data =
      nvme::encode_cm_request({.qid = Qid(0), .host_receives = 32, .host_sends = 32, .cntlid = Cntlid(0)});
  const RawQueue& late = slow.rig.host->connect(slow.rig.address(), nvme::wire_bytes(data));
  slow.rig.expect([&] { return late.ended(); }, "nobody is let in any more");
  CHECK_FALSE(late.established);
  slow.gate.let_one_through();
  CHECK(slow.answer_to(cid).status().ok());
  slow.rig.expect([&] { return slow.rig.target->drained(); }, "all is closed");
  CHECK(slow.queue.ended());
  CHECK(slow.association.admin->ended());
}

TEST_CASE("Drain waits no longer than it may") {
  SlowRig slow;
  slow.submit(IoOpcode::read, 0);
  slow.expect_waiting(1);
  slow.rig.target->drain(std::chrono::seconds(1));
  slow.rig.expect([&] { return slow.queue.ended(); }, "the queue is closed although its command is not done");
  CHECK_FALSE(slow.rig.target->drained());
  slow.gate.let_all_through();
  slow.rig.expect([&] { return slow.rig.target->drained(); }, "the store's answer was the last thing missing");
}

TEST_CASE("Switching the write cache off makes writes durable before their answer") {
  // The gate's store claims a write cache; what reaches it is not visible here, but that the feature holds is.
  SlowRig slow;
  RawQueue& admin = *slow.association.admin;
  const auto get = nvme::encode_get_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_VOLATILE_WC});
  CHECK(slow.rig.execute(admin, get).cqe.dw0() == 1);
  REQUIRE(
      slow.rig
          .execute(admin, nvme::encode_set_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_VOLATILE_WC, .value = 0}))
          .status()
          .ok());
  CHECK(slow.rig.execute(admin, get).cqe.dw0() == 0);
}

TEST_CASE("Commands that wait for buffers are served in order, and all of them") {
  // 4 MiB of buffers; each log page of 1 MiB takes one
  TargetRig rig({.limits = {.buffers = Bytes(4 * kMiB)}});
  const auto association = rig.associate();
  RawQueue& admin = *association.admin;
  auto memory = rig.memory(admin, 1 << 20);
  std::vector<std::uint16_t> cids;
  for (int i = 0; i < 20; ++i) {
    auto sqe = nvme::encode_get_log_page(
        {.nsid = nvme::kNsidAll, .lid = NVME_LOG_LID_ERROR, .offset = Bytes(0), .length = Bytes(kMiB)});
    sqe.sgl = memory->keyed(1 << 20);
    cids.push_back(admin.submit(sqe));
  }
  rig.expect([&] { return admin.responses.size() == 20; }, "all are answered");
  for (std::size_t i = 0; i < cids.size(); ++i)
    CHECK(admin.responses[i].cqe.cid.get() == cids[i]);
}
