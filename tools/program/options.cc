#include "tools/program/options.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <exception>
#include <sstream>

#include "common/log.h"
#include "version.h"

namespace rbt::tools {

ExitStatus exit_status(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::invalid_argument: return kUsage;
    case ErrorKind::not_found:
    case ErrorKind::unreachable:
    case ErrorKind::timed_out:
    case ErrorKind::disconnected: return kUnreachable;
    case ErrorKind::permission: return kPermission;
    case ErrorKind::in_use: return kInUse;
    case ErrorKind::mismatch: return kMismatch;
    case ErrorKind::resource:
    case ErrorKind::protocol:
    case ErrorKind::io:
    case ErrorKind::unsupported:
    case ErrorKind::internal: return kFailed;
  }
  return kFailed;
}

int report(std::string_view program, const Error& error) {
  fmt::print(stderr, "{}: {}\n", program, error.message());
  return exit_status(error.kind());
}

namespace {

// Whole names only: an abbreviation that works today would mean something else after the next option.
constexpr int kStyle = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;

// Boost does not say which word it is that nothing takes.
std::string stray_word(const std::vector<std::string>& words, const po::options_description& options,
                       const po::positional_options_description& positional) {
  for (const auto& option : po::command_line_parser(words).options(options).style(kStyle).run().options)
    if (option.position_key >= static_cast<int>(positional.max_total_count()))
      return fmt::format("'{}' belongs to no option: the option's name comes before each value",
                         printable(option.value.front()));
  return "too many words";
}

}  // namespace

Result<po::variables_map> parse(const std::vector<std::string>& words, const po::options_description& options,
                                const po::positional_options_description& positional) {
  try {
    po::variables_map values;
    po::store(po::command_line_parser(words).options(options).positional(positional).style(kStyle).run(), values);
    po::notify(values);
    return values;
  } catch (const po::too_many_positional_options_error&) {
    return failure(ErrorKind::invalid_argument, stray_word(words, options, positional));
  } catch (const po::error& error) {
    return failure(ErrorKind::invalid_argument, error.what());
  }
}

std::string describe(const po::options_description& options) {
  std::ostringstream out;
  out << options;
  return out.str();
}

std::string version(std::string_view program) {
  return fmt::format("{} {} ({})", program, RBT_VERSION, RBT_COMMIT);
}

Result<LogLevel> parse_log_level(std::string_view text) {
  if (text == "debug") return LogLevel::debug;
  if (text == "info") return LogLevel::info;
  if (text == "warning") return LogLevel::warning;
  if (text == "error") return LogLevel::error;
  if (text == "off") return LogLevel::off;
  return failure(ErrorKind::invalid_argument,
                 fmt::format("--log-level {}: it is debug, info, warning, error or off", printable(text, 40)));
}

Result<std::uint32_t> parse_number(std::string_view option, std::string_view text, std::uint32_t low,
                                   std::uint32_t high) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    return failure(ErrorKind::invalid_argument, fmt::format("{} {}: a whole number from {} to {} is expected", option,
                                                            printable(text, 40), low, high));
  return value;
}

int run(int argc, char** argv, const std::function<int(const std::vector<std::string>& words)>& body) {
  try {
    return body(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: internal error: {}\n", argc > 0 ? argv[0] : "rbt", error.what());
    return kFailed;
  }
}

}  // namespace rbt::tools
