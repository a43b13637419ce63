#include "tools/rbt-perf/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "common/sizes.h"

namespace rbt::tools {

namespace {

double seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

double per_io(double value, const JobResult& r) {
  return r.requests == 0 ? 0 : value / static_cast<double>(r.requests);
}

double iops(const JobResult& r) {
  return r.elapsed.count() == 0 ? 0 : static_cast<double>(r.requests) / seconds(r.elapsed);
}

}  // namespace

void add(JobResult& total, const JobResult& job) {
  total.latency.add(job.latency);
  total.requests += job.requests;
  total.reads += job.reads;
  total.errors += job.errors;
  total.verified += job.verified;
  total.elapsed = std::max(total.elapsed, job.elapsed);
  total.cpu += job.cpu;
  total.system_calls += job.system_calls;
  total.counters.commands += job.counters.commands;
  total.counters.bytes_read += job.counters.bytes_read;
  total.counters.bytes_written += job.counters.bytes_written;
  total.counters.bytes_bounced += job.counters.bytes_bounced;
  total.counters.transport.bytes_copied += job.counters.transport.bytes_copied;
  total.counters.transport.work_requests += job.counters.transport.work_requests;
  total.counters.transport.doorbells += job.counters.transport.doorbells;
  total.messages.insert(total.messages.end(), job.messages.begin(), job.messages.end());
}

std::string to_text(const Summary& s) {
  const JobResult& r = s.total;
  std::string text = fmt::format(
      "{}: {} x {}, depth {}, {} job{}, {:.1f} s\n"
      "  {:>12.0f} IOPS   {}/s\n"
      "  latency us: mean {:.1f}, p50 {:.1f}, p90 {:.1f}, p99 {:.1f}, p99.9 {:.1f}, max {:.1f}\n"
      "  CPU {:.2f} us per I/O, {:.2f} system calls per I/O (this side)\n",
      s.uri, s.pattern, format_bytes(Bytes(s.request_bytes)), s.depth, s.jobs, s.jobs == 1 ? "" : "s",
      seconds(r.elapsed), iops(r),
      format_bytes(Bytes(static_cast<std::uint64_t>(iops(r) * static_cast<double>(s.request_bytes)))),
      r.latency.mean_us(), r.latency.quantile_us(0.5), r.latency.quantile_us(0.9), r.latency.quantile_us(0.99),
      r.latency.quantile_us(0.999), r.latency.max_us(), per_io(seconds(r.cpu) * 1e6, r),
      per_io(static_cast<double>(r.system_calls), r));
  if (r.verified != 0) text += fmt::format("  {} blocks read back and right\n", r.verified);
  if (r.errors != 0) text += fmt::format("  {} ERRORS\n", r.errors);
  return text;
}

std::string to_json(const Summary& s) {
  const JobResult& r = s.total;
  nlohmann::ordered_json json;
  json["version"] = 1;
  json["uri"] = s.uri;
  json["rw"] = s.pattern;
  json["bs"] = s.request_bytes;
  json["iodepth"] = s.depth;
  json["numjobs"] = s.jobs;
  json["runtime_s"] = seconds(r.elapsed);
  json["requests"] = r.requests;
  json["iops"] = iops(r);
  json["bandwidth_bytes_per_s"] = iops(r) * static_cast<double>(s.request_bytes);
  json["latency_us"] = {{"mean", r.latency.mean_us()},           {"p50", r.latency.quantile_us(0.5)},
                        {"p90", r.latency.quantile_us(0.9)},     {"p99", r.latency.quantile_us(0.99)},
                        {"p99_9", r.latency.quantile_us(0.999)}, {"max", r.latency.max_us()}};
  json["cpu_us_per_io"] = per_io(seconds(r.cpu) * 1e6, r);
  json["system_calls_per_io"] = per_io(static_cast<double>(r.system_calls), r);
  // All phases; copied by our own code: data that went by way of a buffer, and what the fabric copies.
  json["commands"] = r.counters.commands;
  json["bytes_read"] = r.counters.bytes_read;
  json["bytes_written"] = r.counters.bytes_written;
  json["bytes_copied"] = r.counters.bytes_bounced + r.counters.transport.bytes_copied;
  json["blocks_verified"] = r.verified;
  json["errors"] = r.errors;
  json["messages"] = r.messages;
  return json.dump(2) + "\n";
}

}  // namespace rbt::tools
