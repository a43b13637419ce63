#pragma once
// The shm fabric as the contract wants to see it: two fabrics in one process, joined by a socket file of their own.

#include <string>

#include "tests/shm/scratch.h"
#include "tests/sim/fabric_contract.h"
#include "transport/shm/fabric.h"

namespace rbt::test {

[[nodiscard]] Uri shm_uri(const std::string& socket);

class ShmUnderTest final : public FabricUnderTest {
 public:
  explicit ShmUnderTest(const transport::shm::Options& server_options = {},
                        const transport::shm::Options& client_options = {});
  [[nodiscard]] transport::shm::Fabric& server() override { return *server_; }
  [[nodiscard]] transport::shm::Fabric& client() override { return *client_; }
  [[nodiscard]] transport::Reactor& server_reactor() override { return *server_reactor_; }
  [[nodiscard]] transport::Reactor& client_reactor() override { return *client_reactor_; }
  [[nodiscard]] Uri address() override { return shm_uri(path()); }
  [[nodiscard]] Uri silent_address() override { return shm_uri(scratch_.path("silent")); }
  [[nodiscard]] bool run_until(const std::function<bool()>& done) override;
  void run_a_while() override;

  [[nodiscard]] std::string path() const { return scratch_.path("target.sock"); }
  [[nodiscard]] const SystemClock& clock() const noexcept { return clock_; }

 private:
  bool turn_until(const std::function<bool()>& done, Duration at_most);
  ScratchDirectory scratch_;
  SystemClock clock_;
  Random random_{1};
  std::unique_ptr<transport::shm::Fabric> server_;
  std::unique_ptr<transport::shm::Fabric> client_;
  std::unique_ptr<transport::Reactor> server_reactor_;
  std::unique_ptr<transport::Reactor> client_reactor_;
};

}  // namespace rbt::test
