// rbt-target: serves disks over NVMe/RDMA and over shared memory.

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <map>
#include <string>

#include "common/sizes.h"
#include "target/store/shared_arena.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tools/program/fabrics.h"
#include "tools/program/options.h"
#include "tools/rbt-target/configuration.h"
#include "tools/rbt-target/convert.h"
#include "tools/rbt-target/explain.h"
#include "transport/coherence/monitor.h"

namespace rbt::tools {
namespace {

constexpr const char* kName = "rbt-target";
// SIGTERM: how long commands in flight may take before their connections are closed.
constexpr Duration kDrain = std::chrono::seconds(10);

constexpr std::string_view kUsageText = R"(Usage: rbt-target --listen URI... --subsystem NQN --store SPEC... [options]
       rbt-target --config FILE.toml [options]
       rbt-target --explain SPEC...
       rbt-target --convert-image FROM TO --to shadow|raw [--block N] [--overwrite]

Serves disks to NVMe-oF hosts until SIGTERM. Prints one line with the word `ready` once it can be connected to. SIGUSR1 makes
it log what it and each namespace have done so far.

  rbt-target --listen nvme+rdma://10.0.0.1 --subsystem nqn.2026-01.io.example:disk --store file:/srv/disk.img
  rbt-target --listen nvme+shm:// --subsystem nqn.2026-01.io.example:disk --store ram:size=1GiB
  rbt-target --convert-image disk.img /dev/shm/disk.rbt --to shadow --block 4096

)";

constexpr std::string_view kStatusText = R"(
Exit status: 0 after SIGTERM or SIGINT; 1 the machine or a store failed; 2 wrong usage or configuration; 3 no such device,
file or address; 5 not permitted; 6 the address, file or device is in use.
)";

po::options_description described() {
  po::options_description options("Options", 110, 60);
  const auto many = [](const char* value_name) {
    return po::value<std::vector<std::string>>()->composing()->value_name(value_name);
  };
  options.add_options()("listen", many("URI"),
                        "nvme+rdma://ADDRESS[:4420] or nvme+shm://[?socket=PATH[&group=GROUP]]; may be repeated")(
      "subsystem", many("NQN"), "a subsystem; the options below are of the last one")(
      "store", many("SPEC"), "its next namespace; may be repeated")(
      "reservations", many("FILE"),
      "keeps the reservations of the last store through a power loss, if hosts ask for it")(
      "allow-host", many("NQN"), "a host that may connect; may be repeated; none: any host")(
      "host-id", many("UUID"), "the last allowed host's identifier, and no other")(
      "host-namespaces", many("NSID[,NSID...]"), "the namespaces that it sees (none: not one); default: all")(
      "host-secret-file", many("FILE|keyring:NAME"), "what it proves itself by, on every queue (DH-HMAC-CHAP)")(
      "host-ctrl-secret-file", many("FILE|keyring:NAME"), "what this subsystem proves itself by to hosts that ask")(
      "host-hash", many("NAME"), "sha256, sha384 or sha512, and no other; default: the best it has")(
      "host-dh-group", many("NAME"),
      "null, ffdhe2048, 3072, 4096, 6144 or 8192, and no other; default: ffdhe3072, else what it has")(
      "serial", many("TEXT"), "its serial number (default: random)")("model", many("TEXT"), "its model (default: rbt)")(
      "reactors", po::value<std::string>()->value_name("N"), "threads that serve, 1 to 256 (default: 1)")(
      "config", po::value<std::string>()->value_name("FILE"),
      "read all this from a TOML file; other options add to it")(
      "explain", many("SPEC"), "say how a store would be served, and why not better; serve nothing")(
      "convert-image", po::value<std::vector<std::string>>()->multitoken()->value_name("FROM TO"),
      "make an image for map:...,atomic=shadow out of a plain one, or the other way; serve nothing")(
      "to", po::value<std::string>()->value_name("FORM"), "--convert-image: shadow or raw")(
      "block", po::value<std::string>()->value_name("N"),
      "--convert-image: the new shadow image's block size (default: 512)")(
      "overwrite", "--convert-image: TO is a devdax device, and what it holds may be lost")(
      "log-level", po::value<std::string>()->value_name("LEVEL"), "debug, info (default), warning, error or off")(
      "version", "print the version")("help,h", "print this text");
  return options;
}

