#include "tools/rbt-connect/map/verbs.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/sizes.h"
#include "tools/program/options.h"
#include "tools/rbt-connect/map/listing.h"
#include "tools/rbt-connect/map/rbttab.h"
#include "tools/rbt-connect/map/remove.h"
#include "tools/rbt-connect/map/start.h"

namespace rbt::tools::map {

const std::string_view kVerbsText =
    R"(  map URI [URI]    makes a block device of a namespace and prints its path; several URIs: paths to the same one
  map NAME         the same, as /etc/rbt/rbttab says
  unmap NAME       takes it away again, if nobody uses it (NAME or the device)
  ls               lists what is mapped (also: list, showmapped)
  stats NAME       what a volume has done so far, and how fast
  recover NAME     goes on with the device of a process that has ended
  gc               clears up after processes that have ended
)";

namespace {

constexpr const char* kName = "rbt-connect";

using Words = std::vector<std::string>;

struct Call {
  const Words& words;               // of the command line
  const Words& arguments;           // those that belong to no option
  const po::variables_map& values;  // of the options

  [[nodiscard]] bool has(const char* option) const { return values.count(option) != 0; }
  [[nodiscard]] std::string text(const char* option) const { return values[option].as<std::string>(); }
};

struct Verb {
  std::string_view name;
  std::string_view form;  // behind the name
  std::string_view purpose;
  std::size_t fewest, most;  // arguments
  void (*describe)(po::options_description&);
  Result<int> (*perform)(const World&, const Call&);
};

po::typed_value<std::string>* value(const char* name) {
  return po::value<std::string>()->value_name(name);
}

Result<Format> format_of(const Call& call) {
  const std::string output = call.text("output");
  if (output == "table") return Format::table;
  if (output == "json") return Format::json;
  return failure(ErrorKind::invalid_argument, fmt::format("-o {}: it is table or json", printable(output, 40)));
}

Result<Start> start_of(const Call& call) {
  Start start{.words = call.words, .foreground = call.has("foreground")};
  if (!call.has("detached")) return start;
  auto fd = parse_number("--detached", call.text("detached"), 3, 1 << 20);
  if (!fd) return failure(std::move(fd.error()));
  start.detached = static_cast<int>(*fd);
  return start;
}

// ---- map

void describe_map(po::options_description& options) {
  options.add_options()("as", value("NAME"), "the volume's name (default: made from the URI)");
  for (const Key& key : keys())
    if (*key.value == '\0')
      options.add_options()(key.name, key.purpose);
    else
      options.add_options()(key.name, value(key.value), key.purpose);
  options.add_options()("foreground", "stay: this is the volume's process, until it is unmapped or told to end");
}

bool is_uri(std::string_view word) {
  return word.find("://") != std::string_view::npos;
}

// A name is looked up in rbttab, which says everything else, too.
Result<MapOptions> named_options(const Call& call) {
  if (call.arguments.size() != 1)
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no URI, so it is a name in {}: one at a time",
                                                            printable(call.arguments[0], 80), rbttab_path().string()));
  for (const Key& key : keys())
    if (call.has(key.name))
      return failure(ErrorKind::invalid_argument,
                     fmt::format("--{}: what '{}' is mapped with stands in {}", key.name,
                                 printable(call.arguments[0], 80), rbttab_path().string()));
  if (call.has("as"))
    return failure(ErrorKind::invalid_argument,
                   fmt::format("--as: '{}' has its name already", printable(call.arguments[0], 80)));
  return find_in_rbttab(rbttab_path(), call.arguments[0]);
}

Result<MapOptions> given_options(const Call& call) {
  MapOptions options;
  for (const std::string& word : call.arguments) {
    auto uri = parse_volume_uri(word);
    if (!uri) return failure(std::move(uri.error()));
    options.uris.push_back(std::move(*uri));
  }
  if (call.has("as")) {
    options.name = call.text("as");
    if (auto fine = check_name(options.name); !fine) return failure(std::move(fine.error()).within("--as"));
  }
  for (const Key& key : keys())
    if (call.has(key.name))
      if (auto applied = apply(options, key.name, *key.value == '\0' ? "" : call.text(key.name)); !applied)
        return failure(std::move(applied.error()));
  return options;
}

