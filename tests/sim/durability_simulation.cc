// Targets that die under load, with an honest write cache: whatever was acknowledged as durable is there afterwards, the
// rest is old or new, block by block, and never mixed. And a store that lies about it is found out.
//
//   durability_simulation                 seeds 1 to 1000, then the liars
//   durability_simulation --seeds N       seeds 1 to N, then the liars
//   durability_simulation --seed S        this one, and everything that is logged (also: RBT_SEED=S)

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>

#include "tests/sim/durable_world.h"

namespace {

using rbt::test::DurabilityResult;
using rbt::test::Lie;

constexpr std::uint64_t kSeeds = 1000;
constexpr std::uint64_t kSeedsForLies = 20;  // a lie is found within a few

DurabilityResult simulate(std::uint64_t seed, Lie lie, rbt::Logger& logger) {
  rbt::test::DurableWorld world(seed, lie, logger);
  return world.run();
}

bool report(std::uint64_t seed, const DurabilityResult& result) {
  if (result.failure.empty()) return true;
  std::cerr << "FAILED: " << result.failure << "\nreplay: durability_simulation --seed " << seed << "\n";
  return false;
}

int replay(std::uint64_t seed) {
  const auto logger = rbt::make_stderr_logger(rbt::LogLevel::debug);
  const DurabilityResult result = simulate(seed, Lie::none, *logger);
  std::cout << "seed " << seed << ": " << result.requests << " requests, " << result.unknown << " cut off, "
            << result.lost << " blocks lost, " << result.crashes << " crashes\n";
  return report(seed, result) ? 0 : 1;
}

bool is_found_out(Lie lie, const char* what) {
  for (std::uint64_t seed = 1; seed <= kSeedsForLies; ++seed) {
    const DurabilityResult result = simulate(seed, lie, rbt::null_logger());
    if (result.failure.empty()) continue;
    std::cout << what << ": found out by seed " << seed << ": " << result.failure << "\n";
    return true;
  }
  std::cerr << "FAILED: " << what << ": nothing noticed in " << kSeedsForLies << " seeds\n";
  return false;
}

int sweep(std::uint64_t seeds) {
  DurabilityResult sum;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    const DurabilityResult result = simulate(seed, Lie::none, rbt::null_logger());
    if (!report(seed, result)) return 1;
    if (seed % 100 == 1 && simulate(seed, Lie::none, rbt::null_logger()).trace_hash != result.trace_hash) {
      std::cerr << "FAILED: seed " << seed << " did not replay: two runs, two traces\n";
      return 1;
    }
    sum.requests += result.requests;
    sum.crashes += result.crashes;
    sum.lost += result.lost;
    sum.unknown += result.unknown;
  }
  std::cout << seeds << " seeds: " << sum.crashes << " crashes, " << sum.requests << " requests, " << sum.unknown
            << " cut off, " << sum.lost << " blocks came back other than last answered\n";
  // A crash that takes nothing away shows nothing.
  if (sum.lost < seeds || sum.unknown < seeds) {
    std::cerr << "FAILED: the crashes did not hit anything\n";
    return 1;
  }
  return is_found_out(Lie::flush, "a flush that does nothing") && is_found_out(Lie::fua, "FUA that is not kept") ? 0
                                                                                                                 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (const char* const seed = std::getenv("RBT_SEED")) return replay(std::strtoull(seed, nullptr, 0));
  if (argc == 3 && std::strcmp(argv[1], "--seed") == 0) return replay(std::strtoull(argv[2], nullptr, 0));
  if (argc == 3 && std::strcmp(argv[1], "--seeds") == 0) return sweep(std::strtoull(argv[2], nullptr, 0));
  return sweep(kSeeds);
}
