// N-th failure sweep: a whole session, again and again, with the 0th, 1st, 2nd … operation of each kind failing, until a
// run is clean. Whatever fails, nothing leaks (the rig's destructor says so) and the next host is served.

#include <catch2/catch.hpp>

#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using transport::sim::Operation;

namespace {

constexpr std::uint32_t kBlock = 4096;

// A step that may fail by order: false ends the session.
std::optional<Response> attempt(TargetRig& rig, RawQueue& queue, nvme::SubmissionQueueEntry sqe,
                                std::span<const std::byte> in_capsule = {}) {
  const std::uint16_t cid = queue.submit(sqe, in_capsule);
  std::optional<Response> response;
  if (!rig.run_until([&] { return (response = queue.take(cid)).has_value() || queue.ended(); },
                     std::chrono::seconds(5)))
    FAIL("a command was neither answered nor its connection closed");
  if (response && !response->status().ok()) return std::nullopt;
  return response;
}

std::optional<Response> attempt_connect(TargetRig& rig, RawQueue& queue, const nvme::ConnectRequest& request) {
  auto sqe = nvme::encode_connect(request);
  HostMemory memory(queue.connection->domain(), nvme::kConnectDataBytes);
  const auto data = nvme::encode_connect_data(request);
  std::memcpy(memory.bytes().data(), &data, sizeof data);
  sqe.sgl = memory.keyed(nvme::kConnectDataBytes);
  return attempt(rig, queue, sqe);
}

RawQueue* attempt_queue(TargetRig& rig, Qid qid, Cntlid cntlid) {
  RawQueue& queue = rig.host->connect(rig.address(), qid, 16, cntlid);
  if (!rig.run_until([&] { return queue.established || queue.ended(); })) FAIL("a connection request was not answered");
  return queue.established && !queue.ended() ? &queue : nullptr;
}

// Everything that a host does; true if all of it went well.
bool session(TargetRig& rig) {
  RawQueue* const admin = attempt_queue(rig, Qid(0), Cntlid(0));
  if (admin == nullptr) return false;
  const auto connected = attempt_connect(rig, *admin, rig.connect_request(Qid(0), nvme::kCntlidDynamic, 16));
  if (!connected) return false;
  const auto cntlid = nvme::parse_connect_response(connected->cqe.dw0()).cntlid;
  if (!attempt(rig, *admin, nvme::encode_property_set({.offset = 0x14, .value = TargetRig::enabled().raw})))
    return false;
  auto memory = rig.memory(*admin, 64 * kBlock);
  auto identify = nvme::encode_identify({.nsid = Nsid(0), .cns = NVME_IDENTIFY_CNS_CTRL, .cntlid = Cntlid(0)});
  identify.sgl = memory->keyed(nvme::kIdentifyBytes);
  if (!attempt(rig, *admin, identify)) return false;
  admin->submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
  RawQueue* const io = attempt_queue(rig, Qid(1), cntlid);
  if (io == nullptr || !attempt_connect(rig, *io, rig.connect_request(Qid(1), cntlid, 16))) return false;
  const auto entry = [&](nvme::IoOpcode opcode, std::uint64_t lba, std::uint64_t count) {
    auto sqe = nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(count)});
    sqe.sgl = memory->keyed(static_cast<std::uint32_t>(count * kBlock));
    return sqe;
  };
  if (!attempt(rig, *io, entry(nvme::IoOpcode::write, 0, 64))) return false;
  if (!attempt(rig, *io, entry(nvme::IoOpcode::read, 0, 64))) return false;
  auto in_capsule = entry(nvme::IoOpcode::write, 1, 1);
  in_capsule.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock});
  if (!attempt(rig, *io, in_capsule, some_bytes(kBlock, 1))) return false;
  auto first = entry(nvme::IoOpcode::compare, 1, 1);
  auto second = entry(nvme::IoOpcode::write, 1, 1);
  first.flags |= 1;
  second.flags |= 2;
  first.sgl = nvme::encode_data_pointer(nvme::InCapsuleData{0, kBlock});
  io->submit(first, some_bytes(kBlock, 1));
  if (!attempt(rig, *io, second)) return false;
  io->responses.clear();
  for (std::uint64_t i = 0; i < 8; ++i)
    io->submit(entry(i % 2 == 0 ? nvme::IoOpcode::read : nvme::IoOpcode::write, i, 8));
  rig.expect([&] { return io->responses.size() == 8 || io->ended(); }, "answered or closed");
  return io->responses.size() == 8;
}

RigOptions small_pieces() {
  RigOptions options;
  options.store = "ram:size=16MiB,block=4096";
  options.network.send_depth_max = 12;
  options.network.message_max = 32 * 1024;
  options.network.read_depth_max = 2;
  return options;
}

}  // namespace

TEST_CASE("Whatever operation of the fabric fails, nothing leaks and the next host is served") {
  const auto kind = GENERATE(Operation::accept, Operation::register_memory, Operation::post, Operation::post_full,
                             Operation::completion);
  bool clean = false;
  std::uint64_t n = 0;
  for (; !clean; ++n) {
    INFO(transport::sim::name(kind) << " number " << n);
    REQUIRE(n < 500);
    TargetRig rig(small_pieces());
    // Registrations by the host are its own affair: they fail the test, not the target.
    if (kind == Operation::register_memory) {
      rig.network.faults().fail_nth(kind, n);
      RawQueue* const queue = attempt_queue(rig, Qid(0), Cntlid(0));
      // What the target registers for a connection happens at its accept; later ones are the host's.
      clean = queue != nullptr && rig.network.faults().pending(kind);
      rig.network.faults().heal();
    } else {
      rig.network.faults().fail_nth(kind, n);
      const bool well = session(rig);
      clean = rig.network.faults().pending(kind);
      if (clean) CHECK(well);
      rig.network.faults().heal();
    }
    CHECK(session(rig));
  }
  CHECK(n > 1);
}

TEST_CASE("A target opens or says why not, whatever fails") {
  const auto kind = GENERATE(Operation::open_poll_group, Operation::listen);
  transport::sim::Network network;
  Random random(1);
  auto reactor = transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network});
  auto target = target::Target::open(
      {.clock = network.clock(), .logger = null_logger(), .random = random, .given_reactors = {reactor->get()}});
  REQUIRE(target.has_value());
  network.faults().fail_nth(kind, 0);
  Uri uri;
  uri.scheme = Uri::Scheme::sim;
  uri.host = "target";
  const auto listening = (*target)->listen(network.fabric("target"), uri);
  REQUIRE_FALSE(listening.has_value());
  CHECK(listening.error().kind() == ErrorKind::resource);
  CHECK((*target)->listen(network.fabric("target"), uri).has_value());
}
