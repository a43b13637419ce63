#pragma once
// One job: a thread with its own reactor and queue pair, keeping `depth` requests in flight on its part of a namespace.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/histogram.h"
#include "common/result.h"
#include "initiator/initiator.h"
#include "tools/program/interrupt.h"

namespace rbt::tools {

enum class Mix : std::uint8_t { read, write, randread, randwrite, randrw };
[[nodiscard]] constexpr bool writes(Mix mix) noexcept {
  return mix == Mix::write || mix == Mix::randwrite || mix == Mix::randrw;
}
[[nodiscard]] constexpr bool is_random(Mix mix) noexcept {
  return mix != Mix::read && mix != Mix::write;
}

struct JobOptions {
  Mix mix = Mix::randread;
  Blocks block;  ///< per request
  std::uint32_t depth = 32;
  BlockRange part;  ///< this job's share of the namespace, whole requests
  Duration runtime{};
  unsigned read_percent = 50;  ///< randrw
  bool verify = false;
  std::uint64_t run = 0;  ///< names this run in the blocks that --verify writes
  std::uint64_t seed = 0;
};

struct JobResult {
  Histogram latency;           ///< of the measured phase
  std::uint64_t requests = 0;  ///< done in the measured phase
  std::uint64_t reads = 0;
  std::uint64_t errors = 0;        ///< all phases: requests that failed, blocks that were not what they must be
  std::uint64_t verified = 0;      ///< blocks read back and found right
  Duration elapsed{};              ///< of the measured phase
  Duration cpu{};                  ///< of this thread, in the measured phase
  std::uint64_t system_calls = 0;  ///< by rbt's own loop, in the measured phase
  initiator::QueuePairCounters counters;
  std::vector<std::string> messages;  ///< the first few failures, in words
};

/// Runs on the calling thread, whose reactor it turns: connects the queue pair, fills (reads under --verify), measures,
/// reads back. An Error: it could not begin; failures of requests are in the result.
[[nodiscard]] Result<JobResult> run_job(initiator::Session& session, const initiator::Namespace& disk,
                                        const JobOptions& options, transport::Reactor& reactor,
                                        const Interrupt& interrupt);

}  // namespace rbt::tools
