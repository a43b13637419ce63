// Command capsules and data pointers that lie. What has no command id to answer to costs the connection; everything else
// is answered with what is wrong.

#include <algorithm>

#include "target/opcodes.h"
#include "tests/wire/hostile_host.h"

using namespace rbt;
using namespace rbt::test;
using nvme::IoOpcode;
using nvme::StatusCode;
using target::QueueKind;

namespace {

constexpr std::uint32_t kBlock = HostileRig::kBlock;

/// An intruder with a controller, an I/O queue, and memory for a few blocks.
struct Intruder : HostileRig {
  explicit Intruder(RigOptions options = {}) : HostileRig(std::move(options)) {
    come_in();
    mine = memory(*queue, 4 * kBlock);
  }
  ~Intruder() { mine.reset(); }
  StatusCode write(const nvme::SglDescriptor& sgl, std::size_t behind = 0) {
    auto sqe = entry(IoOpcode::write, 0);
    sqe.sgl = sgl;
    return code(*queue, sqe, some_bytes(behind, 1));
  }
  std::vector<std::byte> first_block() {
    auto sqe = entry(IoOpcode::read, 0);
    sqe.sgl = mine->keyed(kBlock);
    require_ok(execute(*queue, sqe));
    return {mine->bytes().begin(), mine->bytes().begin() + kBlock};
  }
  std::unique_ptr<HostMemory> mine;
};

bool served(QueueKind kind, unsigned opcode) {
  return target::find_operation(kind, static_cast<std::uint8_t>(opcode)) != nullptr;
}

}  // namespace

TEST_CASE("Capsules of every length below 64 bytes close their connection") {
  HostileRig rig;
  const auto association = rig.associate();
  for (const std::size_t size : {0u, 1u, 15u, 16u, 40u, 63u}) {
    RawQueue& queue = rig.io_queue(association, Qid(1), 16);
    queue.send(some_bytes(size, size));
    rig.expect_closed(queue);
    rig.expect([&] { return rig.target->statistics().connections() == 3; }, "it is gone");
  }
  CHECK(rig.logger.said("64 is the least"));
}

TEST_CASE("A capsule longer than the offer closes its connection") {
  Intruder intruder;
  intruder.queue->send(some_bytes(64 + kBlock + 1, 1));
  intruder.expect_closed(*intruder.queue);
}

TEST_CASE("In-capsule data that did not all come are refused, and what an earlier capsule left is not written") {
  Intruder intruder;
  const auto before = intruder.first_block();
  for (std::size_t i = 0; i < HostileRig::kReceives; ++i)  // every receive buffer has old data behind its entry
    CHECK(intruder.write(HostileRig::in_capsule(0, kBlock - 1), kBlock) == StatusCode::sgl_invalid_length);
  for (const std::size_t behind : {0u, 1u, 511u, 2048u, kBlock - 1})
    CHECK(intruder.write(HostileRig::in_capsule(0, kBlock), behind) == StatusCode::sgl_invalid_length);
  CHECK(intruder.first_block() == before);
}

TEST_CASE("Offsets and lengths of in-capsule data that wrap or leave the capsule are refused") {
  Intruder intruder;
  constexpr std::uint64_t kAll = ~std::uint64_t{0};
  for (const std::uint64_t offset :
       {std::uint64_t{kBlock} + 1, kAll, kAll - kBlock + 1, kAll - 63, std::uint64_t{1} << 32})
    CHECK(intruder.write(HostileRig::in_capsule(offset, kBlock), kBlock) == StatusCode::sgl_invalid_offset);
  for (const std::uint32_t length : {kBlock + 1, 0x7fffffffu, 0xffffffffu})
    CHECK(intruder.write(HostileRig::in_capsule(0, length), kBlock) == StatusCode::sgl_invalid_length);
  CHECK(intruder.write(HostileRig::in_capsule(1, kBlock), kBlock) == StatusCode::sgl_invalid_length);
  CHECK(intruder.write(HostileRig::in_capsule(kBlock, kBlock), kBlock) == StatusCode::sgl_invalid_length);
}

