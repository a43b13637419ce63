// Moving data, and being stopped from it: what holds on every fabric.

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>

#include "tests/sim/fabric_rig.h"

namespace rbt::test {

using namespace transport;

namespace {

void sends_in_order(FabricUnderTest& fabric) {
  Rig rig(fabric, {.receive_depth = 16, .receive_size = 4160});
  const auto pair = rig.connect();
  const std::array<std::size_t, 8> sizes{1, 16, 63, 64, 65, 1023, 4096, 4160};
  Buffer buffer(pair.client.connection->domain(), 4160 * 64, RemoteAccess::none);
  for (std::uint64_t i = 0; i < 64; ++i) {
    buffer.fill(pattern(4160, i), i * 4160);
    pair.client.post_send(buffer, i * 4160, sizes[i % sizes.size()], i);
  }
  rig.expect([&] { return pair.server.messages.size() == 64 && pair.client.completed() == 64; }, "64 messages arrive");
  for (std::uint64_t i = 0; i < 64; ++i) {
    Bytes8 expected = pattern(4160, i);
    expected.resize(sizes[i % sizes.size()]);
    CHECK(pair.server.messages[i].bytes == expected);
    CHECK(pair.client.done[i].wr_id == i);
    CHECK(pair.client.done[i].status == CompletionStatus::success);
    CHECK(pair.client.done[i].type == Completion::Type::send);
  }
}

void transfers_are_exact(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect();
  constexpr std::size_t kRoom = (1 << 20) + 64;
  Buffer here(pair.client.connection->domain(), kRoom, RemoteAccess::none);
  Buffer there(pair.server.connection->domain(), kRoom, RemoteAccess::read_write);
  std::uint64_t seed = 10;
  for (const std::size_t size : {1UL, 7UL, 64UL, 511UL, 512UL, 4095UL, 4096UL, 4097UL, 65536UL, 1048576UL - 3}) {
    const std::size_t offset = seed % 64;
    INFO("size " << size << ", offset " << offset);
    for (const Opcode opcode : {Opcode::rdma_write, Opcode::rdma_read}) {
      const bool writes = opcode == Opcode::rdma_write;
      const Bytes8 data = pattern(size, ++seed), rest = pattern(kRoom, ++seed);
      Buffer& from = writes ? here : there;
      Buffer& to = writes ? there : here;
      to.fill(rest);
      from.fill(data, offset);
      const Segment segment = here.segment(offset, size);
      const WorkRequest request{.opcode = opcode,
                                .rkey = there.rkey(),
                                .remote_address = there.address() + offset,
                                .wr_id = seed,
                                .segments = {&segment, 1}};
      const std::size_t done = pair.client.completed();
      REQUIRE(pair.client.connection->post({&request, 1}) == PostResult::posted);
      rig.expect([&] { return pair.client.completed() > done; }, "the transfer completes");
      REQUIRE(pair.client.done.back().status == CompletionStatus::success);
      CHECK(pair.client.done.back().type == (writes ? Completion::Type::rdma_write : Completion::Type::rdma_read));
      CHECK(to.bytes(offset, size) == data);
      Bytes8 around = to.bytes(0, kRoom);
      std::copy_n(rest.begin() + static_cast<std::ptrdiff_t>(offset), size,
                  around.begin() + static_cast<std::ptrdiff_t>(offset));
      CHECK(around == rest);  // and not a byte beside it
    }
  }
  CHECK(pair.server.completed() == 0);
  CHECK(pair.server.messages.empty());
}

void segments_make_one(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect();
  const std::uint32_t count = std::min<std::uint32_t>(pair.client.connection->limits().segments_max, 16);
  REQUIRE(count >= 2);
  constexpr std::size_t kPiece = 700;
  Buffer here(pair.client.connection->domain(), count * kPiece * 2, RemoteAccess::none);
  Buffer there(pair.server.connection->domain(), count * kPiece, RemoteAccess::read_write);
  const Bytes8 data = pattern(count * kPiece, 5);
  std::vector<Segment> segments;
  for (std::uint32_t i = 0; i < count; ++i) {  // every other piece, last one first
    const std::size_t at = (count - 1 - i) * kPiece * 2;
    here.fill({data.begin() + static_cast<std::ptrdiff_t>(i * kPiece),
               data.begin() + static_cast<std::ptrdiff_t>((i + 1) * kPiece)},
              at);
    segments.push_back(here.segment(at, kPiece));
  }
  WorkRequest request{
      .opcode = Opcode::rdma_write, .rkey = there.rkey(), .remote_address = there.address(), .segments = segments};
  REQUIRE(pair.client.connection->post({&request, 1}) == PostResult::posted);
  rig.expect([&] { return pair.client.completed() == 1; }, "the gathered write completes");
  CHECK(there.bytes(0, data.size()) == data);

  const Bytes8 other = pattern(count * kPiece, 6);
  there.fill(other);
  request.opcode = Opcode::rdma_read;
  REQUIRE(pair.client.connection->post({&request, 1}) == PostResult::posted);
  rig.expect([&] { return pair.client.completed() == 2; }, "the scattered read completes");
  for (std::uint32_t i = 0; i < count; ++i) {
    const Bytes8 piece(other.begin() + static_cast<std::ptrdiff_t>(i * kPiece),
                       other.begin() + static_cast<std::ptrdiff_t>((i + 1) * kPiece));
    CHECK(here.bytes((count - 1 - i) * kPiece * 2, kPiece) == piece);
  }
}

void write_before_send(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect();
  constexpr std::size_t kSize = 100'000;
  Buffer data(pair.client.connection->domain(), kSize, RemoteAccess::none);
  Buffer note(pair.client.connection->domain(), 16, RemoteAccess::none);
  Buffer there(pair.server.connection->domain(), kSize, RemoteAccess::write);
  for (std::uint64_t round = 0; round < 20; ++round) {
    const Bytes8 expected = pattern(kSize, round);
    data.fill(expected);
    bool whole = false;
    pair.server.on_any = [&](const Completion&) { whole = there.bytes(0, kSize) == expected; };
    const Segment payload = data.segment(0, kSize), message = note.segment(0, 16);
    const std::array<WorkRequest, 2> requests{WorkRequest{.opcode = Opcode::rdma_write,
                                                          .signaled = false,
                                                          .rkey = there.rkey(),
                                                          .remote_address = there.address(),
                                                          .segments = {&payload, 1}},
                                              WorkRequest{.opcode = Opcode::send, .segments = {&message, 1}}};
    REQUIRE(pair.client.connection->post(requests) == PostResult::posted);
    rig.expect([&] { return pair.server.messages.size() == round + 1 && pair.client.completed() == round + 1; },
               "write and send arrive");
    CHECK(whole);  // at the moment in which the message was seen
  }
  pair.server.on_any = {};
}

void unsignaled_is_silent(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect({.send_depth = 16, .timeout = kPatience});
  const std::uint32_t depth = pair.client.connection->limits().send_depth;  // may be rounded up
  REQUIRE(depth >= 16);
  Buffer here(pair.client.connection->domain(), 64, RemoteAccess::none);
  Buffer there(pair.server.connection->domain(), 64, RemoteAccess::write);
  const Segment segment = here.segment(0, 64);
  WorkRequest request{.opcode = Opcode::rdma_write,
                      .signaled = false,
                      .rkey = there.rkey(),
                      .remote_address = there.address(),
                      .segments = {&segment, 1}};
  for (int round = 0; round < 3; ++round) {  // each fills the queue to the brim
    const std::size_t done = pair.client.completed();
    std::vector<WorkRequest> batch(depth, request);
    batch.back().signaled = true;
    batch.back().wr_id = 77;
    REQUIRE(pair.client.connection->post(batch) == PostResult::posted);
    CHECK(pair.client.connection->post({&request, 1}) == PostResult::full);
    rig.expect([&] { return pair.client.completed() > done; }, "the signaled one completes");
    CHECK(pair.client.completed() == done + 1);
    CHECK(pair.client.done.back().wr_id == 77);
  }
}

void all_or_nothing(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect({.send_depth = 8, .timeout = kPatience});
  const std::uint32_t depth = pair.client.connection->limits().send_depth;
  Buffer buffer(pair.client.connection->domain(), 8, RemoteAccess::none);
  const Segment segment = buffer.segment(0, 8);
  const WorkRequest request{.segments = {&segment, 1}};
  const std::vector<WorkRequest> too_many(depth, request);
  REQUIRE(pair.client.connection->post({&request, 1}) == PostResult::posted);
  CHECK(pair.client.connection->post(too_many) == PostResult::full);
  rig.expect([&] { return pair.client.completed() == 1 && pair.server.messages.size() == 1; }, "the one arrives");
  rig.run_a_while();
  CHECK(pair.server.messages.size() == 1);
  REQUIRE(pair.client.connection->post(too_many) == PostResult::posted);
  rig.expect([&] { return pair.server.messages.size() == 1 + depth && pair.client.completed() == 1 + depth; },
             "a full queue of them arrives");
}

void copied_data(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect();
  const std::uint32_t size = std::min<std::uint32_t>(pair.client.connection->limits().inline_max, 64);
  if (size == 0) return;
  Bytes8 anywhere = pattern(size, 4);  // not registered: nobody but post() reads it
  const Bytes8 expected = anywhere;
  const Segment segment{anywhere.data(), size, 0};
  const WorkRequest request{.copy_data = true, .segments = {&segment, 1}};
  REQUIRE(pair.client.connection->post({&request, 1}) == PostResult::posted);
  std::fill(anywhere.begin(), anywhere.end(), std::byte{0xff});
  rig.expect([&] { return pair.server.messages.size() == 1 && pair.client.completed() == 1; }, "the message arrives");
  CHECK(pair.server.messages[0].bytes == expected);
}

void reads_beyond_the_limit(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair =
      rig.connect({.incoming_reads = 2, .timeout = kPatience}, {.outgoing_reads = 16, .timeout = kPatience});
  CHECK(pair.server.connection->limits().read_depth >= 1);
  CHECK(pair.server.connection->limits().read_depth <= 2);
  constexpr std::size_t kSize = 20'000, kReads = 40;
  Buffer far(pair.client.connection->domain(), kSize * kReads, RemoteAccess::read);
  Buffer near(pair.server.connection->domain(), kSize * kReads, RemoteAccess::none);
  const Bytes8 data = pattern(kSize * kReads, 9);
  far.fill(data);
  for (std::size_t i = 0; i < kReads; ++i) {
    const Segment segment = near.segment(i * kSize, kSize);
    const WorkRequest request{.opcode = Opcode::rdma_read,
                              .rkey = far.rkey(),
                              .remote_address = far.address() + i * kSize,
                              .wr_id = i,
                              .segments = {&segment, 1}};
    REQUIRE(pair.server.connection->post({&request, 1}) == PostResult::posted);
  }
  rig.expect([&] { return pair.server.completed() == kReads; }, "40 reads complete");
  for (std::size_t i = 0; i < kReads; ++i)
    CHECK(pair.server.done[i].wr_id == i);
  CHECK(near.bytes(0, data.size()) == data);
}

void invalidation(FabricUnderTest& fabric) {
  if (!fabric.invalidates()) return;
  Rig rig(fabric);
  const auto pair = rig.connect();
  const auto other = rig.connect();
  Buffer target(pair.client.connection->domain(), 64, RemoteAccess::write);
  Buffer source(pair.server.connection->domain(), 64, RemoteAccess::none);
  source.fill(pattern(64, 1));
  const Segment segment = source.segment(0, 64);
  const WorkRequest request{.opcode = Opcode::send_with_invalidate, .rkey = target.rkey(), .segments = {&segment, 1}};
  REQUIRE(pair.server.connection->post({&request, 1}) == PostResult::posted);
  rig.expect([&] { return pair.client.messages.size() == 1 && pair.server.completed() == 1; }, "the message arrives");
  REQUIRE(pair.client.messages[0].invalidated.has_value());
  CHECK(*pair.client.messages[0].invalidated == target.rkey());
  pair.server.post_write(source, target, 64);
  rig.expect([&] { return pair.server.completed() == 2; }, "a write with the invalid key completes");
  CHECK(pair.server.done[1].status == CompletionStatus::remote_access_error);
  CHECK(target.bytes(0, 64) == Bytes8(64));
  rig.expect_working(other);
}

/// `attempt` posts something forbidden from the client; it must cost this connection and nothing else.
void expect_forbidden(FabricUnderTest& fabric, RemoteAccess granted,
                      const std::function<void(WorkRequest&, const Buffer& target)>& attempt) {
  Rig rig(fabric);
  const auto culprit = rig.connect({.send_depth = 16, .timeout = kPatience});
  const auto bystander = rig.connect();
  Buffer target(culprit.server.connection->domain(), 8192, granted);
  Buffer source(culprit.client.connection->domain(), 8192, RemoteAccess::none);
  const Bytes8 secret = pattern(8192, 1), mine = pattern(8192, 2);
  target.fill(secret);
  source.fill(mine);
  Segment segment = source.segment(0, 512);
  std::array<WorkRequest, 3> requests;
  for (std::uint64_t i = 0; i < requests.size(); ++i)
    requests.at(i) = {.opcode = Opcode::send, .signaled = false, .wr_id = i, .segments = {&segment, 1}};
  requests[0].opcode = Opcode::rdma_write;
  requests[0].rkey = target.rkey();
  requests[0].remote_address = target.address();
  attempt(requests[0], target);
  REQUIRE(culprit.client.connection->post(requests) == PostResult::posted);
  rig.expect([&] { return culprit.client.completed() == 3; }, "all of it completes, unsignaled or not");
  CHECK(culprit.client.done[0].wr_id == 0);
  CHECK(culprit.client.done[0].status == CompletionStatus::remote_access_error);
  CHECK(culprit.client.done[1].status == CompletionStatus::flushed);
  CHECK(culprit.client.done[2].status == CompletionStatus::flushed);
  CHECK(culprit.server.messages.empty());
  CHECK(target.bytes(0, 8192) == secret);
  CHECK(source.bytes(0, 8192) == mine);
  rig.expect_working(bystander);
  culprit.client.connection->close();
  rig.expect([&] { return culprit.client.closed && culprit.server.disconnected.has_value(); },
             "the server loses this connection");
  rig.expect_working(rig.connect());
}

void bad_key(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read_write,
                   [](WorkRequest& request, const Buffer& target) { request.rkey = target.rkey() ^ 0x5a5a00; });
}
void zero_key(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read_write, [](WorkRequest& request, const Buffer&) { request.rkey = 0; });
}
void past_the_end(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read_write, [](WorkRequest& request, const Buffer& target) {
    request.remote_address = target.address() + 8192 - 511;
  });
}
void long_past_the_end(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read_write,
                   [all = Segment{}](WorkRequest& request, const Buffer& target) mutable {
                     all = request.segments[0];
                     all.length = 8192;  // its first packets would fit
                     request.segments = {&all, 1};
                     request.remote_address = target.address() + 1;
                   });
}
void before_the_start(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read_write,
                   [](WorkRequest& request, const Buffer& target) { request.remote_address = target.address() - 1; });
}
void around_the_world(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read_write,
                   [](WorkRequest& request, const Buffer&) { request.remote_address = ~std::uint64_t{0} - 100; });
}
void read_past_the_end(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read_write, [](WorkRequest& request, const Buffer& target) {
    request.opcode = Opcode::rdma_read;
    request.remote_address = target.address() + 8192 - 511;
  });
}
void write_without_right(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::read, [](WorkRequest&, const Buffer&) {});
}
void read_without_right(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::write,
                   [](WorkRequest& request, const Buffer&) { request.opcode = Opcode::rdma_read; });
}
void private_memory(FabricUnderTest& fabric) {
  expect_forbidden(fabric, RemoteAccess::none, [](WorkRequest&, const Buffer&) {});
}

