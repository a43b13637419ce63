// rbt-connect: makes block devices of what NVMe-oF targets serve; finds, describes and copies it.

#include <fmt/format.h>
#include <sys/stat.h>

#include <optional>

#include "common/sizes.h"
#include "tools/program/fabrics.h"
#include "tools/program/interrupt.h"
#include "tools/program/options.h"
#include "tools/rbt-connect/copy.h"
#include "tools/rbt-connect/describe.h"
#include "tools/rbt-connect/doctor/doctor.h"
#include "tools/rbt-connect/map/options.h"
#include "tools/rbt-connect/map/verbs.h"
#include "tools/rbt-connect/volume.h"

namespace rbt::tools {
namespace {

constexpr const char* kName = "rbt-connect";

constexpr std::string_view kUsageText = R"(Usage: rbt-connect VERB [options]

)";

constexpr std::string_view kOtherVerbsText =
    R"(  discover URI     lists the subsystems that the target at URI offers to this host
  info URI         describes the subsystem of URI: controller and namespaces
  copy SRC DST     copies a disk: each a URI of a namespace, a file, a block device, or - (standard input or output)
  doctor           says what this machine can do for rbt, and what is in the way of the rest

URI: nvme+rdma://HOST[:4420][/NQN[/NSID]] or nvme+shm://[/NQN[/NSID]][?socket=PATH]. rbt-connect VERB --help says more of map to gc.

  rbt-connect discover nvme+rdma://10.0.0.1
  rbt-connect info nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk
  rbt-connect copy --verify disk.img nvme+shm:///nqn.2026-01.io.example:disk/1

)";

constexpr std::string_view kStatusText = R"(
Exit status: 0 done; 1 I/O or protocol error; 2 wrong usage; 3 nobody there, timed out or lost; 4 data is not what was
written; 5 not permitted; 6 in use; 130 interrupted.
)";

struct Options {
  initiator::SessionOptions session;
  CopyOptions copy;
  Format format = Format::table;
  std::optional<Duration> on_loss{};
  LogLevel log = LogLevel::warning;
};

// Everything a verb needs of the world.
struct World {
  const Options& options;
  const Clock& clock;
  Logger& logger;
  Random& random;
  Fabrics& fabrics;

  Result<initiator::Environment> environment(const Uri& uri) const {
    auto fabric = fabrics.open(uri.scheme);
    if (!fabric) return failure(std::move(fabric.error()));
    return initiator::Environment{**fabric, clock, logger, random};
  }
};

po::options_description described() {
  po::options_description options("Options", 110, 60);
  options.add_options()("output,o", po::value<std::string>()->default_value("table")->value_name("FORMAT"),
                        "table or json (discover, info, doctor)")(
      "verify", "copy: read everything back from DST and compare checksums")(
      "depth", po::value<std::string>()->default_value("8")->value_name("N"),
      "copy: transfers of 1 MiB in flight, 1 to 16")(
      "on-loss", po::value<std::string>()->default_value("hold")->value_name("WHAT"),
      "copy, when a target is gone: hold (wait for it), fail, or the seconds to wait before failing")(
      "hostnqn", po::value<std::string>()->value_name("NQN"), "who we say we are (default: made from the host ID)")(
      "hostid", po::value<std::string>()->value_name("UUID"), "our host ID (default: random)")(
      "secret-file", po::value<std::string>()->value_name("FILE|keyring:NAME"),
      "what we prove who we are by, if the target asks (DH-HMAC-CHAP)")(
      "ctrl-secret-file", po::value<std::string>()->value_name("FILE|keyring:NAME"),
      "what the subsystem has to prove itself by")(
      "timeout", po::value<std::string>()->default_value("10s")->value_name("DURATION"), "for connecting")(
      "log-level", po::value<std::string>()->default_value("warning")->value_name("LEVEL"),
      "debug, info, warning, error or off")("version", "print the version")("help,h", "print this text");
  return options;
}

