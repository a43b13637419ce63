// Target and initiator, whole, in one simulated world with faults: what is read is what some write could have left, every
// request is done once, and when the faults are over everything works again. One seed, one run, the same every time.
//
//   session_simulation                 seeds 1 to 500
//   session_simulation --seeds N       seeds 1 to N
//   session_simulation --seed S        this one, and everything that is logged (also: RBT_SEED=S)

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>

#include "session_world.h"

namespace {

using rbt::test::SimulationResult;

bool report(std::uint64_t seed, const SimulationResult& result) {
  if (result.failure.empty()) return true;
  std::cerr << "FAILED: " << result.failure << "\nreplay: session_simulation --seed " << seed << "\n";
  return false;
}

int replay(std::uint64_t seed) {
  const SimulationResult result = rbt::test::simulate(seed, true);
  std::cout << "seed " << seed << ": " << result.requests << " requests, " << result.failed_requests << " failed, "
            << result.sessions << " sessions, trace " << std::hex << result.trace_hash << "\n";
  return report(seed, result) ? 0 : 1;
}

int sweep(std::uint64_t seeds) {
  SimulationResult sum;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    const SimulationResult result = rbt::test::simulate(seed, false);
    if (!report(seed, result)) return 1;
    if (seed % 50 == 1 && rbt::test::simulate(seed, false).trace_hash != result.trace_hash) {
      std::cerr << "FAILED: seed " << seed << " did not replay: two runs, two traces\n";
      return 1;
    }
    sum.requests += result.requests;
    sum.failed_requests += result.failed_requests;
    sum.sessions += result.sessions;
  }
  std::cout << seeds << " seeds: " << sum.requests << " requests, " << sum.failed_requests << " failed by faults, "
            << sum.sessions << " sessions\n";
  // A simulation whose faults hit nothing shows nothing.
  if (sum.failed_requests == 0 || sum.sessions <= seeds) {
    std::cerr << "FAILED: no fault ever hit anything\n";
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (const char* const seed = std::getenv("RBT_SEED")) return replay(std::strtoull(seed, nullptr, 0));
  if (argc == 3 && std::strcmp(argv[1], "--seed") == 0) return replay(std::strtoull(argv[2], nullptr, 0));
  if (argc == 3 && std::strcmp(argv[1], "--seeds") == 0) return sweep(std::strtoull(argv[2], nullptr, 0));
  return sweep(500);
}
