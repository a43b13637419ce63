// Layers before a whole target: every failure of a store as the host hears of it, and slow stores.

#include <catch2/catch.hpp>
#include <cstring>

#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = 4096;

struct LayeredRig {
  explicit LayeredRig(const std::string& layers)
      : rig({.store = layers + "ram:size=16MiB,block=4096"}),
        association(rig.associate(kSubsystem, std::chrono::seconds(60))),
        queue(rig.io_queue(association, Qid(1), 32)),
        memory(rig.memory(queue, kBlock)) {}

  nvme::Status carry_out(const std::string& operation, std::uint64_t lba = 0) {
    if (operation == "flush") return rig.execute(queue, nvme::encode_flush(Nsid(1))).status();
    if (operation == "discard") {
      const auto wire = nvme::encode_dataset_range({.first = Lba(lba), .count = Blocks(1)});
      std::memcpy(memory->bytes().data(), &wire, sizeof wire);
      return rig
          .transfer(
              queue,
              nvme::encode_dataset_management({.nsid = Nsid(1), .ranges = 1, .deallocate = nvme::Deallocate::yes}),
              *memory, sizeof wire)
          .status();
    }
    const auto opcode = operation == "read"           ? IoOpcode::read
                        : operation == "write_zeroes" ? IoOpcode::write_zeroes
                                                      : IoOpcode::write;
    const auto sqe = nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(1)});
    if (opcode == IoOpcode::write_zeroes) return rig.execute(queue, sqe).status();
    return rig.transfer(queue, sqe, *memory, kBlock).status();
  }

  TargetRig rig;
  Association association;
  RawQueue& queue;
  std::unique_ptr<HostMemory> memory;
};

struct Told {
  const char* word;
  StatusCode code;
  bool retry;
};

}  // namespace

TEST_CASE("Every failure of a store reaches the host as its NVMe status, from every operation, and never as success") {
  const auto told = GENERATE(
      Told{"read_error", StatusCode::unrecovered_read_error, true}, Told{"write_error", StatusCode::write_fault, true},
      Told{"no_space", StatusCode::capacity_exceeded, false},
      Told{"read_only", StatusCode::namespace_write_protected, false},
      Told{"out_of_range", StatusCode::lba_out_of_range, false}, Told{"unsupported", StatusCode::invalid_opcode, false},
      Told{"unavailable", StatusCode::namespace_not_ready, true});
  const std::string operation = GENERATE("read", "write", "commit", "flush", "discard", "write_zeroes");
  INFO(operation << ": " << told.word);
  LayeredRig rig("error:" + operation + ",nth=2,status=" + told.word + ",");
  CHECK(rig.carry_out(operation).ok());
  const nvme::Status status = rig.carry_out(operation);
  CHECK(status.code() == told.code);
  CHECK(status.do_not_retry() == !told.retry);
  CHECK(rig.carry_out(operation).ok());
  CHECK(rig.rig.target->statistics().namespaces[0].errors == 1);
  for (const char* const other : {"read", "write", "flush", "discard", "write_zeroes"})
    CHECK(rig.carry_out(other).ok());
}

TEST_CASE("A write that fails before its data is moved leaves the block as it was") {
  LayeredRig rig("error:write,lba=5,status=read_only,");
  std::fill(rig.memory->bytes().begin(), rig.memory->bytes().end(), std::byte{9});
  CHECK(rig.carry_out("write", 4).ok());
  CHECK(rig.carry_out("write", 5).code() == StatusCode::namespace_write_protected);
  CHECK(rig.carry_out("read", 5).ok());
  CHECK(std::all_of(rig.memory->bytes().begin(), rig.memory->bytes().end(),
                    [](std::byte b) { return b == std::byte{}; }));
}

TEST_CASE("A slow store slows its own commands down, on the virtual clock, and Keep Alive not at all") {
  LayeredRig rig("delay:300ms,flush=2s-3s,");
  const auto timed = [&](const std::string& operation) {
    const Instant began = rig.rig.network.clock().now();
    CHECK(rig.carry_out(operation).ok());
    return rig.rig.network.clock().now() - began;
  };
  using namespace std::chrono_literals;
  for (const char* const operation : {"read", "write", "discard", "write_zeroes"}) {
    const Duration took = timed(operation);
    CHECK(took >= 300ms);
    CHECK(took < 310ms);
  }
  const Duration flush = timed("flush");
  CHECK(flush >= 2s);
  CHECK(flush < 3010ms);
  const auto cid = rig.queue.submit(nvme::encode_flush(Nsid(1)));
  const Instant began = rig.rig.network.clock().now();
  CHECK(rig.rig.execute(*rig.association.admin, nvme::encode_plain(nvme::AdminOpcode::keep_alive)).status().ok());
  CHECK(rig.rig.network.clock().now() - began < 10ms);
  rig.rig.expect([&] { return rig.queue.take(cid).has_value(); }, "the flush ends");
}

TEST_CASE("A connection that ends while its commands are delayed waits for them and leaks nothing") {
  LayeredRig rig("delay:800ms,");
  for (int i = 0; i < 8; ++i)
    rig.queue.submit(nvme::encode_flush(Nsid(1)));
  rig.rig.run_for(std::chrono::milliseconds(100));
  rig.queue.connection->close();
  rig.rig.run_for(std::chrono::milliseconds(500));
  CHECK(rig.rig.target->statistics().connections() == 2);
  rig.rig.expect([&] { return rig.rig.target->statistics().connections() == 1; }, "it is gone");
}

TEST_CASE("What a layer has counted is in the target's statistics") {
  LayeredRig rig("stats:");
  CHECK(rig.carry_out("write").ok());
  const auto report = rig.rig.target->statistics().namespaces[0].report;
  REQUIRE(report.size() == 2);
  CHECK(report[1].starts_with("commit: 1 done, 0 failed, 4 KiB"));
}

TEST_CASE("A store that fails its n-th operation, for every n, costs one command and nothing else") {
  for (int nth = 1;; ++nth) {
    LayeredRig rig("error:read+write+commit+flush+discard+write_zeroes,nth=" + std::to_string(nth) + ",");
    int failed = 0;
    for (const char* const operation : {"write", "read", "flush", "write_zeroes", "discard", "write", "read"})
      failed += rig.carry_out(operation).ok() ? 0 : 1;
    CHECK_FALSE(rig.queue.ended());
    if (failed == 0) {
      CHECK(nth == 10);  // a write asks twice
      break;
    }
    CHECK(failed == 1);
  }
}