constexpr std::string_view kOrdered[] = {"listen",
                                         "subsystem",
                                         "store",
                                         "reservations",
                                         "allow-host",
                                         "host-id",
                                         "host-namespaces",
                                         "host-secret-file",
                                         "host-ctrl-secret-file",
                                         "host-hash",
                                         "host-dh-group",
                                         "serial",
                                         "model"};

// The words of the command line in their order, which po::variables_map forgets.
Result<std::vector<OrderedOption>> ordered(const std::vector<std::string>& words,
                                           const po::options_description& options) {
  try {
    std::vector<OrderedOption> result;
    const auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
    for (const auto& option : po::command_line_parser(words).options(options).style(style).run().options)
      for (const auto& value : option.value)
        for (const auto name : kOrdered)
          if (option.string_key == name) result.push_back({std::string(name), value});
    return result;
  } catch (const po::error& error) {
    return failure(ErrorKind::invalid_argument, error.what());
  }
}

Result<Configuration> configure(const std::vector<std::string>& words, const po::variables_map& values,
                                const po::options_description& options) {
  Configuration configuration;
  if (values.count("config")) {
    auto read = read_configuration(values["config"].as<std::string>());
    if (!read) return read;
    configuration = std::move(*read);
  }
  auto order = ordered(words, options);
  if (!order) return failure(std::move(order.error()));
  if (auto applied = add_options(configuration, *order); !applied) return failure(std::move(applied.error()));
  if (values.count("reactors")) {
    auto reactors = parse_number("--reactors", values["reactors"].as<std::string>(), 1, 256);
    if (!reactors) return failure(std::move(reactors.error()));
    configuration.reactors = *reactors;
  }
  if (values.count("log-level")) {
    auto level = parse_log_level(values["log-level"].as<std::string>());
    if (!level) return failure(std::move(level.error()));
    configuration.log = *level;
  }
  if (auto fine = validate(configuration); !fine) return failure(std::move(fine.error()));
  return configuration;
}

Result<void> add_subsystems(target::Target& target, const Configuration& configuration,
                            const target::StoreEnvironment& environment) {
  for (const auto& subsystem : configuration.subsystems) {
    auto added = target.add_subsystem(subsystem.nqn, {.allow_any_host = subsystem.allowed_hosts.empty(),
                                                      .allowed_hosts = subsystem.allowed_hosts,
                                                      .serial = subsystem.serial,
                                                      .model = subsystem.model});
    if (!added) return added;
    for (const auto& disk : subsystem.namespaces) {
      auto store = target::make_store(disk.store, environment);
      if (!store) return failure(std::move(store.error()));
      target::NamespaceOptions options(disk.nsid);
      options.reservations = disk.reservations;
      auto nsid = target.add_namespace(subsystem.nqn, std::move(*store), options);
      if (!nsid) return failure(std::move(nsid.error()).within(disk.store));
    }
  }
  return {};
}

Result<std::string> listen_everywhere(target::Target& target, const Configuration& configuration, Fabrics& fabrics,
                                      Logger& logger) {
  std::string addresses;
  for (const auto& uri : configuration.listen) {
    auto fabric = fabrics.open(uri.scheme);
    if (!fabric) return failure(std::move(fabric.error()));
    auto address = target.listen(**fabric, uri);
    if (!address) return failure(std::move(address.error()));
    addresses += (addresses.empty() ? "" : " ") + *address;
    if (uri.scheme != Uri::Scheme::rdma) continue;
    for (const auto& subsystem : configuration.subsystems)
      if (subsystem.allowed_hosts.empty())
        logger.warning("{}: any host that reaches {} may connect; name those that may with --allow-host",
                       subsystem.nqn.text(), *address);
  }
  return addresses;
}

