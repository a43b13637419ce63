#include "tests/sim/fabric_rig.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>

namespace rbt::test {

using namespace transport;

Bytes8 pattern(std::size_t size, std::uint64_t seed) {
  Bytes8 bytes(size);
  std::uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (std::byte& byte : bytes) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    byte = static_cast<std::byte>(state >> 56);
  }
  return bytes;
}

Buffer::Buffer(ProtectionDomain& domain, std::size_t size, RemoteAccess access) : size_(size) {
  auto memory = SharedMemory::create(Bytes(size), {.name = "contract"});
  REQUIRE(memory.has_value());
  memory_ = std::move(*memory);
  MemorySpan span = memory_.span();
  span.size = size;  // the region ends where the test says, not at the end of the page
  auto region = domain.register_memory(span, access);
  if (!region) FAIL(region.error().message());
  region_ = std::move(*region);
}

Segment Buffer::segment(std::size_t offset, std::size_t length) const {
  return {data() + offset, static_cast<std::uint32_t>(length), lkey()};
}

void Buffer::fill(const Bytes8& bytes, std::size_t offset) {
  std::copy(bytes.begin(), bytes.end(), data() + offset);
}

Bytes8 Buffer::bytes(std::size_t offset, std::size_t length) const {
  return {data() + offset, data() + offset + length};
}

void End::on_established(std::span<const std::byte> data) {
  if (established) mistakes.emplace_back("on_established() twice");
  if (disconnected) mistakes.emplace_back("on_established() after on_disconnected()");
  if (closed) mistakes.emplace_back("on_established() after on_closed()");
  established = true;
  private_data.assign(data.begin(), data.end());
  if (when_established) when_established();
}

void End::on_disconnected(const Disconnect& disconnect) {
  if (disconnected) mistakes.emplace_back("on_disconnected() twice");
  if (closed) mistakes.emplace_back("on_disconnected() after on_closed()");
  disconnected = disconnect.reason;
  if (!established) private_data.assign(disconnect.private_data.begin(), disconnect.private_data.end());
  if (disconnect.error.message().empty() && disconnect.reason != Disconnect::Reason::peer_closed)
    mistakes.emplace_back("a disconnect without a word");
  if (when_disconnected) when_disconnected();
}

void End::on_closed() {
  if (closed) mistakes.emplace_back("on_closed() twice");
  closed = true;
  connection = nullptr;
}

void End::on_completion(const Completion& completion) {
  if (!established) mistakes.emplace_back("a completion before on_established()");
  if (closed) mistakes.emplace_back("a completion after on_closed()");
  if (completion.status != CompletionStatus::success) failed = true;
  if (completion.type == Completion::Type::receive) {
    if (completion.status == CompletionStatus::success)
      messages.push_back(
          {{completion.message.bytes.begin(), completion.message.bytes.end()}, completion.invalidated_rkey});
  } else {
    done.push_back({completion.type, completion.status, completion.wr_id});
  }
  if (on_any) on_any(completion);
}

void End::post_send(const Buffer& buffer, std::size_t offset, std::size_t length, std::uint64_t wr_id) {
  const Segment segment = buffer.segment(offset, length);
  const WorkRequest request{.opcode = Opcode::send, .wr_id = wr_id, .segments = {&segment, 1}};
  REQUIRE(connection->post({&request, 1}) == PostResult::posted);
}

void End::post_write(const Buffer& from, const Buffer& to, std::size_t length, std::uint64_t wr_id) {
  const Segment segment = from.segment(0, length);
  const WorkRequest request{.opcode = Opcode::rdma_write,
                            .rkey = to.rkey(),
                            .remote_address = to.address(),
                            .wr_id = wr_id,
                            .segments = {&segment, 1}};
  REQUIRE(connection->post({&request, 1}) == PostResult::posted);
}

void End::post_read(const Buffer& to, const Buffer& from, std::size_t length, std::uint64_t wr_id) {
  const Segment segment = to.segment(0, length);
  const WorkRequest request{.opcode = Opcode::rdma_read,
                            .rkey = from.rkey(),
                            .remote_address = from.address(),
                            .wr_id = wr_id,
                            .segments = {&segment, 1}};
  REQUIRE(connection->post({&request, 1}) == PostResult::posted);
}

