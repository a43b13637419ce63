#include "tools/rbt-target/configuration.h"

#include <fmt/format.h>

#include <toml++/toml.h>
#include <algorithm>
#include <cerrno>
#include <fstream>
#include <initializer_list>
#include <set>
#include <sstream>

#include "common/auth/secret.h"
#include "common/nvme/authentication.h"
#include "common/sizes.h"
#include "tools/program/options.h"

namespace rbt::tools {

namespace {

constexpr std::uint32_t kNsidMax = 4096;

Result<Uri> parse_listen(const std::string& text) {
  auto uri = Uri::parse(text);
  if (!uri) return failure(std::move(uri.error()));
  if (uri->nqn || uri->nsid)
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("{}: an address to listen on has no subsystem: every listener serves all of them", text));
  return uri;
}

// The keys of one TOML table, read one by one; what nobody asked for is an error.
class Keys {
 public:
  Keys(const std::string& path, const toml::table& table, std::string where,
       std::initializer_list<std::string_view> allowed)
      : path_(path), table_(table), where_(std::move(where)) {
    for (const auto& [key, node] : table_) {
      if (std::find(allowed.begin(), allowed.end(), key.str()) != allowed.end()) continue;
      std::string list;
      for (const auto word : allowed)
        list += fmt::format("{}{}", list.empty() ? "" : ", ", word);
      complain(node, fmt::format("unknown key '{}'{}; there are {}", printable(key.str(), 60), where_, list));
    }
  }

  template <typename Read>
  void string(std::string_view key, Read read) {
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return;
    if (!node->is_string()) return complain(*node, fmt::format("{}{} must be a string", key, where_));
    use(*node, key, read(**node->as_string()));
  }

  /// A string or an array of strings.
  template <typename Read>
  void strings(std::string_view key, Read read) {
    const toml::node* const node = table_.get(key);
    if (node == nullptr || node->is_string()) return string(key, read);
    const toml::array* const array = node->as_array();
    if (array == nullptr)
      return complain(*node, fmt::format("{}{} must be a string or an array of strings", key, where_));
    for (const auto& element : *array) {
      if (!element.is_string()) return complain(element, fmt::format("{}{} must hold strings", key, where_));
      use(element, key, read(**element.as_string()));
    }
  }

  /// An array of whole numbers.
  template <typename Read>
  void numbers(std::string_view key, std::int64_t low, std::int64_t high, Read read) {
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return;
    const toml::array* const array = node->as_array();
    if (array == nullptr) return complain(*node, fmt::format("{}{} must be an array of whole numbers", key, where_));
    std::vector<std::int64_t> values;
    for (const auto& element : *array) {
      const auto value = element.value_exact<std::int64_t>();
      if (!value || *value < low || *value > high)
        return complain(element, fmt::format("{}{} must hold whole numbers from {} to {}", key, where_, low, high));
      values.push_back(*value);
    }
    read(values);
  }

  template <typename Number>
  void number(std::string_view key, Number& out, std::int64_t low, std::int64_t high) {
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<std::int64_t>();
    if (!value || *value < low || *value > high)
      return complain(*node, fmt::format("{}{} must be a whole number from {} to {}", key, where_, low, high));
    out = static_cast<Number>(*value);
  }

  /// A table ([key]).
  template <typename Read>
  void table(std::string_view key, Read read) {
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return;
    if (!node->is_table()) return complain(*node, fmt::format("{} must be written as [{}]", key, key));
    if (auto done = read(*node->as_table()); !done && !error_) error_ = std::move(done.error());
  }

  /// Each table of an array of tables ([[key]]).
  template <typename Read>
  void tables(std::string_view key, Read read) {
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return;
    const toml::array* const array = node->as_array();
    if (array == nullptr) return complain(*node, fmt::format("{} must be written as [[{}]]", key, key));
    for (const auto& element : *array) {
      if (!element.is_table()) return complain(element, fmt::format("{} must be written as [[{}]]", key, key));
      if (auto done = read(*element.as_table()); !done && !error_) error_ = std::move(done.error());
    }
  }

  [[nodiscard]] Result<void> finish() {
    if (error_) return failure(std::move(*error_));
    return {};
  }