// Most stores have descriptors of their own: what the machine allows us is ours to use. Returns what that is.
rlim_t raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  limit.rlim_cur = limit.rlim_max;
  static_cast<void>(::setrlimit(RLIMIT_NOFILE, &limit));  // up to what is ours anyway
  return limit.rlim_max;
}

// Too many namespaces for the limit fail in many words and places: that no descriptor is left is what they have in common.
Error with_descriptor_limit(Error error, rlim_t limit) {
  if (const int probe = ::dup(STDERR_FILENO); probe >= 0) {
    ::close(probe);
    return error;
  }
  return Error(error.kind(), fmt::format("{}; all {} file descriptors are in use, and most namespaces need one: "
                                         "raise the hard limit (`ulimit -Hn`, LimitNOFILE= of the service)",
                                         error.message(), limit));
}

// SIGTERM, SIGINT, SIGUSR1: as a descriptor, blocked in every thread before the first one starts.
Result<int> signals_as_descriptor() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1})
    sigaddset(&set, signal);
  if (const int error = ::pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0)
    return errno_failure(error, "blocking signals");
  ::signal(SIGPIPE, SIG_IGN);  // who reads our standard output is not the disk's business
  const int fd = ::signalfd(-1, &set, SFD_CLOEXEC);
  if (fd < 0) return errno_failure(errno, "signalfd");
  return fd;
}

int wait_for_signal(int fd) {
  signalfd_siginfo info{};
  while (::read(fd, &info, sizeof info) < 0 && errno == EINTR) {
  }
  return static_cast<int>(info.ssi_signo);
}

// What all namespaces together have moved, and how often our own code has copied it on the way.
std::string describe_totals(const target::TargetStatistics& statistics) {
  std::uint64_t served = 0;
  std::uint64_t copied = 0;
  std::uint64_t cut_off = 0;
  std::map<std::string, std::uint64_t> by_fabrics;
  for (const auto& ns : statistics.namespaces)
    served += ns.bytes_read + ns.bytes_written;
  for (const auto& reactor : statistics.reactors) {
    copied += reactor.bytes_copied;
    cut_off += reactor.writes_cut_off;
    for (const auto& group : reactor.groups)
      by_fabrics[group.fabric] += group.counters.bytes_copied;
  }
  std::string text = fmt::format("{} bytes served; copied: {} by commands and stores", served, copied);
  for (const auto& [fabric, bytes] : by_fabrics)
    text += fmt::format(", {} by {}", bytes, fabric);
  return text +
         fmt::format("; {} connections; {} writes cut off while their data came", statistics.connections(), cut_off);
}

// SIGUSR1: what has been done so far.
void log_statistics(const target::Target& target, Logger& logger) {
  const auto statistics = target.statistics();
  logger.info("{}", describe_totals(statistics));
  for (const auto& ns : statistics.namespaces) {
    logger.info("{} nsid {} '{}': {} reads of {}, {} writes of {}, {} others, {} errors", ns.subsystem.text(),
                ns.nsid.value(), ns.store, ns.reads, format_bytes(Bytes(ns.bytes_read)), ns.writes,
                format_bytes(Bytes(ns.bytes_written)), ns.other, ns.errors);
    for (const std::string& line : ns.report)
      logger.info("store '{}': {}", ns.store, line);
  }
}

