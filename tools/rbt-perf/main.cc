// rbt-perf: load on a namespace, measured from the initiator library; --verify proves that what was written can be read.

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/sizes.h"
#include "tools/program/fabrics.h"
#include "tools/program/interrupt.h"
#include "tools/program/options.h"
#include "tools/rbt-perf/job.h"
#include "tools/rbt-perf/report.h"

namespace rbt::tools {
namespace {

constexpr std::string_view kUsage = R"(Usage: rbt-perf URI [options]

Keeps requests in flight on an NVMe namespace and says how many were served, how fast and at what cost.
URI: nvme+rdma://HOST[:4420]/NQN[/NSID] or nvme+shm:///NQN[/NSID][?socket=PATH]

  rbt-perf nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1 --rw randread --bs 4k --iodepth 32 --runtime 10
  rbt-perf nvme+shm:///nqn.2026-01.io.example:disk/1 --rw randwrite --verify

Everything but --rw read and randread without --verify OVERWRITES the namespace.
)";

struct Options {
  Uri uri;
  std::string pattern;
  JobOptions job;
  std::uint64_t request_bytes = 0;
  std::uint32_t jobs = 1;
  std::optional<Bytes> size;
  bool json = false;
  LogLevel log = LogLevel::warning;
};

po::options_description described() {
  po::options_description options("Options", 110, 60);
  options.add_options()("rw", po::value<std::string>()->default_value("randread")->value_name("PATTERN"),
                        "read, write, randread, randwrite or randrw (half and half)")(
      "bs", po::value<std::string>()->default_value("4k")->value_name("SIZE"),
      "bytes per request, whole blocks, to 2MiB")("iodepth",
                                                  po::value<std::string>()->default_value("32")->value_name("N"),
                                                  "requests in flight per job, 1 to 1023")(
      "numjobs", po::value<std::string>()->default_value("1")->value_name("N"),
      "threads, each with a queue pair and an equal part of the namespace, 1 to 64")(
      "runtime", po::value<std::string>()->default_value("10")->value_name("SECONDS"), "or a duration such as 500ms")(
      "size", po::value<std::string>()->value_name("SIZE"),
      "use only so much of the namespace, from its start (default: all; with --verify at most 1GiB)")(
      "verify", "write blocks that name their LBA and generation under a crc32c, and read all of them back")(
      "output,o", po::value<std::string>()->default_value("text")->value_name("FORMAT"), "text or json")(
      "seed", po::value<std::string>()->default_value("1")->value_name("N"), "of the random offsets")(
      "log-level", po::value<std::string>()->default_value("warning")->value_name("LEVEL"),
      "debug, info, warning, error or off")("version", "print the version")("help,h", "print this text");
  return options;
}

Result<Mix> parse_mix(const std::string& text) {
  if (text == "read") return Mix::read;
  if (text == "write") return Mix::write;
  if (text == "randread") return Mix::randread;
  if (text == "randwrite") return Mix::randwrite;
  if (text == "randrw") return Mix::randrw;
  return failure(ErrorKind::invalid_argument,
                 fmt::format("--rw {}: it is read, write, randread, randwrite or randrw", printable(text, 40)));
}

Result<Duration> parse_runtime(const std::string& text) {
  const bool seconds = !text.empty() && text.find_first_not_of("0123456789.") == std::string::npos;
  auto runtime = parse_duration(seconds ? text + "s" : text);
  if (!runtime) return failure(std::move(runtime.error()).within("--runtime"));
  if (*runtime <= Duration::zero() || *runtime > std::chrono::hours(24 * 7))
    return failure(ErrorKind::invalid_argument, fmt::format("--runtime {}: more than 0 and at most a week", text));
  return runtime;
}

Result<Options> parse_options(const po::variables_map& values) {
  Options options;
  if (!values.count("uri")) return failure(ErrorKind::invalid_argument, "a URI is missing");
  auto uri = Uri::parse(values["uri"].as<std::string>());
  if (!uri) return failure(std::move(uri.error()));
  options.uri = std::move(*uri);
  options.pattern = values["rw"].as<std::string>();
  auto mix = parse_mix(options.pattern);
  if (!mix) return failure(std::move(mix.error()));
  options.job.mix = *mix;
  auto bytes = parse_size(values["bs"].as<std::string>());
  if (!bytes) return failure(std::move(bytes.error()).within("--bs"));
  if (bytes->value() == 0 || bytes->value() > transport::BufferPool::kBlockMax)
    return failure(ErrorKind::invalid_argument, fmt::format("--bs {}: 512 bytes to 2 MiB", format_bytes(*bytes)));
  options.request_bytes = bytes->value();
  auto depth = parse_number("--iodepth", values["iodepth"].as<std::string>(), 1, 1023);
  if (!depth) return failure(std::move(depth.error()));
  options.job.depth = *depth;
  auto jobs = parse_number("--numjobs", values["numjobs"].as<std::string>(), 1, 64);
  if (!jobs) return failure(std::move(jobs.error()));
  options.jobs = *jobs;
  auto runtime = parse_runtime(values["runtime"].as<std::string>());
  if (!runtime) return failure(std::move(runtime.error()));
  options.job.runtime = *runtime;
  auto seed = parse_number("--seed", values["seed"].as<std::string>(), 0, ~std::uint32_t{0});
  if (!seed) return failure(std::move(seed.error()));
  options.job.seed = *seed;
  if (values.count("size")) {
    auto size = parse_size(values["size"].as<std::string>());
    if (!size) return failure(std::move(size.error()).within("--size"));
    options.size = *size;
  }
  options.job.verify = values.count("verify") != 0;
  const auto& output = values["output"].as<std::string>();
  if (output != "text" && output != "json")
    return failure(ErrorKind::invalid_argument, fmt::format("-o {}: it is text or json", printable(output, 40)));
  options.json = output == "json";
  auto log = parse_log_level(values["log-level"].as<std::string>());
  if (!log) return failure(std::move(log.error()));
  options.log = *log;
  return options;
}

// The part of `disk` that job number `index` works on: whole requests, equal for all.
Result<BlockRange> part_of(const initiator::Namespace& disk, const Options& options, std::uint32_t index) {
  Blocks used = disk.blocks;
  if (options.size) used = std::min(used, disk.block_shift.blocks(*options.size));
  if (options.job.verify && !options.size) used = std::min(used, disk.block_shift.blocks(Bytes(kGiB)));
  const std::uint64_t request = options.request_bytes >> disk.block_shift.value();
  const std::uint64_t places = used.value() / request / options.jobs;
  if (places == 0)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{} in use are too little for {} jobs with requests of {}",
                               format_bytes(disk.block_shift.bytes(used).value_or(Bytes(0))), options.jobs,
                               format_bytes(Bytes(options.request_bytes))));
  return BlockRange{Lba(index * places * request), Blocks(places * request)};
}

