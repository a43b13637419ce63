// Hosts that mean no good: a clear status or a closed connection, and nobody else notices.

#include <catch2/catch.hpp>

#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = 4096;

/// A hostile host's queue, and a bystander's that must go on working.
struct HostileRig : TargetRig {
  explicit HostileRig(RigOptions options = {.store = "ram:size=16MiB,block=4096"}) : TargetRig(std::move(options)) {
    association = associate();
    queue = &io_queue(association, Qid(1), 16);
    bystander = &io_queue(associate(), Qid(1));
  }
  ~HostileRig() {
    if (std::uncaught_exceptions() > 0) return;
    auto memory_ = memory(*bystander, kBlock);
    CHECK(transfer(*bystander, read_entry(0), *memory_, kBlock).status().ok());
  }
  static nvme::SubmissionQueueEntry read_entry(std::uint64_t lba) { return entry(IoOpcode::read, lba); }
  static nvme::SubmissionQueueEntry entry(IoOpcode opcode, std::uint64_t lba) {
    return nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(1)});
  }
  void expect_closed() {
    expect([&] { return queue->ended(); }, "the hostile connection is closed");
  }
  Association association;
  RawQueue* queue = nullptr;
  RawQueue* bystander = nullptr;
};

}  // namespace

TEST_CASE("A capsule shorter than an entry closes its connection") {
  const std::size_t size = GENERATE(0u, 1u, 63u);
  HostileRig rig;
  rig.queue->send(some_bytes(size, 1));
  rig.expect_closed();
  CHECK(rig.logger.said("64 is the least"));
}

TEST_CASE("A capsule longer than the receive buffer closes its connection") {
  HostileRig rig;
  rig.queue->send(some_bytes(64 + kBlock + 1, 1));
  rig.expect_closed();
}

TEST_CASE("Random bytes as capsules do no harm") {
  const auto seed = GENERATE(range(0u, 40u));
  HostileRig rig;
  Random random(seed);
  for (int i = 0; i < 60 && !rig.queue->ended(); ++i) {
    auto bytes = some_bytes(64 + random.below(200), random());
    if (i % 2 == 0) {  // likelier to get somewhere
      bytes[0] = static_cast<std::byte>(random.below(3) == 0 ? 0x7f : random.below(12));
      bytes[1] = std::byte{0x40};
      bytes[4] = static_cast<std::byte>(random.below(5));
      bytes[5] = bytes[6] = bytes[7] = std::byte{0};
      bytes[39] = static_cast<std::byte>(random.below(2) == 0 ? 0x40 : 0x01);
    }
    rig.queue->send(bytes);
    if (i % 8 == 7) rig.run_for(std::chrono::milliseconds(1));
  }
  rig.run_for(std::chrono::milliseconds(100));
}

TEST_CASE("Random bytes on the admin queue do no harm either") {
  const auto seed = GENERATE(range(0u, 40u));
  HostileRig rig;
  Random random(seed);
  RawQueue& admin = *rig.association.admin;
  for (int i = 0; i < 100 && !admin.ended(); ++i) {
    auto bytes = some_bytes(64, random());
    constexpr std::array<std::uint8_t, 8> kOpcodes = {0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f};
    bytes[0] = static_cast<std::byte>(kOpcodes[random.below(kOpcodes.size())]);
    bytes[1] = std::byte{0x40};
    bytes[4] = static_cast<std::byte>(random.below(5));
    bytes[5] = bytes[6] = bytes[7] = std::byte{0};
    bytes[39] = std::byte{0x40};
    bytes[40] = static_cast<std::byte>(random.below(16));
    admin.send(bytes);
    if (i % 8 == 7) rig.run_for(std::chrono::milliseconds(1));
  }
  rig.run_for(std::chrono::milliseconds(100));
}

TEST_CASE("Flags that are reserved, fused or without SGL are Invalid Field") {
  HostileRig rig;
  for (const auto flags : std::initializer_list<std::uint8_t>{0x00, 0x80, 0xc0, 0x41, 0x42, 0x43, 0x44, 0x60}) {
    auto sqe = nvme::encode_flush(Nsid(1));
    sqe.flags = flags;
    CHECK(rig.execute(*rig.queue, sqe).code() == StatusCode::invalid_field);
  }
}

