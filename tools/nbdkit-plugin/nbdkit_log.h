#pragma once
// rbt's messages as nbdkit has them: on standard error, or in syslog once it is in the background.

#include <cstdint>
#include <mutex>
#include <string_view>

#include "common/clock.h"
#include "common/log.h"

namespace rbt::tools {

/// Warnings and errors are nbdkit's errors, for it has nothing between; the rest is shown by `nbdkit -v`.
class NbdkitLogger final : public Logger {
 public:
  NbdkitLogger() : Logger(LogLevel::debug) {}

 private:
  void write(LogLevel level, std::string message) override;
};

/// Requests that fail, at most one line a second: a lost target fails all of them.
class Complaints {
 public:
  /// Thread-safe.
  void complain(std::string_view message);

 private:
  SystemClock clock_;
  std::mutex mutex_;
  RateLimit limit_{std::chrono::seconds(1)};  // guarded by mutex_
};

}  // namespace rbt::tools
