// A volume under which the network fails, the target dies and its own process does: the caller sees latency and nothing else.
// And what happens without the fence, without the record that one process leaves to the next, and without the memory of
// unflushed writes: the same checks must find it.
//
//   recovery_simulation                 seeds 1 to 500 of all troubles, then without
//   recovery_simulation --seeds N       seeds 1 to N
//   recovery_simulation --seed S        this one, and everything that is logged (also: RBT_SEED=S)

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>

#include "tests/sim/recovery_world.h"

namespace {

using rbt::test::RecoveryPlan;
using rbt::test::RecoveryResult;
using Trouble = RecoveryPlan::Trouble;

constexpr std::uint64_t kSeeds = 500;
constexpr std::uint64_t kSeedsWithout = 100;

RecoveryResult simulate(std::uint64_t seed, const RecoveryPlan& plan, rbt::Logger& logger = rbt::null_logger()) {
  rbt::test::RecoveryWorld world(seed, plan, logger);
  return world.run();
}

bool report(std::uint64_t seed, const RecoveryResult& result) {
  if (result.failure.empty()) return true;
  std::cerr << "FAILED: " << result.failure << "\nreplay: recovery_simulation --seed " << seed << "\n";
  return false;
}

const char* name(Trouble trouble) {
  switch (trouble) {
    case Trouble::network: return "network";
    case Trouble::processes: return "processes";
    case Trouble::crashes: return "crashes";
  }
  return "unknown";
}

void print(Trouble trouble, const RecoveryResult& sum) {
  std::cout << name(trouble) << ": " << sum.requests << " requests, " << sum.crashes << " crashes, " << sum.losses
            << " paths lost, " << sum.attempts << " attempts to connect, " << sum.reissued << " requests sent again, "
            << sum.rewritten << " writes written again\n";
}

void add(RecoveryResult& sum, const RecoveryResult& one) {
  sum.requests += one.requests;
  sum.crashes += one.crashes;
  sum.losses += one.losses;
  sum.attempts += one.attempts;
  sum.reissued += one.reissued;
  sum.rewritten += one.rewritten;
}

int replay(std::uint64_t seed) {
  const auto logger = rbt::make_stderr_logger(rbt::LogLevel::debug);
  bool well = true;
  for (const Trouble trouble : {Trouble::network, Trouble::processes, Trouble::crashes}) {
    const RecoveryResult result = simulate(seed, {.trouble = trouble}, *logger);
    print(trouble, result);
    well = report(seed, result) && well;
  }
  return well ? 0 : 1;
}

bool sweep(Trouble trouble, std::uint64_t seeds) {
  RecoveryResult sum;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    const RecoveryResult result = simulate(seed, {.trouble = trouble});
    if (!report(seed, result)) return false;
    if (seed % 100 == 1 && simulate(seed, {.trouble = trouble}).trace_hash != result.trace_hash) {
      std::cerr << "FAILED: seed " << seed << " did not replay: two runs, two traces\n";
      return false;
    }
    add(sum, result);
  }
  print(trouble, sum);
  // Trouble that hits nothing shows nothing.
  const bool hit = sum.losses >= seeds && sum.reissued >= seeds &&
                   (trouble == Trouble::network || sum.crashes >= seeds) &&
                   (trouble != Trouble::crashes || sum.rewritten >= seeds);
  if (!hit) std::cerr << "FAILED: the trouble did not hit anything\n";
  return hit;
}

bool is_found_out(const RecoveryPlan& plan, const char* what) {
  for (std::uint64_t seed = 1; seed <= kSeedsWithout; ++seed) {
    const RecoveryResult result = simulate(seed, plan);
    if (result.failure.empty()) continue;
    std::cout << what << ": found out by seed " << seed << ": " << result.failure << "\n";
    return true;
  }
  std::cerr << "FAILED: " << what << ": nothing noticed in " << kSeedsWithout << " seeds\n";
  return false;
}

int sweep_all(std::uint64_t seeds) {
  const bool well =
      sweep(Trouble::network, seeds) && sweep(Trouble::processes, seeds) && sweep(Trouble::crashes, seeds) &&
      is_found_out({.trouble = Trouble::network, .fencing = rbt::initiator::Fencing::off}, "without the fence") &&
      is_found_out({.trouble = Trouble::processes, .succeed = false}, "without a record of the process before") &&
      is_found_out({.trouble = Trouble::crashes, .remember = false}, "without the memory of unflushed writes");
  return well ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (const char* const seed = std::getenv("RBT_SEED")) return replay(std::strtoull(seed, nullptr, 0));
  if (argc == 3 && std::strcmp(argv[1], "--seed") == 0) return replay(std::strtoull(argv[2], nullptr, 0));
  if (argc == 3 && std::strcmp(argv[1], "--seeds") == 0) return sweep_all(std::strtoull(argv[2], nullptr, 0));
  return sweep_all(kSeeds);
}
