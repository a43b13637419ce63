#pragma once
// What one nbdkit process serves: a namespace, behind a volume that outlives its path. A volume that has failed for good is
// made anew for the next client.

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "common/uri.h"
#include "initiator/present/shared_disk.h"
#include "tools/program/fabrics.h"

namespace rbt::tools {

/// The plugin's parameters.
struct ExportOptions {
  std::optional<Uri> uri{};
  initiator::SharedDiskOptions disk{.volume = {.attempt_timeout = std::chrono::seconds(10)}};
};
/// One "key=value" of the command line. Error: invalid_argument, with the keys or values that are allowed.
[[nodiscard]] Result<void> set_parameter(ExportOptions& options, std::string_view key, std::string_view value);
/// All of them have been set. Makes a relative socket absolute, for nbdkit leaves the directory it was started in. Error:
/// there is no uri.
[[nodiscard]] Result<void> complete(ExportOptions& options);

/// Thread-safe after start().
class Export {
 public:
  /// `logger` outlives it.
  Export(ExportOptions options, Logger& logger);

  /// Connects and lets go again, without any thread: before nbdkit goes into the background, where nobody would read what
  /// is wrong. Blocks for the connect timeout at most.
  [[nodiscard]] Result<void> probe();
  /// Connects. In the process that serves, for this makes threads.
  [[nodiscard]] Result<void> start();
  /// For one more client. If the disk has failed: its successor, of which it is made sure that it is the same disk and has
  /// lost nothing; blocks as Volume::open(). Error: mismatch, if that is not so; and after close().
  [[nodiscard]] Result<std::shared_ptr<initiator::SharedDisk>> open();
  /// "NQN, namespace 1: MODEL, serial SERIAL", as probe() saw it.
  [[nodiscard]] const std::string& description() const noexcept { return description_; }

  /// nbdkit ends: requests do not wait for a path any more.
  void give_up_when_lost();
  /// Ends every thread and every request.
  void close();

 private:
  [[nodiscard]] Result<std::shared_ptr<initiator::SharedDisk>> connect();

  ExportOptions options_;
  Logger& logger_;
  SystemClock clock_;
  std::string description_;
  std::mutex mutex_;  // guards what follows
  Random random_;
  std::optional<Fabrics> fabrics_;  // of the process that serves
  std::shared_ptr<initiator::SharedDisk>
      disk_;            // shared with the clients that still have a failed one; not per request
  bool owing_ = false;  // some disk failed with unflushed writes: its successor does not tell when those are durable
  bool ending_ = false;
};

}  // namespace rbt::tools
