#pragma once
// Logging: a failure is logged once, where it is decided, with who (host NQN, qid, cid), what was seen, what is allowed
// and what follows. Steady-state I/O logs nothing. Text that a peer controls goes through printable().

#include <fmt/format.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/clock.h"

namespace rbt {

enum class LogLevel : std::uint8_t { debug, info, warning, error, off };

/// Where messages go. Owned by main() or the test and passed down by reference; no global. Thread-safe.
class Logger {
 public:
  virtual ~Logger() = default;
  [[nodiscard]] bool enabled(LogLevel level) const noexcept { return level >= threshold_; }

  template <typename... Args>
  void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
    if (enabled(level)) write(level, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void debug(fmt::format_string<Args...> f, Args&&... args) {
    log(LogLevel::debug, f, std::forward<Args>(args)...);
  }
  template <typename... Args>
  void info(fmt::format_string<Args...> f, Args&&... args) {
    log(LogLevel::info, f, std::forward<Args>(args)...);
  }
  template <typename... Args>
  void warning(fmt::format_string<Args...> f, Args&&... args) {
    log(LogLevel::warning, f, std::forward<Args>(args)...);
  }
  template <typename... Args>
  void error(fmt::format_string<Args...> f, Args&&... args) {
    log(LogLevel::error, f, std::forward<Args>(args)...);
  }

 protected:
  explicit Logger(LogLevel threshold) noexcept : threshold_(threshold) {}
  virtual void write(LogLevel level, std::string message) = 0;

 private:
  LogLevel threshold_;
};

/// spdlog to standard error, "time level message". For programs.
[[nodiscard]] std::unique_ptr<Logger> make_stderr_logger(LogLevel threshold);
/// Swallows everything. For libraries whose embedder gave no logger, and for tests.
[[nodiscard]] Logger& null_logger() noexcept;

/// Lets one message per `interval` through and counts what it held back: one per cause, by its owner. One thread.
class RateLimit {
 public:
  explicit RateLimit(Duration interval) noexcept : interval_(interval) {}
  /// True if a message may be written now.
  [[nodiscard]] bool allow(Instant now) noexcept;
  /// Messages held back since the last call, then zero.
  [[nodiscard]] std::uint64_t take_suppressed() noexcept;

 private:
  Duration interval_;
  Instant next_{};
  std::uint64_t suppressed_ = 0;
};

/// `text` from a peer, safe for a terminal and a log: at most `limit` bytes, everything but printable ASCII as \xNN.
[[nodiscard]] std::string printable(std::string_view text, std::size_t limit = 256);

}  // namespace rbt