TEST_CASE("Data pointers that lie are refused") {
  HostileRig rig;
  auto memory = rig.memory(*rig.queue, kBlock);
  const auto code = [&](IoOpcode opcode, const nvme::SglDescriptor& sgl, std::size_t behind = 0) {
    auto sqe = HostileRig::entry(opcode, 0);
    sqe.sgl = sgl;
    return rig.execute(*rig.queue, sqe, some_bytes(behind, 1)).code();
  };
  const auto in_capsule = [](std::uint64_t offset, std::uint32_t length) {
    nvme::OffsetDescriptor descriptor;
    descriptor.offset = offset;
    descriptor.length = length;
    descriptor.type = 0x01;
    return std::bit_cast<nvme::SglDescriptor>(descriptor);
  };
  auto sgl = memory->keyed(kBlock);
  for (const auto type : std::initializer_list<std::uint8_t>{0x00, 0x20, 0x30, 0x31, 0x41, 0x4e, 0x50, 0xff}) {
    sgl.raw[15] = static_cast<std::byte>(type);
    CHECK(code(IoOpcode::write, sgl) == StatusCode::sgl_invalid_type);
  }
  CHECK(code(IoOpcode::read, in_capsule(0, kBlock), kBlock) == StatusCode::invalid_field);
  CHECK(code(IoOpcode::write, in_capsule(0, kBlock)) == StatusCode::sgl_invalid_length);
  CHECK(code(IoOpcode::write, in_capsule(0, kBlock), kBlock - 1) == StatusCode::sgl_invalid_length);
  CHECK(code(IoOpcode::write, in_capsule(1, kBlock), kBlock) == StatusCode::sgl_invalid_length);
  CHECK(code(IoOpcode::write, in_capsule(~std::uint64_t{0}, kBlock), kBlock) == StatusCode::sgl_invalid_offset);
  CHECK(code(IoOpcode::write, in_capsule(~std::uint64_t{0} - kBlock + 2, kBlock), kBlock) ==
        StatusCode::sgl_invalid_offset);
  CHECK(code(IoOpcode::write, nvme::encode_data_pointer(nvme::KeyedData{~std::uint64_t{0}, kBlock, 1})) ==
        StatusCode::sgl_invalid_length);
}

TEST_CASE("A key that is not the host's, or not for this, kills that connection alone") {
  HostileRig rig;
  auto read_only = std::make_unique<HostMemory>(rig.queue->connection->domain(), kBlock, transport::RemoteAccess::read);
  auto write_only =
      std::make_unique<HostMemory>(rig.queue->connection->domain(), kBlock, transport::RemoteAccess::write);
  const auto which = GENERATE(0, 1, 2, 3);
  auto sqe = HostileRig::entry(which == 1 ? IoOpcode::write : IoOpcode::read, 0);
  if (which == 0) sqe.sgl = read_only->keyed(kBlock);
  if (which == 1) sqe.sgl = write_only->keyed(kBlock);
  if (which == 2) sqe.sgl = nvme::encode_data_pointer(nvme::KeyedData{write_only->address(), kBlock, 0xdeadbeef});
  if (which == 3) sqe.sgl = write_only->keyed(kBlock, 512);  // beyond its end
  rig.queue->submit(sqe);
  rig.expect_closed();
  CHECK_FALSE(rig.association.admin->ended());
}

TEST_CASE("A command id in flight twice is a conflict, and the first command goes on") {
  HostileRig rig;
  auto sqe = nvme::encode_plain(nvme::AdminOpcode::async_event_request);
  sqe.cid = std::uint16_t{99};
  RawQueue& admin = *rig.association.admin;
  admin.submit(sqe);
  CHECK(rig.execute(admin, sqe).code() == StatusCode::command_id_conflict);
  CHECK(rig.execute(admin, nvme::encode_abort({.qid = Qid(0), .cid = Cid(99)})).cqe.dw0() == 0);
  CHECK(admin.take(99)->code() == StatusCode::abort_requested);
}

TEST_CASE("More commands in flight than the queue has entries close the connection") {
  HostileRig rig;
  RawQueue& admin = rig.queue_up(Qid(0));
  REQUIRE(rig.connect(admin, rig.connect_request(Qid(0), nvme::kCntlidDynamic, 2)).status().ok());
  REQUIRE(rig.set_configuration(admin, TargetRig::enabled()).status().ok());
  for (int i = 0; i < 2; ++i)
    admin.submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
  rig.run_for(std::chrono::milliseconds(1));
  CHECK_FALSE(admin.ended());
  admin.submit(nvme::encode_plain(nvme::AdminOpcode::keep_alive));
  rig.expect([&] { return admin.ended(); }, "the connection is closed");
  CHECK(rig.logger.said("more than the 2 of its submission queue"));
}

TEST_CASE("A flood of Asynchronous Event Requests is answered, four are held") {
  HostileRig rig;
  RawQueue& admin = *rig.association.admin;
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 20; ++i)
      admin.submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
    rig.run_for(std::chrono::milliseconds(5));
  }
  CHECK(admin.responses.size() == 196);
  CHECK_FALSE(admin.ended());
}

TEST_CASE("Toggling CC.EN without end is survived") {
  HostileRig rig;
  RawQueue& admin = *rig.association.admin;
  for (int i = 0; i < 200; ++i) {
    REQUIRE(rig.set_configuration(admin, {}).status().ok());
    REQUIRE(rig.set_configuration(admin, TargetRig::enabled()).status().ok());
  }
  rig.expect_closed();
  CHECK_FALSE(admin.ended());
}

