// Connecting, accepting, refusing, closing: what holds on every fabric.

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <string>

#include "tests/sim/fabric_rig.h"

namespace rbt::test {

using namespace transport;

namespace {

/// What a fabric may have padded with zeroes begins with what was sent.
bool begins_with(const Bytes8& heard, const Bytes8& sent) {
  return heard.size() >= sent.size() && std::equal(sent.begin(), sent.end(), heard.begin()) &&
         std::all_of(heard.begin() + static_cast<std::ptrdiff_t>(sent.size()), heard.end(),
                     [](std::byte byte) { return byte == std::byte{0}; });
}

void private_data_travels(FabricUnderTest& fabric) {
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  std::string host;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{32}, std::size_t{56}}) {
    const Bytes8 request = pattern(size, 1), reply = pattern(size * 196 / 56, 2);
    End& client = rig.client.connect(fabric.address(), {.private_data = request, .timeout = kPatience});
    rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
    const ConnectionRequest& heard = *rig.server.requests.front();
    CHECK(begins_with({heard.private_data().begin(), heard.private_data().end()}, request));
    CHECK_FALSE(heard.peer().empty());
    if (size == 0) host = heard.peer_host();
    CHECK_FALSE(host.empty());
    CHECK(heard.peer_host() == host);  // of every connection
    End& server = rig.server.accept({.private_data = reply, .timeout = kPatience});
    rig.expect([&] { return client.established && server.established; }, "both ends are established");
    CHECK(begins_with(client.private_data, reply));
    CHECK(server.private_data.empty());
    CHECK_FALSE(client.connection->peer().empty());
    rig.expect_working({client, server});
  }
}

void too_much_private_data(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const Bytes8 data = pattern(197, 1);
  End end;
  CHECK_FALSE(rig.client.group->connect(fabric.address(), {.private_data = {data.data(), 57}}, end).has_value());
  rig.server.listen(fabric.address());
  End& client = rig.client.connect(fabric.address());
  rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
  auto request = std::move(rig.server.requests.front());
  rig.server.requests.clear();
  const auto accepted = rig.server.group->accept(std::move(request), {.private_data = data}, end);
  REQUIRE_FALSE(accepted.has_value());
  CHECK(accepted.error().kind() == ErrorKind::invalid_argument);
  rig.expect([&] { return client.disconnected.has_value(); }, "the peer is told");
  CHECK(*client.disconnected == Disconnect::Reason::refused);
}

void refusal(FabricUnderTest& fabric) {
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  const Bytes8 why = pattern(148, 3);
  End& client = rig.client.connect(fabric.address());
  rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
  rig.server.requests.front()->reject(why);
  rig.server.requests.clear();
  rig.expect([&] { return client.disconnected.has_value(); }, "the refusal arrives");
  CHECK(*client.disconnected == Disconnect::Reason::refused);
  CHECK(client.private_data == why);
  CHECK_FALSE(client.established);

  End& other = rig.client.connect(fabric.address());
  rig.expect([&] { return !rig.server.requests.empty(); }, "another connect arrives");
  rig.server.requests.clear();  // destroyed unanswered
  rig.expect([&] { return other.disconnected.has_value(); }, "silence is a refusal");
  CHECK(*other.disconnected == Disconnect::Reason::refused);
}

void nobody_listens(FabricUnderTest& fabric) {
  Rig rig(fabric);
  End end;
  const auto connection = rig.client.group->connect(fabric.silent_address(), {}, end);
  if (!connection) {  // a fabric may know at once
    CHECK(connection.error().kind() == ErrorKind::unreachable);
    rig.expect([&] { return rig.client.group->connections() == 0; }, "nothing was begun");
    return;
  }
  rig.expect([&] { return end.disconnected.has_value(); }, "the consumer is told");
  CHECK(*end.disconnected == Disconnect::Reason::unreachable);
  CHECK_FALSE(end.established);
  (*connection)->close();
  rig.expect([&] { return end.closed; }, "it closes");
}

void address_taken(FabricUnderTest& fabric) {
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  Side other(fabric.server(), fabric.server_reactor(), {.receive_depth = 4, .receive_size = 64});
  const auto second = other.group->listen(fabric.address(), {}, other);
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().kind() == ErrorKind::in_use);
  rig.server.listener.reset();
  const auto third = other.group->listen(fabric.address(), {}, other);
  if (!third) FAIL(third.error().message());
}

void backlog(FabricUnderTest& fabric) {
  Rig rig(fabric);
  rig.server.listen(fabric.address(), {.backlog = 2});
  std::vector<End*> ends;
  for (int i = 0; i < 5; ++i)
    ends.push_back(&rig.client.connect(fabric.address()));
  const auto refused = [&] {
    return std::count_if(ends.begin(), ends.end(), [](const End* end) { return end->disconnected.has_value(); });
  };
  rig.expect([&] { return rig.server.requests.size() == 2 && refused() == 3; }, "three of five are refused");
  rig.server.requests.clear();
  rig.expect([&] { return refused() == 5; }, "the other two are told as well");
  (void)rig.connect();  // there is room again
}