Result<void> serve(const Configuration& configuration, Logger& logger) {
  auto signals = signals_as_descriptor();
  if (!signals) return failure(std::move(signals.error()));
  const rlim_t descriptors = raise_descriptor_limit();
  const SystemClock clock;
  auto random = Random::from_entropy();
  // Watches what lies under registered memory; stores outlive neither it nor what it needs.
  auto monitor = transport::coherence::Monitor::start(clock, logger);
  if (!monitor) logger.warning("{}: files in memory are copied", monitor.error().message());
  target::SharedArena arena;
  Fabrics fabrics(logger, random);
  auto target = target::Target::open({.clock = clock,
                                      .logger = logger,
                                      .random = random,
                                      .reactors = configuration.reactors,
                                      .limits = configuration.limits});
  if (!target) return failure(std::move(target.error()));
  if (auto added = add_subsystems(**target, configuration,
                                  {.clock = clock,
                                   .random = random,
                                   .logger = logger,
                                   .monitor = monitor ? monitor->get() : nullptr,
                                   .arena = &arena});
      !added)
    return failure(with_descriptor_limit(std::move(added.error()), descriptors));
  auto addresses = listen_everywhere(**target, configuration, fabrics, logger);
  if (!addresses) return failure(std::move(addresses.error()));
  if (auto started = (*target)->start(); !started) return started;
  fmt::print("{}: ready: {}\n", kName, *addresses);
  std::fflush(stdout);
  ::sd_notify(0, "READY=1");

  while (wait_for_signal(*signals) == SIGUSR1)
    log_statistics(**target, logger);
  ::sd_notify(0, "STOPPING=1");
  logger.info("draining: no new connections; commands in flight have {} s", kDrain / std::chrono::seconds(1));
  (*target)->drain(kDrain);
  const Instant deadline = clock.now() + kDrain + std::chrono::seconds(1);
  while (!(*target)->drained() && clock.now() < deadline)
    ::usleep(10'000);
  (*target)->stop();
  ::close(*signals);
  return {};
}

Result<target::ConvertOptions> read_convert(const po::variables_map& values) {
  const auto& paths = values["convert-image"].as<std::vector<std::string>>();
  const std::string form = values.count("to") ? values["to"].as<std::string>() : "";
  if (paths.size() != 2)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("--convert-image: two paths are expected, FROM and TO, and {} are given", paths.size()));
  if (form != "shadow" && form != "raw")
    return failure(ErrorKind::invalid_argument,
                   fmt::format("--convert-image needs --to shadow or --to raw{}",
                               form.empty() ? "" : fmt::format(", not '{}'", printable(form, 40))));
  target::ConvertOptions options{.from = paths[0],
                                 .to = paths[1],
                                 .form = form == "raw" ? target::ImageForm::raw : target::ImageForm::shadow,
                                 .overwrite = values.count("overwrite") != 0};
  if (values.count("block") == 0) return options;
  const auto& text = values["block"].as<std::string>();
  const auto size = parse_size(text);
  options.block_shift = size ? BlockShift::of(size->value()) : std::nullopt;
  if (!options.block_shift || form == "raw")
    return failure(ErrorKind::invalid_argument,
                   form == "raw" ? "--block: a plain image has no block size of its own: leave it out"
                                 : fmt::format("--block {}: 512, 1024, 2048 or 4096 is expected", printable(text, 40)));
  return options;
}

int body(const std::vector<std::string>& words) {
  const auto options = described();
  auto values = parse(words, options, {});
  if (!values)
    return report(kName, Error(ErrorKind::invalid_argument, values.error().message() + "; see rbt-target --help"));
  if (values->count("help") || words.empty()) {
    fmt::print(words.empty() ? stderr : stdout, "{}{}\nStores (SPEC):\n{}{}", kUsageText, describe(options),
               target::store_spec_help(), kStatusText);
    return words.empty() ? kUsage : kSuccess;
  }
  if (values->count("version")) {
    fmt::print("{}\n", version(kName));
    return kSuccess;
  }
  if (values->count("explain")) {
    const auto explained = explain((*values)["explain"].as<std::vector<std::string>>());
    return explained ? kSuccess : report(kName, explained.error());
  }
  if (values->count("convert-image")) {
    const auto convert_options = read_convert(*values);
    if (!convert_options) return report(kName, convert_options.error());
    const auto converted = convert(*convert_options);
    return converted ? kSuccess : report(kName, converted.error());
  }
  auto configuration = configure(words, *values, options);
  if (!configuration)
    return report(kName,
                  Error(configuration.error().kind(), configuration.error().message() + "\nsee rbt-target --help"));
  const auto logger = make_stderr_logger(configuration->log.value_or(LogLevel::info));
  auto served = serve(*configuration, *logger);
  return served ? kSuccess : report(kName, served.error());
}

}  // namespace
}  // namespace rbt::tools

int main(int argc, char** argv) {
  return rbt::tools::run(argc, argv, rbt::tools::body);
}