 private:
  void complain(const toml::node& node, const std::string& message) {
    if (!error_)
      error_ = Error(ErrorKind::invalid_argument, fmt::format("{}:{}: {}", path_, node.source().begin.line, message));
  }
  void use(const toml::node& node, std::string_view key, Result<void> result) {
    if (!result) complain(node, fmt::format("{}{}: {}", key, where_, result.error().message()));
  }

  const std::string& path_;
  const toml::table& table_;
  std::string where_;
  std::optional<Error> error_;
};

// Parses `text` with `parse` and hands the value to `take`.
template <typename Parse, typename Take>
auto then(Parse parse, Take take) {
  return [parse, take](const std::string& text) -> Result<void> {
    auto value = parse(text);
    if (!value) return failure(std::move(value.error()));
    take(std::move(*value));
    return {};
  };
}

Result<void> read_namespace(const std::string& path, const toml::table& table, SubsystemConfiguration& subsystem) {
  NamespaceConfiguration disk;
  Keys keys(path, table, " of a namespace", {"store", "nsid", "reservations"});
  keys.string("store", [&](const std::string& text) -> Result<void> {
    disk.store = text;
    return {};
  });
  keys.string("reservations", [&](const std::string& text) -> Result<void> {
    disk.reservations = text;
    return {};
  });
  std::uint32_t nsid = 0;
  keys.number("nsid", nsid, 1, kNsidMax);
  if (nsid != 0) disk.nsid = Nsid(nsid);
  if (auto fine = keys.finish(); !fine) return fine;
  if (disk.store.empty())
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}:{}: a namespace needs a store", path, table.source().begin.line));
  subsystem.namespaces.push_back(std::move(disk));
  return {};
}

Result<nvme::HostId> parse_host_id(const std::string& text) {
  const auto uuid = nvme::Uuid::parse(text);
  if (!uuid) return failure(Error(uuid.error()));
  return nvme::HostId(*uuid);
}

// "1,2,7", or "none".
Result<std::vector<Nsid>> parse_namespaces(const std::string& text) {
  std::vector<Nsid> namespaces;
  if (text == "none") return namespaces;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    auto nsid = parse_number("--host-namespaces", text.substr(at, end - at), 1, kNsidMax);
    if (!nsid) return failure(std::move(nsid.error()));
    namespaces.push_back(Nsid(*nsid));
    at = end + 1;
  }
  return namespaces;
}

Result<void> set_secret(auth::SharedSecret& secret, const std::string& source) {
  auto loaded = auth::Secret::load(source);
  if (!loaded) return failure(std::move(loaded.error()));
  secret = std::move(*loaded);
  return {};
}

// How a host proves itself: of the option --host-KEY, or of the key.
Result<void> set_authentication(target::HostAuthentication& authentication, std::string_view key,
                                const std::string& text) {
  if (key == "secret-file") return set_secret(authentication.secret, text);
  if (key == "ctrl-secret-file") return set_secret(authentication.controller_secret, text);
  if (key == "hash") {
    authentication.hash = nvme::parse_auth_hash(text);
    if (!authentication.hash)
      return failure(ErrorKind::invalid_argument,
                     fmt::format("'{}': it is sha256, sha384 or sha512", printable(text, 40)));
  }
  if (key == "dh-group") {
    authentication.group = nvme::parse_dh_group(text);
    if (!authentication.group)
      return failure(ErrorKind::invalid_argument,
                     fmt::format("'{}': it is null, ffdhe2048, ffdhe3072, ffdhe4096, ffdhe6144 or ffdhe8192",
                                 printable(text, 40)));
  }
  return {};
}
constexpr std::string_view kAuthenticationKeys[] = {"secret-file", "ctrl-secret-file", "hash", "dh-group"};

Result<void> read_host(const std::string& path, const toml::table& table, SubsystemConfiguration& subsystem) {
  std::optional<target::AllowedHost> host;
  Keys keys(path, table, " of a host",
            {"nqn", "id", "namespaces", "secret-file", "ctrl-secret-file", "hash", "dh-group"});
  keys.string("nqn", then([](const std::string& text) { return nvme::Nqn::parse(text); },
                          [&](nvme::Nqn nqn) { host = target::AllowedHost{.nqn = std::move(nqn)}; }));
  if (auto fine = keys.finish(); !fine) return fine;
  if (!host)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}:{}: a host needs an nqn (a string)", path, table.source().begin.line));
  keys.string("id", then(parse_host_id, [&](nvme::HostId id) { host->id = id; }));
  keys.numbers("namespaces", 1, kNsidMax, [&](const std::vector<std::int64_t>& shown) {
    host->namespaces.emplace();
    for (const std::int64_t nsid : shown)
      host->namespaces->push_back(Nsid(static_cast<std::uint32_t>(nsid)));
  });
  for (const auto key : kAuthenticationKeys)
    keys.string(key, [&](const std::string& text) { return set_authentication(host->authentication, key, text); });
  if (auto fine = keys.finish(); !fine) return fine;
  subsystem.allowed_hosts.push_back(std::move(*host));
  return {};
}

