#pragma once
// The verbs fabric on the rig's RDMA device, as the contract wants to see it.

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "tests/sim/fabric_contract.h"
#include "transport/verbs/fabric.h"

namespace rbt::test {

/// Where the rig's device is. Fails the test outside the rig: these are not to be skipped by accident.
[[nodiscard]] inline std::string rig_address() {
  const char* const address = std::getenv("RBT_RIG_ADDR");
  REQUIRE(address != nullptr);  // run it with ci/softroce run
  return address;
}

[[nodiscard]] inline Uri rdma_uri(std::string host, std::uint16_t port) {
  Uri uri;
  uri.scheme = Uri::Scheme::rdma;
  uri.host = std::move(host);
  uri.port = port;
  return uri;
}

class VerbsUnderTest final : public FabricUnderTest {
 public:
  explicit VerbsUnderTest(const transport::verbs::Options& options = {}) {
    auto opened = transport::verbs::Fabric::open(*logger_, options);
    if (!opened) FAIL(opened.error().message());
    fabric_ = std::move(*opened);
    for (auto* reactor : {&server_reactor_, &client_reactor_}) {
      auto created = transport::Reactor::create(clock_, *logger_);
      REQUIRE(created.has_value());
      *reactor = std::move(*created);
    }
  }
  [[nodiscard]] transport::Fabric& server() override { return *fabric_; }
  [[nodiscard]] transport::Fabric& client() override { return *fabric_; }
  [[nodiscard]] transport::Reactor& server_reactor() override { return *server_reactor_; }
  [[nodiscard]] transport::Reactor& client_reactor() override { return *client_reactor_; }
  [[nodiscard]] Uri address() override { return rdma_uri(rig_address(), 4420); }
  [[nodiscard]] Uri silent_address() override { return rdma_uri(rig_address(), 4421); }
  [[nodiscard]] bool run_until(const std::function<bool()>& done) override {
    return run_until(done, std::chrono::seconds(90));  // longer than kPatience
  }
  [[nodiscard]] bool run_until(const std::function<bool()>& done, Duration limit) {
    const Instant deadline = clock_.now() + limit;
    while (!done()) {
      if (clock_.now() > deadline) return false;
      server_reactor_->turn();
      client_reactor_->turn();
    }
    return true;
  }
  void run_a_while() override {
    (void)run_until([] { return false; }, std::chrono::milliseconds(100));
  }
  [[nodiscard]] bool invalidates() const override { return false; }
  [[nodiscard]] const Clock& clock() const noexcept { return clock_; }

 private:
  SystemClock clock_;
  std::unique_ptr<Logger> logger_ = make_stderr_logger(LogLevel::warning);
  std::unique_ptr<transport::verbs::Fabric> fabric_;
  std::unique_ptr<transport::Reactor> server_reactor_;
  std::unique_ptr<transport::Reactor> client_reactor_;
};

}  // namespace rbt::test