TEST_CASE("A shutdown and a reset in the middle of I/O lose no buffer") {
  HostileRig rig;
  auto memory = rig.memory(*rig.queue, 16 * kBlock);
  for (std::uint32_t i = 0; i < 15; ++i) {
    auto sqe = HostileRig::entry(i % 2 == 0 ? IoOpcode::write : IoOpcode::read, i);
    sqe.sgl = memory->keyed(kBlock, i * kBlock);
    rig.queue->submit(sqe);
  }
  rig.association.admin->submit(nvme::encode_property_set(
      {.offset = 0x14, .value = TargetRig::enabled().with_shutdown(nvme::Shutdown::abrupt).raw}));
  rig.association.admin->submit(nvme::encode_property_set({.offset = 0x14, .value = 0}));
  rig.expect_closed();
}

TEST_CASE("A host that dies with I/O in flight leaves nothing behind") {
  TargetRig rig({.store = "ram:size=16MiB,block=4096"});
  const auto how = GENERATE(0, 1, 2);
  const auto association = rig.associate(kSubsystem, std::chrono::seconds(2));
  RawQueue& queue = rig.io_queue(association, Qid(1), 64);
  auto memory = rig.memory(queue, 60 * kBlock);
  for (std::uint32_t i = 0; i < 60; ++i) {
    auto sqe = HostileRig::entry(i % 2 == 0 ? IoOpcode::write : IoOpcode::read, i);
    sqe.sgl = memory->keyed(kBlock, i * kBlock);
    queue.submit(sqe);
  }
  rig.run_for(std::chrono::microseconds(10));
  if (how == 0) rig.network.faults().kill("host");
  if (how == 1) rig.network.faults().kill_process("host");
  if (how == 2) rig.network.faults().partition("host", "target");
  // The keep-alive timeout notices at the latest; 5 s more is the bound on everything else.
  CHECK(rig.run_until([&] { return rig.target->statistics().connections() == 0; }, std::chrono::seconds(9)));
  rig.host_died = how != 2;
  CHECK(rig.target->statistics().controllers == 0);
  for (const auto& reactor : rig.target->statistics().reactors)
    CHECK(reactor.buffers_free == reactor.buffers_size);
}

TEST_CASE("A flood of connection requests leaves the target working") {
  HostileRig rig;
  for (int i = 0; i < 300; ++i) {
    auto data = nvme::encode_cm_request({.qid = Qid(0), .host_receives = 32, .host_sends = 32, .cntlid = Cntlid(0)});
    if (i % 3 == 0) data.record_format = std::uint16_t{7};
    rig.host->connect(rig.address(), nvme::wire_bytes(data));
  }
  rig.run_for(std::chrono::seconds(8));  // the half-open time and more
  CHECK(rig.target->statistics().connections() == 4);
}

TEST_CASE("A command id is free again as soon as its answer is there") {
  HostileRig rig;
  for (int i = 0; i < 100; ++i) {
    auto sqe = nvme::encode_flush(Nsid(1));
    sqe.cid = std::uint16_t{5};
    CHECK(rig.execute(*rig.queue, sqe).status().ok());
    sqe.nsid = std::uint32_t{77};
    CHECK(rig.execute(*rig.queue, sqe).code() == StatusCode::invalid_namespace);
  }
}

TEST_CASE("Every command gives its receive buffer back, whatever becomes of it") {
  HostileRig rig({.limits = {.receive_depth = 4}, .store = "ram:size=16MiB,block=4096"});
  auto memory = rig.memory(*rig.queue, kBlock);
  auto conflicting = nvme::encode_plain(nvme::AdminOpcode::async_event_request);
  conflicting.cid = std::uint16_t{9999};
  rig.association.admin->submit(conflicting);
  for (int i = 0; i < 20; ++i) {
    auto sqe = nvme::encode_flush(Nsid(1));
    sqe.flags = 0;
    CHECK_FALSE(rig.execute(*rig.queue, sqe).status().ok());
    sqe = HostileRig::entry(IoOpcode::write, 0);
    sqe.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock});
    CHECK(rig.execute(*rig.queue, sqe, some_bytes(kBlock, 1)).status().ok());
    sqe = HostileRig::entry(IoOpcode::write, 1ull << 40);
    sqe.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock});
    CHECK_FALSE(rig.execute(*rig.queue, sqe, some_bytes(kBlock, 1)).status().ok());
    CHECK(rig.transfer(*rig.queue, HostileRig::entry(IoOpcode::write, 0), *memory, kBlock).status().ok());
    CHECK(rig.execute(*rig.association.admin, conflicting).code() == StatusCode::command_id_conflict);
  }
}

TEST_CASE("Of two Connects in flight one succeeds") {
  HostileRig rig;
  RawQueue& admin = rig.queue_up(Qid(0));
  const auto request = rig.connect_request(Qid(0), nvme::kCntlidDynamic);
  const auto data = nvme::encode_connect_data(request);
  auto memory = rig.memory(admin, sizeof data);
  std::memcpy(memory->bytes().data(), &data, sizeof data);
  auto sqe = nvme::encode_connect(request);
  sqe.sgl = memory->keyed(sizeof data);
  admin.submit(sqe);
  admin.submit(sqe);
  rig.expect([&] { return admin.responses.size() == 2; }, "both are answered");
  CHECK(admin.responses[0].status().ok());
  CHECK(admin.responses[1].code() == StatusCode::command_sequence_error);
  CHECK(rig.target->statistics().controllers == 3);
}