Side::Side(Fabric& fabric, Reactor& reactor, const PollGroupOptions& options) {
  auto opened = fabric.open_poll_group(reactor, options, *this);
  if (!opened) FAIL(opened.error().message());
  group = std::move(*opened);
}

Side::~Side() = default;

void Side::on_completions(std::span<const Completion> batch) {
  for (const Completion& completion : batch) {
    static_cast<End*>(completion.handler)->on_completion(completion);
    if (completion.type != Completion::Type::receive || completion.status != CompletionStatus::success) continue;
    if (hold_receives) {
      held.push_back(completion.message.buffer_id);
    } else {
      group->release(completion.message.buffer_id);
    }
  }
}

void Side::on_request(std::unique_ptr<ConnectionRequest> request) {
  requests.push_back(std::move(request));
  if (accepts) (void)accept();
}

void Side::listen(const Uri& address, const ListenOptions& options) {
  auto listening = group->listen(address, options, *this);
  if (!listening) FAIL(listening.error().message());
  listener = std::move(*listening);
}

End& Side::connect(const Uri& address, const ConnectOptions& options) {
  End& end = *ends.emplace_back(std::make_unique<End>());
  auto connection = group->connect(address, options, end);
  if (!connection) FAIL(connection.error().message());
  end.connection = *connection;
  return end;
}

End& Side::accept(const AcceptOptions& options) {
  REQUIRE(!requests.empty());
  auto request = std::move(requests.front());
  requests.erase(requests.begin());
  End& end = *ends.emplace_back(std::make_unique<End>());
  auto connection = group->accept(std::move(request), options, end);
  if (!connection) FAIL(connection.error().message());
  end.connection = *connection;
  return end;
}

void Side::release_held() {
  for (const std::uint32_t buffer : held)
    group->release(buffer);
  held.clear();
}

Rig::Rig(FabricUnderTest& fabric, const PollGroupOptions& options)
    : fabric_(fabric),
      server(fabric.server(), fabric.server_reactor(), options),
      client(fabric.client(), fabric.client_reactor(), options) {}

Rig::~Rig() {
  for (Side* side : {&client, &server}) {
    side->release_held();
    side->requests.clear();
    side->listener.reset();
    for (const auto& end : side->ends)
      if (end->connection != nullptr) end->connection->close();
  }
  const bool gone =
      fabric_.run_until([this] { return server.group->connections() == 0 && client.group->connections() == 0; });
  CHECK(gone);
  for (Side* side : {&client, &server})
    for (const auto& end : side->ends) {
      CHECK(end->closed);
      for (const std::string& mistake : end->mistakes)
        FAIL_CHECK(mistake);
    }
}

Rig::Pair Rig::connect(const ConnectOptions& connecting, const AcceptOptions& accepting) {
  if (!server.listener) server.listen(fabric_.address());
  End& active = client.connect(fabric_.address(), connecting);
  expect([this] { return !server.requests.empty(); }, "the connect arrives");
  End& passive = server.accept(accepting);
  expect([&] { return active.established && passive.established; }, "both ends are established");
  return {active, passive};
}

void Rig::expect_working(const Pair& pair) {
  const Bytes8 ping = pattern(100, 1), pong = pattern(50, 2);
  const std::size_t heard_server = pair.server.messages.size(), heard_client = pair.client.messages.size();
  const std::size_t done_server = pair.server.completed(), done_client = pair.client.completed();
  Buffer there(pair.client.connection->domain(), ping.size(), RemoteAccess::none);
  Buffer back(pair.server.connection->domain(), pong.size(), RemoteAccess::none);
  there.fill(ping);
  back.fill(pong);
  pair.client.post_send(there, 0, ping.size());
  expect([&] { return pair.server.messages.size() > heard_server; }, "the ping arrives");
  CHECK(pair.server.messages.back().bytes == ping);
  pair.server.post_send(back, 0, pong.size());
  expect([&] { return pair.client.messages.size() > heard_client; }, "the pong arrives");
  CHECK(pair.client.messages.back().bytes == pong);
  expect([&] { return pair.server.completed() > done_server && pair.client.completed() > done_client; },
         "both sends complete");
  CHECK(pair.client.healthy());
  CHECK(pair.server.healthy());
}

void Rig::expect(const std::function<bool()>& done, const char* what) {
  INFO(what);
  REQUIRE(fabric_.run_until(done));
}

}  // namespace rbt::test
