#pragma once
// One Format NVM (NVM 1.0, 4.1.3), which goes on whatever becomes of the host that has asked for it.

#include <atomic>
#include <cstdint>
#include <functional>

#include "common/nvme/status.h"
#include "common/units.h"
#include "target/store/store.h"

namespace rbt::target {

class ReactorContext;
class ServedNamespace;

/// Belongs to the reactor that began it. Namespace::begin_format() has succeeded: nobody comes to the blocks any more.
class FormatJob final : public StoreRequest {
 public:
  /// Holds `ns` and the target's gate until it is over. `answer` is called once, at the end.
  FormatJob(ReactorContext& home, ServedNamespace& ns, std::function<void(nvme::Status)> answer);
  /// Waits for the commands that have come before, on every reactor; then erases.
  void start();

 private:
  void arrive();
  void erase_next();
  void on_store_done(StoreStatus status) override;
  void finish(nvme::Status status);

  ReactorContext& home_;
  ServedNamespace& ns_;
  std::function<void(nvme::Status)> answer_;
  std::atomic<std::size_t> missing_;  // reactors; the last one acquires what the others' commands did
  const Blocks blocks_;
  Lba at_{};
  bool flushing_ = false;
};

}  // namespace rbt::target