TEST_CASE("A command that reads cannot say that its data is in the capsule") {
  Intruder intruder;
  auto sqe = HostileRig::entry(IoOpcode::read, 0);
  sqe.sgl = HostileRig::in_capsule(0, kBlock);
  CHECK(intruder.code(*intruder.queue, sqe, some_bytes(kBlock, 1)) == StatusCode::invalid_field);
  auto identify = nvme::encode_identify({.cns = NVME_IDENTIFY_CNS_CTRL});
  identify.sgl = HostileRig::in_capsule(0, nvme::kIdentifyBytes);
  CHECK(intruder.code(*intruder.admin, identify, some_bytes(kBlock, 1)) == StatusCode::invalid_field);
}

TEST_CASE("A keyed length that is not the command's is refused before a byte is moved") {
  Intruder intruder;
  for (const std::uint32_t length : {0u, 1u, kBlock - 1, kBlock + 1, 0xffffffu})
    for (const auto opcode : {IoOpcode::write, IoOpcode::read, IoOpcode::compare}) {
      auto sqe = HostileRig::entry(opcode, 0);
      sqe.sgl = nvme::encode_data_pointer(nvme::KeyedData{0x1000, std::max(length, 1u), 0xbad});
      if (length == 0) sqe.sgl = nvme::SglDescriptor{};
      CHECK(intruder.code(*intruder.queue, sqe) == StatusCode::sgl_invalid_length);
    }
}

TEST_CASE("A keyed range that wraps around the end of memory is refused") {
  Intruder intruder;
  for (const std::uint64_t address : {~std::uint64_t{0}, ~std::uint64_t{0} - kBlock + 2})
    CHECK(intruder.write(nvme::encode_data_pointer(nvme::KeyedData{address, kBlock, 1})) ==
          StatusCode::sgl_invalid_length);
}

TEST_CASE("A list of descriptors, which nobody offered, is refused whatever its count and place") {
  Intruder intruder;
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{16}, ~std::uint64_t{0}})
    for (const std::uint32_t length : {0u, 1u, 16u, 17u, 32u, 0xfffffff0u}) {
      const auto sgl = HostileRig::typed(HostileRig::in_capsule(offset, length), 0x31);
      CHECK(intruder.write(sgl, 64) == StatusCode::sgl_invalid_type);
    }
}

TEST_CASE("Of all types of descriptors three are known") {
  Intruder intruder;
  for (unsigned type = 0; type < 256; ++type) {
    if (type == 0x01 || type == 0x40 || type == 0x4f) continue;
    const auto sgl = HostileRig::typed(intruder.mine->keyed(kBlock), static_cast<std::uint8_t>(type));
    CHECK(intruder.write(sgl) == StatusCode::sgl_invalid_type);
  }
}

TEST_CASE("Whatever the flags say besides SGL and a place in a pair is Invalid Field") {
  Intruder intruder;
  for (unsigned flags = 0; flags < 256; ++flags) {
    if (flags == 0x40) continue;
    auto sqe = nvme::encode_flush(Nsid(1));
    sqe.flags = static_cast<std::uint8_t>(flags);
    CHECK(intruder.code(*intruder.queue, sqe) == StatusCode::invalid_field);
    sqe = nvme::encode_plain(nvme::AdminOpcode::keep_alive);
    sqe.flags = static_cast<std::uint8_t>(flags);
    CHECK(intruder.code(*intruder.admin, sqe) == StatusCode::invalid_field);
  }
}

TEST_CASE("A command id that is in flight is a conflict as often as it is tried") {
  Intruder intruder;
  auto sqe = nvme::encode_plain(nvme::AdminOpcode::async_event_request);
  sqe.cid = std::uint16_t{99};
  intruder.admin->submit(sqe);
  for (int i = 0; i < 50; ++i)
    CHECK(intruder.code(*intruder.admin, sqe) == StatusCode::command_id_conflict);
  intruder.expect_alive(*intruder.admin);
}

TEST_CASE("One command more than the queue has entries closes it, whichever command it is") {
  Intruder intruder;
  auto pair = HostileRig::entry(IoOpcode::compare, 0);  // a first half waits for its second
  pair.flags |= 1;
  pair.sgl = intruder.mine->keyed(kBlock);
  for (std::uint32_t i = 0; i < 64; ++i) {
    if (!intruder.queue->send(nvme::wire_bytes(nvme::SubmissionQueueEntry(pair)))) break;
  }
  intruder.expect_closed(*intruder.queue);
  CHECK_FALSE(intruder.admin->ended());
}

