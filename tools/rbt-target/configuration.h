#pragma once
// What rbt-target is told to serve: from the command line and from a TOML file, which say the same.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/result.h"
#include "common/uri.h"
#include "target/target.h"

namespace rbt::tools {

struct NamespaceConfiguration {
  std::string store;  ///< a SPEC
  std::optional<Nsid> nsid;
  std::string reservations;  ///< a file that keeps them; empty: none does
};

struct SubsystemConfiguration {
  explicit SubsystemConfiguration(nvme::Nqn name) : nqn(std::move(name)) {}
  nvme::Nqn nqn;
  std::vector<target::AllowedHost> allowed_hosts;  ///< none: any host
  std::string serial;
  std::string model = "rbt";
  std::vector<NamespaceConfiguration> namespaces;
};

struct Configuration {
  std::vector<Uri> listen;
  std::vector<SubsystemConfiguration> subsystems;
  unsigned reactors = 1;
  std::optional<LogLevel> log;
  target::TargetLimits limits;
};

/// One word of the command line that builds up the configuration: order matters, as each --store and --allow-host is of the
/// --subsystem before it, and each --host-... of the --allow-host before it.
struct OrderedOption {
  std::string name;  ///< "listen", "subsystem", "store", "reservations", "allow-host", "host-...", "serial", "model"
  std::string value;
};

/// Adds what the command line says. Errors name the option.
[[nodiscard]] Result<void> add_options(Configuration& configuration, const std::vector<OrderedOption>& options);

/// Reads `path`. Errors name the file, the line and the key, and say what is allowed; unknown keys are errors.
[[nodiscard]] Result<Configuration> read_configuration(const std::string& path);

/// Errors if nothing would be served, or nobody could come in.
[[nodiscard]] Result<void> validate(const Configuration& configuration);

}  // namespace rbt::tools
