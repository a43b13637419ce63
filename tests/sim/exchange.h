#pragma once
// A small program over a simulated network in which everything may fail and nothing may be forgotten: a client connects,
// writes into the server's memory and tells it so, round after round; both ends close whatever comes.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transport/sim/network.h"

namespace rbt::test {

class Exchange {
 public:
  struct Options {
    std::uint64_t rounds = 10;
    std::size_t size = 10'000;  // bytes per write
  };
  Exchange(transport::sim::Network& network, const Options& options);
  ~Exchange();
  /// From opening to the last on_closed(). Anything that must not happen goes to mistakes().
  void run();
  /// Every round was done.
  [[nodiscard]] bool complete() const noexcept;
  [[nodiscard]] std::uint64_t rounds_done() const noexcept;
  [[nodiscard]] const std::vector<std::string>& mistakes() const noexcept;
  /// Faults by chance that a run of this size meets now and then.
  [[nodiscard]] static transport::sim::FaultPlan rough_weather();

 private:
  class Server;
  class Client;
  transport::sim::Network& network_;
  Options options_;
  std::vector<std::string> mistakes_;
  std::unique_ptr<transport::Reactor> server_reactor_;
  std::unique_ptr<transport::Reactor> client_reactor_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
};

}  // namespace rbt::test
