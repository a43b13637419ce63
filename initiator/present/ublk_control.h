#pragma once
// Control commands of ublk: /dev/ublk-control, an io_uring of 128-byte entries, and a thread that waits for them, because a command
// may never return (kernels have failed within ADD_DEV) and may wait for I/O that its caller is to carry out (START_DEV, STOP_DEV).

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "common/clock.h"
#include "common/result.h"
#include "initiator/present/ublk_uapi.h"

namespace rbt::initiator {

/// Belongs to one thread; the thread of its own is nobody else's concern. Calls block, for their deadline at most: a command that
/// has not returned by then is left behind with its thread, and so are all later ones of this object.
class UblkControl {
 public:
  /// Spends the time until `done` or the deadline (then false).
  using Pass = std::function<bool(const std::function<bool()>& done, Instant deadline)>;
  // Where there is a Pass, an empty one means sleeping.

  /// Asks for the features, too. `wake` is called on another thread when a command has returned, for those who pass the time in a
  /// sleep; never after the destructor. Errors: no module, no privilege, no io_uring.
  [[nodiscard]] static Result<std::unique_ptr<UblkControl>> open(const Clock& clock, Instant deadline,
                                                                 std::function<void()> wake = {});
  ~UblkControl();
  UblkControl(const UblkControl&) = delete;
  UblkControl& operator=(const UblkControl&) = delete;

  [[nodiscard]] std::uint64_t features() const noexcept { return features_; }

  /// The information as the kernel has made it: it clips and clears without a word.
  [[nodiscard]] Result<ublksrv_ctrl_dev_info> add(const ublksrv_ctrl_dev_info& wanted, Instant deadline);
  [[nodiscard]] Result<ublksrv_ctrl_dev_info> info(std::uint32_t number, Instant deadline);
  [[nodiscard]] Result<void> set_params(std::uint32_t number, const ublk_params& params, Instant deadline);
  [[nodiscard]] Result<ublk_params> params(std::uint32_t number, Instant deadline);
  /// Returns when every tag is fetched and the partition scan is over: its reads are to be carried out meanwhile.
  [[nodiscard]] Result<void> start(std::uint32_t number, Instant deadline, const Pass& pass);
  /// Returns when every request that was handed out is done: they are to be carried out meanwhile.
  [[nodiscard]] Result<void> stop(std::uint32_t number, Instant deadline, const Pass& pass);
  /// Returns when the number is free again: nobody has /dev/ublkcN open any more.
  [[nodiscard]] Result<void> remove(std::uint32_t number, Instant deadline, const Pass& pass);
  /// Waits until the process that was serving it has let go, or until `patience`: then in_use.
  [[nodiscard]] Result<void> begin_recovery(std::uint32_t number, Instant patience, Instant deadline, const Pass& pass);
  /// Returns when every tag is fetched.
  [[nodiscard]] Result<void> end_recovery(std::uint32_t number, Instant deadline, const Pass& pass);
  [[nodiscard]] Result<void> update_size(std::uint32_t number, std::uint64_t sectors, Instant deadline,
                                         const Pass& pass);

 private:
  struct Shared;
  struct Command {
    const ublk::Control* control = nullptr;
    std::uint32_t number = 0;
    std::uint64_t argument = 0;
    void* buffer = nullptr;  // of the caller's; in and out
    std::uint16_t length = 0;
  };
  explicit UblkControl(const Clock& clock) noexcept : clock_(clock) {}
  [[nodiscard]] Result<void> begin_thread();
  [[nodiscard]] Result<void> ask_features(Instant deadline);
  /// 0, or the errno that the kernel answered. Error: it has not answered.
  [[nodiscard]] Result<int> execute(const Command& command, Instant deadline, const Pass& pass = {});
  [[nodiscard]] Result<void> run(const Command& command, Instant deadline, const Pass& pass = {});
  void pause(const Pass& pass);

  const Clock& clock_;
  std::shared_ptr<Shared> shared_;  // with the thread, which may outlive this
  std::thread thread_;
  std::uint64_t features_ = ublk::kFeaturesBefore;
};

}  // namespace rbt::initiator