Result<Options> parse_options(const po::variables_map& values) {
  Options options;
  const auto& output = values["output"].as<std::string>();
  if (output != "table" && output != "json")
    return failure(ErrorKind::invalid_argument, fmt::format("-o {}: it is table or json", printable(output, 40)));
  options.format = output == "json" ? Format::json : Format::table;
  options.copy.verify = values.count("verify") != 0;
  auto depth = parse_number("--depth", values["depth"].as<std::string>(), 1, 16);
  if (!depth) return failure(std::move(depth.error()));
  options.copy.depth = *depth;
  if (values.count("hostnqn")) {
    auto nqn = nvme::Nqn::parse(values["hostnqn"].as<std::string>());
    if (!nqn) return failure(std::move(nqn.error()).within("--hostnqn"));
    options.session.host.nqn = *nqn;
  }
  if (values.count("hostid")) {
    auto id = nvme::Uuid::parse(values["hostid"].as<std::string>());
    if (!id) return failure(std::move(id.error()).within("--hostid"));
    options.session.host.id = nvme::HostId(id->bytes());
  }
  map::MapOptions loss;  // says it in the same words
  if (auto fine = map::apply(loss, "on-loss", values["on-loss"].as<std::string>()); !fine)
    return failure(std::move(fine.error()));
  options.on_loss = loss.on_loss;
  for (const auto& [option, secret] : {std::pair("secret-file", &options.session.host.secret),
                                       std::pair("ctrl-secret-file", &options.session.host.controller_secret)}) {
    if (!values.count(option)) continue;
    auto loaded = auth::Secret::load(values[option].as<std::string>());
    if (!loaded) return failure(std::move(loaded.error()).within(fmt::format("--{}", option)));
    *secret = std::move(*loaded);
  }
  auto timeout = parse_duration(values["timeout"].as<std::string>());
  if (!timeout) return failure(std::move(timeout.error()).within("--timeout"));
  if (*timeout <= Duration::zero()) return failure(ErrorKind::invalid_argument, "--timeout: more than 0 is expected");
  options.session.connect_timeout = *timeout;
  auto log = parse_log_level(values["log-level"].as<std::string>());
  if (!log) return failure(std::move(log.error()));
  options.log = *log;
  return options;
}

Result<int> discover(const World& world, const std::string& where) {
  auto uri = Uri::parse(where);
  if (!uri) return failure(std::move(uri.error()));
  auto environment = world.environment(*uri);
  if (!environment) return failure(std::move(environment.error()));
  auto log = initiator::discover(
      *environment, *uri, {.host = world.options.session.host, .timeout = world.options.session.connect_timeout});
  if (!log) return failure(std::move(log.error()));
  fmt::print("{}", describe(*log, world.options.format));
  return kSuccess;
}

Result<int> info(const World& world, const std::string& where) {
  auto uri = Uri::parse(where);
  if (!uri) return failure(std::move(uri.error()));
  auto environment = world.environment(*uri);
  if (!environment) return failure(std::move(environment.error()));
  auto options = world.options.session;
  options.io_queues = 0;
  auto session = initiator::Session::connect(*environment, *uri, options);
  if (!session) return failure(std::move(session.error()));
  if (uri->nsid)
    if (auto disk = (*session)->find(uri->nsid); !disk) return failure(std::move(disk.error()));
  fmt::print("{}", describe(**session, world.options.format));
  return kSuccess;
}

Result<std::unique_ptr<Endpoint>> open_endpoint(const World& world, const std::string& where, bool source,
                                                transport::Reactor& reactor, const Interrupt& interrupt) {
  if (!where.starts_with("nvme+")) return source ? open_source(where, reactor) : open_destination(where, reactor);
  auto uri = Uri::parse(where);
  if (!uri) return failure(std::move(uri.error()));
  auto environment = world.environment(*uri);
  if (!environment) return failure(std::move(environment.error()));
  return open_volume(*environment, *uri, reactor,
                     {.host = world.options.session.host,
                      .connect_timeout = world.options.session.connect_timeout,
                      .on_loss = world.options.on_loss},
                     interrupt);
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat one {
  }, two{};
  return ::stat(a.c_str(), &one) == 0 && ::stat(b.c_str(), &two) == 0 && one.st_dev == two.st_dev &&
         one.st_ino == two.st_ino;
}

