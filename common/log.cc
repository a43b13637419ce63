#include "common/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace rbt {

namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warning: return spdlog::level::warn;
    case LogLevel::error: return spdlog::level::err;
    case LogLevel::off: return spdlog::level::off;
  }
  return spdlog::level::info;
}

class StderrLogger final : public Logger {
 public:
  explicit StderrLogger(LogLevel threshold)
      : Logger(threshold), logger_("rbt", std::make_shared<spdlog::sinks::stderr_color_sink_mt>()) {
    logger_.set_level(to_spdlog(threshold));
    logger_.set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  }

 private:
  void write(LogLevel level, std::string message) override { logger_.log(to_spdlog(level), message); }
  spdlog::logger logger_;
};

class NullLogger final : public Logger {
 public:
  NullLogger() : Logger(LogLevel::off) {}

 private:
  void write(LogLevel /*level*/, std::string /*message*/) override {}
};

}  // namespace

std::unique_ptr<Logger> make_stderr_logger(LogLevel threshold) {
  return std::make_unique<StderrLogger>(threshold);
}

Logger& null_logger() noexcept {
  static NullLogger logger;  // stateless: nothing that one user could do to another
  return logger;
}

bool RateLimit::allow(Instant now) noexcept {
  if (now < next_) {
    ++suppressed_;
    return false;
  }
  next_ = now + interval_;
  return true;
}

std::uint64_t RateLimit::take_suppressed() noexcept {
  return std::exchange(suppressed_, 0);
}

std::string printable(std::string_view text, std::size_t limit) {
  std::string out;
  const std::string_view shown = text.substr(0, limit);
  out.reserve(shown.size());
  for (const char c : shown) {
    if (c >= 0x20 && c < 0x7f && c != '\\') {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  if (text.size() > limit) out += "...";
  return out;
}

}  // namespace rbt
