#pragma once
// What the programs have in common: options, exit statuses, errors as a person reads them.

#include <boost/program_options.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/log.h"
#include "common/result.h"

namespace rbt::tools {

/// Exit statuses of every rbt program; in the man pages too.
enum ExitStatus : int {
  kSuccess = 0,
  kFailed = 1,        ///< an I/O, the peer or this machine failed
  kUsage = 2,         ///< the command line or the configuration is wrong
  kUnreachable = 3,   ///< nobody there: no such host, device, file, subsystem or namespace; time-out; lost
  kMismatch = 4,      ///< data is not what was written
  kPermission = 5,    ///< this user, or this host NQN, may not
  kInUse = 6,         ///< address or file belongs to somebody else at the moment
  kInterrupted = 130  ///< SIGINT or SIGTERM
};
[[nodiscard]] ExitStatus exit_status(ErrorKind kind) noexcept;

/// Writes "PROGRAM: message" to standard error; returns the exit status that belongs to it.
int report(std::string_view program, const Error& error);

namespace po = boost::program_options;

/// Parses without throwing. Unknown words, missing values and values out of range become an Error that says which.
[[nodiscard]] Result<po::variables_map> parse(const std::vector<std::string>& words,
                                              const po::options_description& options,
                                              const po::positional_options_description& positional);

/// `options` as text of at most 120 columns, without the leading caption.
[[nodiscard]] std::string describe(const po::options_description& options);

/// "rbt-perf 0.1.0 (commit)".
[[nodiscard]] std::string version(std::string_view program);

/// "debug", "info", "warning", "error", "off".
[[nodiscard]] Result<LogLevel> parse_log_level(std::string_view text);

/// An option's whole number within [low, high], or an Error naming option, value and range.
[[nodiscard]] Result<std::uint32_t> parse_number(std::string_view option, std::string_view text, std::uint32_t low,
                                                 std::uint32_t high);

/// Runs a program's body: `words` without the program's name. Catches what no library should have let through.
int run(int argc, char** argv, const std::function<int(const std::vector<std::string>& words)>& body);

}  // namespace rbt::tools
