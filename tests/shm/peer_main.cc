// shm_peer server|client PATH: the other process of the two-process tests. Runs for at most a minute, or until killed.

#include <cstdio>
#include <string_view>

#include "common/log.h"
#include "common/uri.h"
#include "tests/shm/workload.h"

using namespace rbt;
using namespace rbt::test;

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string_view role = argv[1];
  Uri uri;
  uri.scheme = Uri::Scheme::shm;
  uri.options["socket"] = argv[2];
  SystemClock clock;
  Random random = Random::from_entropy();
  auto reactor = transport::Reactor::create(clock, null_logger());
  auto fabric = transport::shm::Fabric::open({}, random);
  if (!reactor || !fabric) return 2;
  const Instant end = clock.now() + std::chrono::minutes(1);
  if (role == "server") {
    WorkloadServer server(**fabric, **reactor);
    if (auto listening = server.listen(uri); !listening) {
      std::fprintf(stderr, "%s\n", listening.error().message().c_str());
      return 3;
    }
    std::puts("ready");
    std::fflush(stdout);
    (void)(*reactor)->run_until([] { return false; }, end);
    return 0;
  }
  WorkloadClient client(**fabric, **reactor, random());
  if (auto begun = client.connect(uri); !begun) {
    std::fprintf(stderr, "%s\n", begun.error().message().c_str());
    return 3;
  }
  (void)(*reactor)->run_until([&] { return client.established || client.disconnected.has_value(); }, end);
  std::puts("ready");
  std::fflush(stdout);
  (void)(*reactor)->run_until([&] { return client.disconnected.has_value(); }, end);
  client.close();
  (void)(*reactor)->run_until([&] { return client.closed; }, end);
  return client.corrupt == 0 ? 0 : 4;
}