Result<int> copy_disk(const World& world, const std::string& from, const std::string& to, const Interrupt& interrupt) {
  if (from == to && from != "-") return failure(ErrorKind::invalid_argument, from + " cannot be copied onto itself");
  if (same_file(from, to))
    return failure(ErrorKind::invalid_argument, fmt::format("{} and {} are the same file", from, to));
  auto reactor = transport::Reactor::create(world.clock, world.logger);
  if (!reactor) return failure(std::move(reactor.error()));
  auto source = open_endpoint(world, from, true, **reactor, interrupt);
  if (!source) return failure(std::move(source.error()));
  auto destination = open_endpoint(world, to, false, **reactor, interrupt);
  if (!destination) return failure(std::move(destination.error()));
  auto done = copy(**source, **destination, world.options.copy, **reactor, interrupt);
  if (!done) return failure(std::move(done.error()));
  const double seconds = std::max(std::chrono::duration<double>(done->elapsed).count(), 1e-6);
  // On standard error: standard output may be the copy.
  fmt::print(
      stderr, "{} copied in {:.2f} s ({}/s): {} moved, {} holes and zeroes{}\n", format_bytes(Bytes(done->bytes)),
      seconds, format_bytes(Bytes(static_cast<std::uint64_t>(static_cast<double>(done->bytes) / seconds))),
      format_bytes(Bytes(done->transferred)), format_bytes(Bytes(done->zeroes)),
      world.options.copy.verify ? fmt::format(", {} read back and right", format_bytes(Bytes(done->verified))) : "");
  return kSuccess;
}

Result<int> perform(const World& world, const std::string& verb, const std::vector<std::string>& arguments,
                    const Interrupt& interrupt) {
  const auto expect = [&](std::size_t count, std::string_view form) -> Result<void> {
    if (arguments.size() == count) return {};
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}{}{}: {} argument{} given; see rbt-connect --help", verb, form.empty() ? "" : " ",
                               form, arguments.size(), arguments.size() == 1 ? " was" : "s were"));
  };
  if (verb == "discover" || verb == "info") {
    if (auto fine = expect(1, "URI"); !fine) return failure(std::move(fine.error()));
    return verb == "info" ? info(world, arguments[0]) : discover(world, arguments[0]);
  }
  if (verb == "copy") {
    if (auto fine = expect(2, "SRC DST"); !fine) return failure(std::move(fine.error()));
    return copy_disk(world, arguments[0], arguments[1], interrupt);
  }
  if (verb == "doctor") {
    if (auto fine = expect(0, ""); !fine) return failure(std::move(fine.error()));
    fmt::print("{}", doctor::describe(doctor::examine(doctor::this_machine()), world.options.format));
    return kSuccess;
  }
  return failure(
      ErrorKind::invalid_argument,
      map::is_verb(verb)
          ? fmt::format("'{}' comes first, its options behind it; see rbt-connect {} --help", verb, verb)
          : fmt::format("no verb '{}': there are map, unmap, ls, stats, recover, gc, discover, info, copy and "
                        "doctor; see rbt-connect --help",
                        printable(verb, 40)));
}

int body(const std::vector<std::string>& words) {
  if (!words.empty() && map::is_verb(words.front())) return map::run(words);
  const auto visible = described();
  po::options_description all;
  all.add(visible).add_options()("words", po::value<std::vector<std::string>>());
  po::positional_options_description positional;
  positional.add("words", -1);
  auto values = parse(words, all, positional);
  if (!values)
    return report(kName, Error(ErrorKind::invalid_argument, values.error().message() + "; see rbt-connect --help"));
  const bool nothing = !values->count("words") && !values->count("version");
  if (values->count("help") || nothing) {
    fmt::print(values->count("help") ? stdout : stderr, "{}{}{}{}{}", kUsageText, map::kVerbsText, kOtherVerbsText,
               describe(visible), kStatusText);
    return values->count("help") ? kSuccess : kUsage;
  }
  if (values->count("version")) {
    fmt::print("{}\n", version(kName));
    return kSuccess;
  }
  auto options = parse_options(*values);
  if (!options)
    return report(kName, Error(options.error().kind(), options.error().message() + "; see rbt-connect --help"));

  const SystemClock clock;
  const auto logger = make_stderr_logger(options->log);
  auto random = Random::from_entropy();
  Fabrics fabrics(*logger, random);
  const Interrupt interrupt;
  auto arguments = (*values)["words"].as<std::vector<std::string>>();
  const std::string verb = arguments.front();
  arguments.erase(arguments.begin());
  auto status = perform({*options, clock, *logger, random, fabrics}, verb, arguments, interrupt);
  if (status) return *status;
  const int code = report(kName, status.error());
  return interrupt.raised() ? kInterrupted : code;
}

}  // namespace
}  // namespace rbt::tools

int main(int argc, char** argv) {
  return rbt::tools::run(argc, argv, rbt::tools::body);
}