Result<int> perform_map(const World& world, const Call& call) {
  auto start = start_of(call);
  if (!start) return failure(std::move(start.error()));
  const bool named = !is_uri(call.arguments.front());
  auto options = named ? named_options(call) : given_options(call);
  if (!options) return failure(std::move(options.error()));
  if (auto fine = check_paths(options->uris); !fine) return failure(std::move(fine.error()));
  return map_volume(world, RunFolder::chosen(), std::move(*options), named, *start);
}

// ---- the others

void describe_unmap(po::options_description& options) {
  options.add_options()("force",
                        "whoever uses it: requests that are with it fail; within 2 s, whatever its process does")(
      "wait", "until nobody uses it any more");
}

Result<int> perform_unmap(const World& world, const Call& call) {
  const RunFolder folder = RunFolder::chosen();
  auto name = resolve(folder, call.arguments.front());
  if (!name) return failure(std::move(name.error()));
  auto done = unmap(world, folder, *name, {.force = call.has("force"), .wait = call.has("wait")});
  if (!done) return failure(std::move(done.error()));
  return kSuccess;
}

void describe_output(po::options_description& options) {
  options.add_options()("output,o", po::value<std::string>()->default_value("table")->value_name("FORMAT"),
                        "table or json");
}

Result<int> perform_ls(const World& world, const Call& call) {
  auto format = format_of(call);
  if (!format) return failure(std::move(format.error()));
  Look found = look(RunFolder::chosen(), world.clock);
  fmt::print("{}", describe(found.rows, *format));
  int status = kSuccess;
  for (const Error& each : found.errors)
    status = report(kName, each);
  return status;
}

Result<int> perform_stats(const World& world, const Call& call) {
  auto format = format_of(call);
  if (!format) return failure(std::move(format.error()));
  const RunFolder folder = RunFolder::chosen();
  auto name = resolve(folder, call.arguments.front());
  if (!name) return failure(std::move(name.error()));
  auto row = look_at(folder, world.clock, *name);
  if (!row) return failure(std::move(row.error()));
  fmt::print("{}", describe_statistics(*row, *format));
  return kSuccess;
}

void describe_recover(po::options_description& options) {
  options.add_options()("all", "every volume whose process has ended")(
      "accept-loss", "also if the target has been restarted since, and may have forgotten what was not flushed")(
      "foreground", "stay: this is the volume's process");
}

Result<int> perform_recover(const World& world, const Call& call) {
  const auto accept = call.has("accept-loss") ? initiator::AcceptLoss::yes : initiator::AcceptLoss::no;
  auto start = start_of(call);
  if (!start) return failure(std::move(start.error()));
  const RunFolder folder = RunFolder::chosen();
  if (call.has("all") != call.arguments.empty())
    return failure(ErrorKind::invalid_argument, "recover NAME, or recover --all");
  if (call.has("all")) return recover_all(folder, accept, *start);
  auto name = resolve(folder, call.arguments.front());
  if (!name) return failure(std::move(name.error()));
  return recover(world, folder, *name, accept, *start);
}

void describe_nothing(po::options_description& /*options*/) {}

Result<int> perform_gc(const World& world, const Call& /*call*/) {
  return collect(world, RunFolder::chosen());
}

// For udev's rule: what it makes links of. Silent about devices that are not ours.
Result<int> perform_udev_name(const World& /*world*/, const Call& call) {
  const RunFolder folder = RunFolder::chosen();
  const std::string device = "/dev/" + call.arguments.front();
  for (const std::string& name : folder.names()) {
    const auto state = folder.read(name);
    if (!state || state->device != device) continue;
    fmt::print("RBT_NAME={}\n", state->name);
    if (!state->uuid.empty()) fmt::print("RBT_UUID={}\n", state->uuid);
    return kSuccess;
  }
  return kUnreachable;
}