void established_first(FabricUnderTest& fabric) {
  Rig rig(fabric, {.receive_depth = 64, .receive_size = 128});
  rig.server.listen(fabric.address());
  std::vector<std::unique_ptr<Buffer>> buffers;
  for (std::uint64_t i = 0; i < 50; ++i) {
    End& client = rig.client.connect(fabric.address());
    client.when_established = [&client, &buffers, i] {  // not before: only now is the device known everywhere
      buffers.push_back(std::make_unique<Buffer>(client.connection->domain(), 64, RemoteAccess::none));
      buffers.back()->fill(pattern(64, i));
      client.post_send(*buffers.back(), 0, 64, 1);
    };
    rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
    End& server = rig.server.accept();
    rig.expect([&] { return server.messages.size() == 1 && client.completed() == 1; }, "its first message arrives");
    CHECK(server.established);
    CHECK(server.messages[0].bytes == pattern(64, i));
    CHECK(server.mistakes.empty());
    client.connection->close();
    server.connection->close();
    rig.expect([&] { return client.closed && server.closed; }, "it closes");
  }
}

void many_at_once(FabricUnderTest& fabric) {
  constexpr std::size_t kConnections = 64;
  Rig rig(fabric, {.receive_depth = 256, .receive_size = 256});
  rig.server.listen(fabric.address());
  std::vector<End*> clients, servers;
  for (std::size_t i = 0; i < kConnections; ++i)
    clients.push_back(&rig.client.connect(fabric.address()));
  rig.expect([&] { return rig.server.requests.size() == kConnections; }, "64 connects arrive");
  for (std::size_t i = 0; i < kConnections; ++i)
    servers.push_back(&rig.server.accept());
  rig.expect(
      [&] {
        const auto established = [](const End* end) { return end->established; };
        return std::all_of(clients.begin(), clients.end(), established) &&
               std::all_of(servers.begin(), servers.end(), established);
      },
      "128 ends are established");
  CHECK(rig.client.group->connections() == kConnections);
  CHECK(rig.server.group->connections() == kConnections);
  std::vector<std::unique_ptr<Buffer>> buffers;
  for (std::size_t i = 0; i < kConnections; ++i) {
    buffers.push_back(std::make_unique<Buffer>(clients[i]->connection->domain(), 200, RemoteAccess::none));
    buffers.back()->fill(pattern(200, i));
    clients[i]->post_send(*buffers.back(), 0, 200, i);
  }
  const auto arrived = [&] {
    return std::all_of(servers.begin(), servers.end(), [](const End* end) { return end->messages.size() == 1; }) &&
           std::all_of(clients.begin(), clients.end(), [](const End* end) { return end->completed() == 1; });
  };
  rig.expect(arrived, "each message arrives and completes");
  std::vector<Bytes8> heard, sent;
  for (std::size_t i = 0; i < kConnections; ++i) {
    heard.push_back(servers[i]->messages[0].bytes);
    sent.push_back(pattern(200, i));
  }
  std::sort(heard.begin(), heard.end());
  std::sort(sent.begin(), sent.end());
  CHECK(heard == sent);
}

void accepted_elsewhere(FabricUnderTest& fabric) {
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  Side other(fabric.server(), fabric.server_reactor(), {.receive_depth = 8, .receive_size = 128});
  End& client = rig.client.connect(fabric.address());
  rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
  other.requests = std::move(rig.server.requests);
  rig.server.requests.clear();
  End& server = other.accept();
  rig.expect([&] { return client.established && server.established; }, "both ends are established");
  CHECK(other.group->connections() == 1);
  CHECK(rig.server.group->connections() == 0);
  rig.expect_working({client, server});
  server.connection->close();
  rig.expect([&] { return server.closed; }, "it closes");
}

void orderly_end(FabricUnderTest& fabric) {
  Rig rig(fabric);
  for (const bool by_client : {true, false}) {
    const auto pair = rig.connect();
    End& first = by_client ? pair.client : pair.server;
    End& second = by_client ? pair.server : pair.client;
    first.connection->close();
    CHECK(first.connection != nullptr);  // never from within close()
    rig.expect([&] { return first.closed && second.disconnected.has_value(); }, "one closes, the other hears of it");
    CHECK(*second.disconnected == Disconnect::Reason::peer_closed);
    CHECK_FALSE(first.disconnected.has_value());
    CHECK_FALSE(second.closed);
    second.connection->close();
    second.connection->close();
    rig.expect([&] { return second.closed; }, "the other closes too");
  }
}

