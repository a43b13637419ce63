#pragma once
// A disk that outlives its targets, and targets that die at random moments under load: the body of
// durability_simulation.

#include <cstdint>
#include <memory>
#include <string>

#include "initiator/initiator.h"
#include "target/store/drop_unflushed.h"
#include "target/target.h"
#include "tests/sim/durable_load.h"
#include "tests/sim/lying_store.h"
#include "transport/sim/network.h"

namespace rbt::test {

struct DurabilityResult {
  std::string failure;  ///< empty: all went well
  std::uint64_t requests = 0;
  std::uint64_t crashes = 0;
  std::uint64_t lost = 0;     ///< as DurableLoad's
  std::uint64_t unknown = 0;  ///< requests cut off by a crash
  std::uint64_t trace_hash = 0;
};

/// `ram` behind `delay` behind `drop-unflushed`, behind a whole target and a session over sim.
class DurableWorld {
 public:
  DurableWorld(std::uint64_t seed, Lie lie, Logger& logger);
  ~DurableWorld();
  [[nodiscard]] DurabilityResult run();

 private:
  static constexpr std::uint64_t kBlocks = 96;
  static constexpr std::uint64_t kLives = 4;

  void power_on();
  void crash();
  std::uint64_t seed_;
  Lie lie_;
  Logger& logger_;
  transport::sim::Network network_;
  Random random_;
  std::unique_ptr<target::Store> disk_;
  target::DropUnflushed* cache_ = nullptr;
  std::unique_ptr<transport::Reactor> target_reactor_;
  std::unique_ptr<target::Target> target_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<DurableLoad> load_;
  std::unique_ptr<initiator::Session> session_;
  std::unique_ptr<initiator::QueuePair> queue_;
  std::uint64_t crashes_ = 0;
};

}  // namespace rbt::test
