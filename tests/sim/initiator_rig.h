#pragma once
// A host over the simulated network, in front of a raw target: what the tests of the initiator have in common.

#include <catch2/catch.hpp>
#include <memory>
#include <string>
#include <vector>

#include "initiator/initiator.h"
#include "raw_target.h"
#include "transport/sim/network.h"

namespace rbt::test {

using namespace std::chrono_literals;

/// A request and how it went.
struct Ticket {
  initiator::Request request;
  int done = 0;
  Ticket() {
    request.context = this;
    request.done = [](initiator::Request& r) { ++static_cast<Ticket*>(r.context)->done; };
  }
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;
};

/// Keeps what is logged.
class LogKeeper final : public Logger {
 public:
  LogKeeper() : Logger(LogLevel::debug) {}
  std::vector<std::string> lines;

 private:
  void write(LogLevel, std::string message) override { lines.push_back(std::move(message)); }
};

/// One host machine, driven by the simulation: no thread anywhere.
struct Host {
  explicit Host(transport::sim::Network& the_network) : network(the_network), fabric(network.fabric("host")) {
    reactor = std::move(transport::Reactor::create(network.clock(), log, {.waiter = &network}).value());
    options.management = reactor.get();
  }
  [[nodiscard]] initiator::Environment environment() { return {fabric, network.clock(), log, network.random()}; }
  [[nodiscard]] Result<std::unique_ptr<initiator::Session>> try_connect(const Uri& uri) {
    return initiator::Session::connect(environment(), uri, options);
  }
  [[nodiscard]] std::unique_ptr<initiator::Session> connect(const Uri& uri) {
    auto session = try_connect(uri);
    if (!session) FAIL(session.error().message());
    return std::move(*session);
  }
  /// The words of a connect that fails.
  [[nodiscard]] std::string refusal(const Uri& uri) {
    auto session = try_connect(uri);
    REQUIRE_FALSE(session);
    return session.error().message();
  }
  [[nodiscard]] std::unique_ptr<initiator::QueuePair> open(initiator::Session& session,
                                                           const initiator::QueuePairOptions& queue = {}) {
    auto opened = session.open_queue_pair(*reactor, queue);
    if (!opened) FAIL(opened.error().message());
    return std::move(*opened);
  }
  void run(Duration time) {
    (void)reactor->run_until([] { return false; }, network.clock().now() + time);
  }
  [[nodiscard]] bool wait(initiator::QueuePair& queue, const Ticket& ticket) {
    return queue.wait(ticket.request, network.clock().now() + 60s);
  }

  transport::sim::Network& network;
  transport::Fabric& fabric;
  LogKeeper log;
  std::unique_ptr<transport::Reactor> reactor;
  initiator::SessionOptions options;
};

/// Memory of a test's own, and an iovec for all of it.
struct Memory {
  explicit Memory(std::size_t size) : bytes(size), piece{bytes.data(), size} {}
  Memory(Memory&&) = delete;
  [[nodiscard]] std::span<const iovec> all() const { return {&piece, 1}; }
  void fill(Random& random) { random.fill(bytes); }
  std::vector<std::byte> bytes;
  iovec piece;
};

}  // namespace rbt::test
