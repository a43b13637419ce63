#pragma once
// The devices of this process, opened when first seen.

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/log.h"
#include "common/result.h"
#include "transport/verbs/device.h"
#include "transport/verbs/fabric.h"

namespace rbt::transport::verbs {

/// Thread-safe. Lives as long as its Fabric.
class Devices {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Devices>> open(Logger& logger, const Options& options);
  ~Devices();
  Devices(const Devices&) = delete;
  Devices& operator=(const Devices&) = delete;

  /// The device behind an rdma_cm_id's `verbs`.
  [[nodiscard]] Result<Device*> find(ibv_context* context);
  [[nodiscard]] const Options& options() const noexcept { return options_; }
  /// For messages: devices and their addresses.
  [[nodiscard]] std::string describe() const { return describe_devices(contexts_); }

 private:
  Devices(Logger& logger, const Options& options, ibv_context** contexts)
      : logger_(logger), options_(options), contexts_(contexts) {}
  Logger& logger_;
  Options options_;
  ibv_context** contexts_;  // while we hold the list, librdmacm closes none of them
  std::mutex mutex_;        // guards devices_
  std::vector<std::unique_ptr<Device>> devices_;
};

}  // namespace rbt::transport::verbs
