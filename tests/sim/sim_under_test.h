#pragma once
// The simulated fabric as the contract wants to see it.

#include <catch2/catch.hpp>

#include "tests/sim/fabric_contract.h"
#include "transport/sim/network.h"

namespace rbt::test {

class SimUnderTest final : public FabricUnderTest {
 public:
  explicit SimUnderTest(const transport::sim::NetworkOptions& options = {})
      : network(options), server_reactor_(make_reactor()), client_reactor_(make_reactor()) {}
  [[nodiscard]] transport::Fabric& server() override { return network.fabric("server"); }
  [[nodiscard]] transport::Fabric& client() override { return network.fabric("client"); }
  [[nodiscard]] transport::Reactor& server_reactor() override { return *server_reactor_; }
  [[nodiscard]] transport::Reactor& client_reactor() override { return *client_reactor_; }
  [[nodiscard]] Uri address() override { return uri("server", 4420); }
  [[nodiscard]] Uri silent_address() override { return uri("server", 4421); }
  [[nodiscard]] bool run_until(const std::function<bool()>& done) override {
    return network.run_for(std::chrono::seconds(10), done) == transport::sim::Network::Outcome::done;
  }
  void run_a_while() override { (void)network.run_for(std::chrono::milliseconds(50)); }

  [[nodiscard]] static Uri uri(std::string host, std::uint16_t port) {
    Uri address;
    address.scheme = Uri::Scheme::sim;
    address.host = std::move(host);
    address.port = port;
    return address;
  }

  transport::sim::Network network;

 private:
  [[nodiscard]] std::unique_ptr<transport::Reactor> make_reactor() {
    auto reactor = transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network});
    REQUIRE(reactor.has_value());
    return std::move(*reactor);
  }
  std::unique_ptr<transport::Reactor> server_reactor_;
  std::unique_ptr<transport::Reactor> client_reactor_;
};

}  // namespace rbt::test