Result<void> read_subsystem(const std::string& path, const toml::table& table, Configuration& configuration) {
  const auto nqn = table["nqn"].value<std::string>();
  if (!nqn)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}:{}: a subsystem needs an nqn (a string)", path, table.source().begin.line));
  auto name = nvme::Nqn::parse(*nqn);
  if (!name)
    return failure(ErrorKind::invalid_argument, fmt::format("{}:{}: nqn of a subsystem: {}", path,
                                                            table.source().begin.line, name.error().message()));
  SubsystemConfiguration subsystem(std::move(*name));
  Keys keys(path, table, " of a subsystem", {"nqn", "serial", "model", "allow-host", "host", "store", "namespace"});
  const auto parse_nqn = [](const std::string& text) { return nvme::Nqn::parse(text); };
  keys.strings("allow-host",
               then(parse_nqn, [&](nvme::Nqn host) { subsystem.allowed_hosts.push_back({.nqn = std::move(host)}); }));
  keys.tables("host", [&](const toml::table& inner) { return read_host(path, inner, subsystem); });
  keys.string("serial", [&](const std::string& text) -> Result<void> {
    subsystem.serial = text;
    return {};
  });
  keys.string("model", [&](const std::string& text) -> Result<void> {
    subsystem.model = text;
    return {};
  });
  keys.strings("store", [&](const std::string& text) -> Result<void> {
    subsystem.namespaces.push_back({.store = text, .nsid = {}, .reservations = {}});
    return {};
  });
  keys.tables("namespace", [&](const toml::table& inner) { return read_namespace(path, inner, subsystem); });
  if (auto fine = keys.finish(); !fine) return fine;
  configuration.subsystems.push_back(std::move(subsystem));
  return {};
}

Result<void> read_limits(const std::string& path, const toml::table& table, target::TargetLimits& limits) {
  Keys keys(path, table, " of limits",
            {"queue-depth", "io-queues", "connections", "connections-per-host", "half-open", "half-open-per-host",
             "buffers"});
  keys.number("queue-depth", limits.queue_depth_max, 2, 1024);
  keys.number("io-queues", limits.io_queues_max, 1, 1024);
  keys.number("connections", limits.connections_max, 1, 65535);
  keys.number("connections-per-host", limits.connections_per_host, 1, 65535);
  keys.number("half-open", limits.half_open_max, 1, 65535);
  keys.number("half-open-per-host", limits.half_open_per_host, 1, 65535);
  keys.string("buffers", then([](const std::string& text) { return parse_size(text); },
                              [&](Bytes size) { limits.buffers = size; }));
  return keys.finish();
}

// What is said of one host.
Result<void> add_host_option(SubsystemConfiguration& subsystem, const OrderedOption& option) {
  if (option.name == "allow-host") {
    auto nqn = nvme::Nqn::parse(option.value);
    if (!nqn) return failure(std::move(nqn.error()).within("--allow-host"));
    subsystem.allowed_hosts.push_back({.nqn = std::move(*nqn)});
    return {};
  }
  if (subsystem.allowed_hosts.empty())
    return failure(ErrorKind::invalid_argument,
                   fmt::format("--{} {}: it belongs to the --allow-host before it, and subsystem {} has none",
                               option.name, printable(option.value), subsystem.nqn.text()));
  target::AllowedHost& host = subsystem.allowed_hosts.back();
  if (option.name == "host-id") {
    auto id = parse_host_id(option.value);
    if (!id) return failure(std::move(id.error()).within("--host-id"));
    host.id = *id;
  }
  if (option.name == "host-namespaces") {
    auto namespaces = parse_namespaces(option.value);
    if (!namespaces) return failure(std::move(namespaces.error()));
    host.namespaces = std::move(*namespaces);
  }
  if (auto set = set_authentication(host.authentication, std::string_view(option.name).substr(5), option.value); !set)
    return failure(std::move(set.error()).within("--" + option.name));
  return {};
}

}  // namespace

