#pragma once
// What one nbdkit process serves: a namespace, behind one session that is made anew, for the next client, when it was lost.

#include <memory>
#include <mutex>
#include <optional>
#include <string_view>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "common/uri.h"
#include "initiator/present/shared_disk.h"
#include "tools/program/fabrics.h"

namespace rbt::tools {

/// The plugin's parameters.
struct VolumeOptions {
  std::optional<Uri> uri{};
  initiator::SharedDiskOptions disk{};
};
/// One "key=value" of the command line. Error: invalid_argument, with the keys or values that are allowed.
[[nodiscard]] Result<void> set_parameter(VolumeOptions& options, std::string_view key, std::string_view value);
/// All of them have been set. Makes a relative socket absolute, for nbdkit leaves the directory it was started in. Error:
/// there is no uri.
[[nodiscard]] Result<void> complete(VolumeOptions& options);

class Volume {
 public:
  /// `logger` outlives it.
  Volume(VolumeOptions options, Logger& logger);

  /// Connects and lets go again, without any thread: before nbdkit goes into the background, where nobody would read what
  /// is wrong. Blocks for the connect timeout at most.
  [[nodiscard]] Result<void> probe();
  /// Connects. In the process that serves, for this makes threads.
  [[nodiscard]] Result<void> start();
  /// For one more client; thread-safe after start(). Connects anew if the session was lost, and reads the size again if
  /// the target said that it has changed. Error: mismatch, if another disk is there now.
  [[nodiscard]] Result<std::shared_ptr<initiator::SharedDisk>> open();

 private:
  [[nodiscard]] Result<std::unique_ptr<initiator::SharedDisk>> connect();

  VolumeOptions options_;
  Logger& logger_;
  SystemClock clock_;
  std::mutex mutex_;
  Random random_;
  std::optional<Fabrics> fabrics_;               // of the process that serves
  std::shared_ptr<initiator::SharedDisk> disk_;  // shared with the clients that still have a lost one; not per request
};

}  // namespace rbt::tools
