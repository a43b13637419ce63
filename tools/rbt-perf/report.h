#pragma once
// What rbt-perf prints.

#include <cstdint>
#include <string>

#include "tools/rbt-perf/job.h"

namespace rbt::tools {

struct Summary {
  std::string uri;
  std::string pattern;  ///< as in --rw
  std::uint64_t request_bytes = 0;
  std::uint32_t depth = 0;
  std::uint32_t jobs = 0;
  JobResult total;  ///< all jobs; elapsed: the longest
};

/// Adds one job to the sum.
void add(JobResult& total, const JobResult& job);

/// For people.
[[nodiscard]] std::string to_text(const Summary& summary);
/// {"version":1, "iops", "bandwidth_bytes_per_s", "latency_us":{mean,p50,p90,p99,p99_9,max}, "cpu_us_per_io", "errors", …}
[[nodiscard]] std::string to_json(const Summary& summary);

}  // namespace rbt::tools