Result<void> add_options(Configuration& configuration, const std::vector<OrderedOption>& options) {
  const auto subsystem_of = [&](const OrderedOption& option) -> Result<SubsystemConfiguration*> {
    if (configuration.subsystems.empty())
      return failure(ErrorKind::invalid_argument,
                     fmt::format("--{} {}: it belongs to the --subsystem before it, and there is none", option.name,
                                 printable(option.value)));
    return &configuration.subsystems.back();
  };
  for (const auto& option : options) {
    if (option.name == "listen") {
      auto uri = parse_listen(option.value);
      if (!uri) return failure(std::move(uri.error()).within("--listen"));
      configuration.listen.push_back(std::move(*uri));
      continue;
    }
    if (option.name == "subsystem") {
      auto nqn = nvme::Nqn::parse(option.value);
      if (!nqn) return failure(std::move(nqn.error()).within("--subsystem"));
      configuration.subsystems.emplace_back(std::move(*nqn));
      continue;
    }
    auto subsystem = subsystem_of(option);
    if (!subsystem) return failure(std::move(subsystem.error()));
    if (option.name == "store")
      (*subsystem)->namespaces.push_back({.store = option.value, .nsid = {}, .reservations = {}});
    if (option.name == "reservations") {
      if ((*subsystem)->namespaces.empty())
        return failure(ErrorKind::invalid_argument,
                       fmt::format("--reservations {}: it belongs to the --store before it, and there is none",
                                   printable(option.value)));
      (*subsystem)->namespaces.back().reservations = option.value;
    }
    if (option.name == "serial") (*subsystem)->serial = option.value;
    if (option.name == "model") (*subsystem)->model = option.value;
    if (option.name == "allow-host" || option.name.starts_with("host-"))
      if (auto added = add_host_option(**subsystem, option); !added) return added;
  }
  return {};
}

Result<Configuration> read_configuration(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file) return errno_failure(errno != 0 ? errno : EIO, fmt::format("reading the configuration {}", path));
  try {
    const toml::table root = toml::parse(text.str(), path);
    Configuration configuration;
    Keys keys(path, root, "", {"listen", "reactors", "log-level", "limits", "subsystem"});
    keys.strings("listen", then(parse_listen, [&](Uri uri) { configuration.listen.push_back(std::move(uri)); }));
    keys.number("reactors", configuration.reactors, 1, 256);
    keys.string("log-level", then([](const std::string& word) { return parse_log_level(word); },
                                  [&](LogLevel level) { configuration.log = level; }));
    keys.table("limits", [&](const toml::table& table) { return read_limits(path, table, configuration.limits); });
    keys.tables("subsystem", [&](const toml::table& table) { return read_subsystem(path, table, configuration); });
    if (auto fine = keys.finish(); !fine) return failure(std::move(fine.error()));
    return configuration;
  } catch (const toml::parse_error& error) {
    return failure(ErrorKind::invalid_argument, fmt::format("{}:{}:{}: {}", path, error.source().begin.line,
                                                            error.source().begin.column, error.description()));
  }
}

Result<void> validate(const Configuration& configuration) {
  if (configuration.listen.empty())
    return failure(ErrorKind::invalid_argument,
                   "nowhere to listen: give --listen nvme+rdma://ADDRESS or --listen nvme+shm://, or listen = in the "
                   "configuration");
  if (configuration.subsystems.empty())
    return failure(ErrorKind::invalid_argument, "nothing to serve: give --subsystem NQN and --store SPEC");
  std::set<std::string> files;
  for (const auto& subsystem : configuration.subsystems) {
    for (const auto& disk : subsystem.namespaces)
      if (!disk.reservations.empty() && !files.insert(disk.reservations).second)
        return failure(ErrorKind::invalid_argument,
                       fmt::format("reservations {}: two namespaces cannot be kept in one file", disk.reservations));
    if (subsystem.namespaces.empty())
      return failure(ErrorKind::invalid_argument,
                     fmt::format("subsystem {} has no namespace: give it a --store SPEC", subsystem.nqn.text()));
  }
  return {};
}

}  // namespace rbt::tools