void bad_local_key(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect();
  const auto bystander = rig.connect();
  Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::none);
  Segment segment = buffer.segment(0, 64);
  segment.lkey ^= 0x5a5a00;
  const WorkRequest request{.segments = {&segment, 1}};
  REQUIRE(pair.client.connection->post({&request, 1}) == PostResult::posted);
  rig.expect([&] { return pair.client.completed() == 1; }, "it completes");
  CHECK(pair.client.done[0].status != CompletionStatus::success);
  CHECK(pair.server.messages.empty());
  rig.expect_working(bystander);
}

void deregistration_fences(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect();
  const auto bystander = rig.connect();
  Buffer target(pair.server.connection->domain(), 1 << 20, RemoteAccess::write);
  Buffer source(pair.client.connection->domain(), 1 << 20, RemoteAccess::none);
  source.fill(Bytes8(1 << 20, std::byte{0x11}));
  const Segment segment = source.segment(0, source.size());
  const WorkRequest write{.opcode = Opcode::rdma_write,
                          .rkey = target.rkey(),
                          .remote_address = target.address(),
                          .segments = {&segment, 1}};
  const std::vector<WorkRequest> stream(8, write);
  REQUIRE(pair.client.connection->post(stream) == PostResult::posted);
  rig.expect([&] { return pair.client.completed() >= 1; }, "data is streaming in");
  target.deregister();
  const Bytes8 mine(1 << 20, std::byte{0x22});
  target.fill(mine);
  rig.expect([&] { return pair.client.failed || pair.client.completed() == 8; }, "the stream ends");
  rig.run_a_while();
  CHECK(target.bytes(0, mine.size()) == mine);
  if (!pair.client.failed) {  // all had landed before: then the next one must not
    REQUIRE(pair.client.connection->post({&write, 1}) == PostResult::posted);
    rig.expect([&] { return pair.client.failed; }, "a write with the dead key fails");
    CHECK(target.bytes(0, mine.size()) == mine);
  }
  const auto failure = std::find_if(pair.client.done.begin(), pair.client.done.end(),
                                    [](const End::Done& one) { return one.status != CompletionStatus::success; });
  CHECK(failure->status == CompletionStatus::remote_access_error);
  rig.expect_working(bystander);
}