constexpr std::size_t kMany = 16;

const std::vector<Verb>& verbs() {
  static const std::vector<Verb> all{
      {"map", "URI [URI...] | NAME", "Makes a block device of a namespace and prints its path once it is usable.", 1,
       kMany, describe_map, perform_map},
      {"unmap", "NAME|DEVICE", "Takes a device away again; refuses while somebody uses it, and says who.", 1, 1,
       describe_unmap, perform_unmap},
      {"ls", "", "Lists what is mapped.", 0, 0, describe_output, perform_ls},
      {"list", "", "Lists what is mapped.", 0, 0, describe_output, perform_ls},
      {"showmapped", "", "Lists what is mapped.", 0, 0, describe_output, perform_ls},
      {"stats", "NAME|DEVICE", "Says what a volume has done so far, how fast, and what has happened to its path.", 1, 1,
       describe_output, perform_stats},
      {"recover", "NAME|--all",
       "Goes on with the device of a process that has ended: requests that wait in it are carried out.", 0, 1,
       describe_recover, perform_recover},
      {"gc", "", "Clears up what processes that have ended left: files, and devices that nobody uses.", 0, 0,
       describe_nothing, perform_gc},
      {"udev-name", "KERNEL_NAME", "For udev's rule.", 1, 1, describe_nothing, perform_udev_name},
  };
  return all;
}

const Verb* find(std::string_view word) {
  const auto at = std::find_if(verbs().begin(), verbs().end(), [&](const Verb& each) { return each.name == word; });
  return at == verbs().end() ? nullptr : &*at;
}

std::string form_of(const Verb& verb) {
  return fmt::format("{}{}{}", verb.name, verb.form.empty() ? "" : " ", verb.form);
}

}  // namespace

bool is_verb(std::string_view word) {
  return find(word) != nullptr;
}

int run(const std::vector<std::string>& words) {
  const Verb& verb = *find(words.front());
  po::options_description visible("Options", 110, 60);
  verb.describe(visible);
  // What a volume's process has to say is for a journal: that a path is back, for instance.
  const char* const level_name = verb.name == "map" || verb.name == "recover" ? "info" : "warning";
  visible.add_options()("log-level", po::value<std::string>()->default_value(level_name)->value_name("LEVEL"),
                        "debug, info, warning, error or off")("help,h", "print this text");
  po::options_description all;
  all.add(visible).add_options()("words", po::value<Words>())("detached", po::value<std::string>());
  po::positional_options_description positional;
  positional.add("words", -1);
  const auto wrong = [&](const Error& error) {
    return report(kName, Error(error.kind(), fmt::format("{}; see {} {} --help", error.message(), kName, verb.name)));
  };
  auto values = parse({words.begin() + 1, words.end()}, all, positional);
  if (!values) return wrong(values.error());
  if (values->count("help")) {
    fmt::print("Usage: {} {} [options]\n\n{}\n\n{}", kName, form_of(verb), verb.purpose, tools::describe(visible));
    return kSuccess;
  }
  const Words arguments = values->count("words") ? (*values)["words"].as<Words>() : Words();
  if (arguments.size() < verb.fewest || arguments.size() > verb.most)
    return wrong(
        Error(ErrorKind::invalid_argument, fmt::format("{}: {} argument{} given", form_of(verb), arguments.size(),
                                                       arguments.size() == 1 ? " was" : "s were")));
  auto level = parse_log_level((*values)["log-level"].as<std::string>());
  if (!level) return wrong(level.error());

  const SystemClock clock;
  const auto logger = make_stderr_logger(*level);
  auto random = Random::from_entropy();
  Fabrics fabrics(*logger, random);
  auto status = verb.perform({clock, *logger, random, fabrics}, {words, arguments, *values});
  if (!status)
    return status.error().kind() == ErrorKind::invalid_argument ? wrong(status.error()) : report(kName, status.error());
  return *status;
}

}  // namespace rbt::tools::map