TEST_CASE("Before Connect every command but Connect is a sequence error") {
  HostileRig rig;
  for (const std::uint16_t qid : Words{0, 1}) {
    RawQueue& queue = rig.queue_up(Qid(qid), 16);
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
      nvme::SubmissionQueueEntry sqe;
      sqe.opcode = static_cast<std::uint8_t>(opcode);
      if (opcode == nvme::kFabricsOpcode) sqe.nsid = 4u;  // Property Get
      CHECK(rig.code(queue, sqe) == StatusCode::command_sequence_error);
    }
  }
}

TEST_CASE("Fabrics commands on the wrong queue, and those that nobody serves, do not exist") {
  Intruder intruder;
  for (unsigned type = 0; type < 256; ++type) {
    nvme::SubmissionQueueEntry sqe;
    sqe.opcode = nvme::kFabricsOpcode;
    sqe.nsid = type;
    const auto on_io = intruder.code(*intruder.queue, sqe);
    CHECK(on_io == (type == 1 ? StatusCode::command_sequence_error : StatusCode::invalid_opcode));
    if (served(QueueKind::fabrics, type)) continue;
    CHECK(intruder.code(*intruder.admin, sqe) == StatusCode::invalid_opcode);
  }
}

TEST_CASE("Opcodes that nobody serves are refused on either queue, with whatever data") {
  Intruder intruder;
  for (unsigned opcode = 0; opcode < 256; ++opcode) {
    if (opcode == nvme::kFabricsOpcode) continue;
    nvme::SubmissionQueueEntry sqe;
    sqe.opcode = static_cast<std::uint8_t>(opcode);
    sqe.nsid = 1u;
    sqe.sgl = intruder.mine->keyed(kBlock);
    if (!served(QueueKind::io, opcode)) CHECK(intruder.code(*intruder.queue, sqe) == StatusCode::invalid_opcode);
    if (!served(QueueKind::admin, opcode)) CHECK(intruder.code(*intruder.admin, sqe) == StatusCode::invalid_opcode);
  }
}

TEST_CASE("Every opcode with every dword set is answered, or costs its own connection") {
  HostileRig rig;
  for (const std::uint32_t pattern : {0xffffffffu, 0x80000000u, 0x0000ffffu, 0x55555555u}) {
    rig.come_in();
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
      if (opcode == static_cast<unsigned>(nvme::AdminOpcode::async_event_request)) continue;  // answered by an event
      nvme::SubmissionQueueEntry sqe;
      sqe.opcode = static_cast<std::uint8_t>(opcode);
      sqe.nsid = opcode % 2 == 0 ? 1u : pattern;
      sqe.cdw2 = sqe.cdw3 = sqe.cdw10 = sqe.cdw11 = sqe.cdw12 = sqe.cdw13 = sqe.cdw14 = sqe.cdw15 = pattern;
      sqe.metadata = std::uint64_t{pattern} << 32 | pattern;
      for (RawQueue* on : {rig.admin, rig.queue})
        if (!on->ended()) rig.say(*on, sqe);
    }
    rig.host->close_all();
    rig.expect([&] { return rig.target->statistics().connections() == 2; }, "they are gone");
  }
}

TEST_CASE("Random capsules on both queues, by the thousand, cost nobody else anything") {
  HostileRig rig;
  Random random(17);
  for (int round = 0; round < 12; ++round) {
    rig.come_in();
    for (int i = 0; i < 100 && !rig.queue->ended() && !rig.admin->ended(); ++i) {
      for (RawQueue* on : {rig.admin, rig.queue}) {
        auto bytes = some_bytes(64 + random.below(80), random());
        bytes[1] = std::byte{0x40};
        bytes[4] = static_cast<std::byte>(random.below(3));
        bytes[5] = bytes[6] = bytes[7] = std::byte{0};
        bytes[39] = static_cast<std::byte>(random.below(4) == 0 ? 0x40 : 0x01);
        bytes[0] = static_cast<std::byte>(random.below(4) == 0 ? 0x7f : random.below(0x1a));
        on->send(bytes);
      }
      if (i % 8 == 7) rig.run_for(std::chrono::microseconds(300));
    }
    rig.host->close_all();
    rig.expect([&] { return rig.target->statistics().connections() == 2; }, "they are gone");
  }
}