void message_too_large(FabricUnderTest& fabric) {
  Rig rig(fabric, {.receive_depth = 2, .receive_size = 256});
  const auto bystander = rig.connect();
  for (int i = 0; i < 4; ++i) {  // more often than there are buffers: none is lost with it
    const auto pair = rig.connect();
    Buffer buffer(pair.client.connection->domain(), 257, RemoteAccess::none);
    pair.client.post_send(buffer, 0, 257);
    rig.expect([&] { return pair.client.completed() == 1; }, "it completes");
    CHECK(pair.client.done[0].status == CompletionStatus::remote_error);
    CHECK(pair.server.messages.empty());
    rig.expect_working(bystander);
  }
}

void receive_queue_recovers(FabricUnderTest& fabric) {
  Rig rig(fabric, {.receive_depth = 8, .receive_size = 64});
  const auto pair = rig.connect();
  rig.server.hold_receives = true;
  Buffer buffer(pair.client.connection->domain(), 64 * 20, RemoteAccess::none);
  for (std::uint64_t i = 0; i < 20; ++i) {
    buffer.fill(pattern(64, i), i * 64);
    pair.client.post_send(buffer, i * 64, 64, i);
  }
  rig.expect([&] { return pair.server.messages.size() == 8; }, "eight messages find a buffer");
  if (fabric.waits_for_receive_buffers()) rig.run_a_while();
  CHECK(pair.server.messages.size() == 8);
  rig.server.hold_receives = false;
  rig.server.release_held();
  rig.expect([&] { return pair.server.messages.size() == 20 && pair.client.completed() == 20; },
             "the others arrive when there are buffers again");
  for (std::uint64_t i = 0; i < 20; ++i)
    CHECK(pair.server.messages[i].bytes == pattern(64, i));
  CHECK(pair.client.healthy());
}