Result<JobResult> measure(initiator::Session& session, const initiator::Namespace& disk, const Options& options,
                          const Clock& clock, Logger& logger, const Interrupt& interrupt, Random& random) {
  if (!disk.block_shift.is_multiple(options.request_bytes))
    return failure(ErrorKind::invalid_argument, fmt::format("--bs {}: the namespace has blocks of {} bytes",
                                                            options.request_bytes, disk.block_size()));
  std::vector<JobOptions> jobs(options.jobs, options.job);
  const std::uint64_t run_id = random();
  for (std::uint32_t i = 0; i < options.jobs; ++i) {
    jobs[i].block = disk.block_shift.blocks(Bytes(options.request_bytes));
    auto part = part_of(disk, options, i);
    if (!part) return failure(std::move(part.error()));
    jobs[i].part = *part;
    jobs[i].run = run_id;
    jobs[i].seed = options.job.seed * 64 + i;
  }
  const auto run = [&](const JobOptions& job) -> Result<JobResult> {
    auto reactor = transport::Reactor::create(clock, logger);
    if (!reactor) return failure(std::move(reactor.error()));
    return run_job(session, disk, job, **reactor, interrupt);
  };
  std::vector<std::optional<Result<JobResult>>> results(options.jobs);
  std::vector<std::thread> threads;
  for (std::uint32_t i = 1; i < options.jobs; ++i)
    threads.emplace_back([&, i] { results[i] = run(jobs[i]); });
  results[0] = run(jobs[0]);
  for (auto& thread : threads)
    thread.join();
  JobResult total;
  for (auto& result : results) {
    if (!*result) return failure(std::move((*result).error()));
    add(total, **result);
  }
  return total;
}

int perform(const Options& options) {
  const SystemClock clock;
  const auto logger = make_stderr_logger(options.log);
  auto random = Random::from_entropy();
  const Interrupt interrupt;
  Fabrics fabrics(*logger, random);
  auto fabric = fabrics.open(options.uri.scheme);
  if (!fabric) return report("rbt-perf", fabric.error());
  initiator::SessionOptions session_options;
  session_options.io_queues = options.jobs;
  auto session = initiator::Session::connect({**fabric, clock, *logger, random}, options.uri, session_options);
  if (!session) return report("rbt-perf", session.error());
  auto disk = (*session)->find(options.uri.nsid);
  if (!disk) return report("rbt-perf", disk.error());
  auto total = measure(**session, **disk, options, clock, *logger, interrupt, random);
  if (!total) return report("rbt-perf", total.error());
  const Summary summary{options.uri.to_string(), options.pattern, options.request_bytes,
                        options.job.depth,       options.jobs,    std::move(*total)};
  fmt::print("{}", options.json ? to_json(summary) : to_text(summary));
  for (const auto& message : summary.total.messages)
    fmt::print(stderr, "rbt-perf: {}\n", message);
  if (interrupt.raised()) return kInterrupted;
  if (summary.total.errors == 0) return kSuccess;
  const bool mismatched = std::any_of(summary.total.messages.begin(), summary.total.messages.end(),
                                      [](const auto& m) { return m.starts_with("verify:"); });
  return mismatched ? kMismatch : kFailed;
}

int body(const std::vector<std::string>& words) {
  const auto visible = described();
  po::options_description all;
  all.add(visible).add_options()("uri", po::value<std::string>());
  po::positional_options_description positional;
  positional.add("uri", 1);
  auto values = parse(words, all, positional);
  if (!values)
    return report("rbt-perf", Error(ErrorKind::invalid_argument, values.error().message() + "; see rbt-perf --help"));
  if (values->count("help") || words.empty()) {
    fmt::print(words.empty() ? stderr : stdout, "{}\n{}", kUsage, describe(visible));
    return words.empty() ? ExitStatus::kUsage : kSuccess;
  }
  if (values->count("version")) {
    fmt::print("{}\n", version("rbt-perf"));
    return kSuccess;
  }
  auto options = parse_options(*values);
  if (!options)
    return report("rbt-perf", Error(options.error().kind(), options.error().message() + "\nsee rbt-perf --help"));
  return perform(*options);
}

}  // namespace
}  // namespace rbt::tools

int main(int argc, char** argv) {
  return rbt::tools::run(argc, argv, rbt::tools::body);
}
