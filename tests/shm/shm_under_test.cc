#include "tests/shm/shm_under_test.h"

namespace rbt::test {

Uri shm_uri(const std::string& socket) {
  Uri uri;
  uri.scheme = Uri::Scheme::shm;
  uri.port = 0;
  uri.options["socket"] = socket;
  return uri;
}

ShmUnderTest::ShmUnderTest(const transport::shm::Options& server_options,
                           const transport::shm::Options& client_options) {
  const auto open = [&](const transport::shm::Options& options) {
    auto fabric = transport::shm::Fabric::open(options, random_);
    REQUIRE(fabric.has_value());
    return std::move(*fabric);
  };
  const auto start = [&] {
    auto reactor = transport::Reactor::create(clock_, null_logger());
    REQUIRE(reactor.has_value());
    return std::move(*reactor);
  };
  server_ = open(server_options);
  client_ = open(client_options);
  server_reactor_ = start();
  client_reactor_ = start();
}

bool ShmUnderTest::turn_until(const std::function<bool()>& done, Duration at_most) {
  const Instant deadline = clock_.now() + at_most;
  while (!done()) {
    if (clock_.now() >= deadline) return false;
    server_reactor_->turn();
    client_reactor_->turn();
  }
  return true;
}

bool ShmUnderTest::run_until(const std::function<bool()>& done) {
  return turn_until(done, std::chrono::seconds(10));
}

void ShmUnderTest::run_a_while() {
  (void)turn_until([] { return false; }, std::chrono::milliseconds(20));
}

}  // namespace rbt::test