void buffers_outlive_connections(FabricUnderTest& fabric) {
  Rig rig(fabric, {.receive_depth = 8, .receive_size = 64});
  for (int round = 0; round < 4; ++round) {
    const auto pair = rig.connect();
    rig.server.hold_receives = true;
    Buffer buffer(pair.client.connection->domain(), 64 * 8, RemoteAccess::none);
    for (std::uint64_t i = 0; i < 8; ++i)
      pair.client.post_send(buffer, i * 64, 64, i);
    rig.expect([&] { return pair.server.messages.size() == 8 && pair.client.completed() == 8; },
               "all buffers are lent");
    pair.client.connection->close();
    pair.server.connection->close();
    rig.expect([&] { return pair.client.closed && pair.server.closed; }, "the connection goes");
    rig.server.hold_receives = false;
    rig.server.release_held();
  }
}

void landings_take_reads(FabricUnderTest& fabric) {
  constexpr std::size_t kSize = 700 * 1024;
  struct Writer final : Landing {
    std::size_t land(std::byte* at, std::span<const std::byte> data) noexcept override {
      std::copy(data.begin(), data.end(), at);
      bytes += data.size();
      if (reinterpret_cast<std::uintptr_t>(at + data.size()) % kUnit != 0) ++odd_ends;
      return data.size();
    }
    std::size_t bytes = 0;
    std::size_t odd_ends = 0;
  } writer;
  Rig rig(fabric);
  const auto pair = rig.connect();
  ProtectionDomain& domain = pair.server.connection->domain();
  Buffer far(pair.client.connection->domain(), kSize, RemoteAccess::read);
  far.fill(pattern(kSize, 8));
  const Buffer beside(domain, 64, RemoteAccess::none);
  const auto memory = SharedMemory::create(Bytes(2 * kSize), {}).value();
  MemorySpan span = memory.span();
  span.landing = &writer;
  const auto region = domain.register_memory(span, RemoteAccess::none).value();
  // An odd beginning, so that whoever does it piece by piece would cut anywhere; and two segments that end as they do.
  const Segment odd = beside.segment(0, 33);
  const std::array<Segment, 2> pieces{Segment{span.data + 1, 100'001, region->lkey()},
                                      Segment{span.data + kSize, kSize - 100'001, region->lkey()}};
  const std::array<WorkRequest, 2> reads{
      WorkRequest{
          .opcode = Opcode::rdma_read, .rkey = far.rkey(), .remote_address = far.address(), .segments = {&odd, 1}},
      WorkRequest{
          .opcode = Opcode::rdma_read, .rkey = far.rkey(), .remote_address = far.address(), .segments = pieces}};
  REQUIRE(pair.server.connection->post(reads) == PostResult::posted);
  rig.expect([&] { return pair.server.completed() == 2; }, "the reads complete");
  Bytes8 expected(2 * kSize);
  const Bytes8 data = pattern(kSize, 8);
  std::copy_n(data.begin(), 100'001, expected.begin() + 1);
  std::copy(data.begin() + 100'001, data.end(), expected.begin() + kSize);
  CHECK(std::equal(expected.begin(), expected.end(), span.data));
  CHECK(writer.bytes == (domain.uses_landings() ? kSize : 0));
  CHECK(writer.odd_ends == (domain.uses_landings() ? 2 : 0));  // the segments' own
}

constexpr std::array kClaims{
    Claim{"messages arrive whole, in order, and complete in order", sends_in_order},
    Claim{"an RDMA transfer is exact at every size", transfers_are_exact},
    Claim{"segments make one transfer", segments_make_one},
    Claim{"a message is seen after the writes before it", write_before_send},
    Claim{"an unsignaled success is silent and covered by the next signaled one", unsignaled_is_silent},
    Claim{"a batch is posted as a whole or not at all", all_or_nothing},
    Claim{"copied data may be overwritten at once", copied_data},
    Claim{"what is read passes its memory's landing, if the domain says so, in whole units", landings_take_reads},
    Claim{"reads beyond the peer's limit wait in order", reads_beyond_the_limit},
    Claim{"a message invalidates a key", invalidation},
    Claim{"an unknown key costs this connection only", bad_key},
    Claim{"key zero costs this connection only", zero_key},
    Claim{"a write past the end costs this connection only", past_the_end},
    Claim{"a long write that ends past the end changes nothing", long_past_the_end},
    Claim{"a write before the start costs this connection only", before_the_start},
    Claim{"a range that wraps costs this connection only", around_the_world},
    Claim{"a read past the end costs this connection only", read_past_the_end},
    Claim{"a write to what may only be read costs this connection only", write_without_right},
    Claim{"a read from what may only be written costs this connection only", read_without_right},
    Claim{"memory without remote rights is out of reach", private_memory},
    Claim{"a bad local key costs this connection only", bad_local_key},
    Claim{"deregistration is a fence", deregistration_fences},
    Claim{"a message larger than a receive buffer costs this connection only", message_too_large},
    Claim{"an exhausted receive queue recovers", receive_queue_recovers},
    Claim{"receive buffers outlive their connection", buffers_outlive_connections},
};

}  // namespace

std::span<const Claim> transfer_claims() {
  return kClaims;
}

}  // namespace rbt::test