void nothing_after_close(FabricUnderTest& fabric) {
  Rig rig(fabric);
  const auto pair = rig.connect({.send_depth = 32, .timeout = kPatience});
  Buffer large(pair.client.connection->domain(), 1 << 20, RemoteAccess::none);
  Buffer target(pair.server.connection->domain(), 1 << 20, RemoteAccess::write);
  for (std::uint64_t i = 0; i < 16; ++i)
    pair.client.post_write(large, target, large.size(), i);
  Buffer message(pair.server.connection->domain(), 64, RemoteAccess::none);
  for (std::uint64_t i = 0; i < 8; ++i)
    pair.server.post_send(message, 0, 64, i);
  rig.expect([&] { return pair.client.completed() >= 1; }, "the first is done");
  const std::size_t done = pair.client.completed(), heard = pair.client.messages.size();
  pair.client.connection->close();
  const Segment segment = message.segment(0, 1);
  const WorkRequest request{.segments = {&segment, 1}};
  CHECK(pair.client.connection->post({&request, 1}) == PostResult::dead);
  rig.expect([&] { return pair.client.closed; }, "it closes with requests outstanding");
  CHECK(pair.client.completed() == done);
  CHECK(pair.client.messages.size() == heard);
  // on_closed() promises that nothing touches the memory any more.
  const Bytes8 after = target.bytes(0, target.size());
  rig.run_a_while();
  CHECK(target.bytes(0, target.size()) == after);

  const auto other = rig.connect({.send_depth = 64, .timeout = kPatience});
  for (std::uint64_t i = 0; i < 64; ++i)
    other.client.post_send(large, 0, 64, i);
  rig.expect([&] { return other.client.completed() >= 1; }, "the first of many small ones is done");
  const std::size_t small_done = other.client.completed();
  other.client.connection->close();
  rig.expect([&] { return other.client.closed; }, "it closes with answers under way");
  CHECK(other.client.completed() == small_done);
}

void close_in_callbacks(FabricUnderTest& fabric) {
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  End& client = rig.client.connect(fabric.address());
  client.when_established = [&client] { client.connection->close(); };
  rig.expect([&] { return !rig.server.requests.empty(); }, "the connect arrives");
  End& server = rig.server.accept();
  server.when_disconnected = [&server] { server.connection->close(); };
  rig.expect([&] { return client.closed && server.closed; }, "both ends close from within their callbacks");

  const auto pair = rig.connect();
  pair.server.on_any = [&pair](const Completion&) { pair.server.connection->close(); };
  Buffer buffer(pair.client.connection->domain(), 64, RemoteAccess::none);
  pair.client.post_send(buffer, 0, 64);
  rig.expect([&] { return pair.server.closed; }, "an end closes on its first message");
}

void close_while_connecting(FabricUnderTest& fabric) {
  Rig rig(fabric);
  rig.server.listen(fabric.address());
  End& early = rig.client.connect(fabric.address());
  early.connection->close();
  rig.expect([&] { return early.closed; }, "a connect that has just begun is given up");
  CHECK_FALSE(early.established);

  End& late = rig.client.connect(fabric.address());
  const std::size_t knocked = rig.server.requests.size();
  rig.expect([&] { return rig.server.requests.size() > knocked; }, "the connect arrives");
  late.connection->close();
  rig.expect([&] { return late.closed; }, "a connect is given up before its answer");
  // The server cannot know; whatever it does with the requests, it is rid of them.
  while (!rig.server.requests.empty()) {
    auto request = std::move(rig.server.requests.back());
    rig.server.requests.pop_back();
    End end;
    const auto accepted =
        rig.server.group->accept(std::move(request), {.timeout = std::chrono::milliseconds(500)}, end);
    if (!accepted) continue;
    end.connection = *accepted;
    rig.expect([&] { return end.disconnected.has_value(); }, "an accept that nobody waits for is undone");
    end.connection->close();
    rig.expect([&] { return end.closed; }, "it closes");
  }
  (void)rig.connect();
}

constexpr std::array kClaims{
    Claim{"private data travels with connect and accept", private_data_travels},
    Claim{"more private data than can be carried is refused at once", too_much_private_data},
    Claim{"a refusal arrives with its reason", refusal},
    Claim{"connecting where nobody listens says unreachable", nobody_listens},
    Claim{"an address is listened on once", address_taken},
    Claim{"connects beyond the backlog are refused", backlog},
    Claim{"established comes before the first message", established_first},
    Claim{"64 connections at once", many_at_once},
    Claim{"a request is accepted by another poll group than the one that heard it", accepted_elsewhere},
    Claim{"an orderly end is heard by the peer", orderly_end},
    Claim{"after close() nothing completes, after on_closed() nothing moves", nothing_after_close},
    Claim{"close() works from within every callback", close_in_callbacks},
    Claim{"a connect can be given up", close_while_connecting},
};

}  // namespace

std::span<const Claim> connection_claims() {
  return kClaims;
}

}  // namespace rbt::test
