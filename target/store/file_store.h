#pragma once
// A disk in a file or on a block device.

#include <atomic>
#include <memory>
#include <string>

#include "common/result.h"
#include "target/store/file_medium.h"
#include "target/store/io_engine.h"
#include "target/store/range_lock.h"
#include "target/store/store.h"
#include "target/store/zero_pages.h"

namespace rbt::target {

/// Data goes through the pool's buffers. FUA is RWF_DSYNC, flush is fdatasync, shared by the flushes that arrive while
/// one is running. Once an fdatasync has failed, no flush of this store succeeds any more: the kernel reports such a
/// loss once, to one caller, and forgets it, so that only a restart, after which hosts look again, is honest.
/// Thread-safe.
class FileStore final : public Store {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Store>> create(std::string spec, const FileOptions& options,
                                                             const StoreEnvironment& environment);
  /// The same over a medium that has been opened already.
  [[nodiscard]] static Result<std::unique_ptr<FileStore>> over(std::string spec, FileMedium medium,
                                                               const StoreEnvironment& environment);

  /// Asks the file how large it is: a system call.
  [[nodiscard]] Geometry geometry() const override;
  void observe(StoreObserver* observer) noexcept override { observer_.store(observer, std::memory_order_release); }
  [[nodiscard]] const Identity& identity() const noexcept override { return medium_.identity(); }
  [[nodiscard]] const std::string& spec() const noexcept override { return spec_; }
  [[nodiscard]] std::string explain() const override;
  /// The kernel or the device has what was written: it takes the end of the machine's boot to lose it.
  [[nodiscard]] Endurance endurance() const override { return {.medium = boot_, .losses = 0}; }
  /// The pool's owner has done it.
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain&, std::uint32_t) override { return {}; }
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

  // For queues.
  [[nodiscard]] const FileMedium& medium() const noexcept { return medium_; }
  /// For all queues, and for whoever else serves this medium (map).
  [[nodiscard]] RangeLock& range_lock() noexcept { return range_lock_; }
  [[nodiscard]] const Clock& clock() const noexcept { return clock_; }
  [[nodiscard]] Logger& logger() const noexcept { return logger_; }
  /// Whether the file still reaches to `end` (bytes); one system call. Tells the log when it has shrunk or grown.
  [[nodiscard]] bool reaches(std::uint64_t end) const noexcept;
  /// Somebody wants to hear when the file grows or shrinks, which nothing but looking tells: inotify would report every
  /// write of ours, and does not know block devices.
  [[nodiscard]] bool observed() const noexcept { return observer_.load(std::memory_order_acquire) != nullptr; }
  /// Looks, unless another queue has done so within half a period.
  void look_at_size(Instant now) const noexcept;
  static constexpr Duration kLookPeriod = std::chrono::seconds(2);
  /// What the file has refused once it is not asked for again. Relaxed: a hint.
  [[nodiscard]] bool refuses(IoOperation::Kind kind) const noexcept;
  void remember_refusal(IoOperation::Kind kind) noexcept;
  [[nodiscard]] bool lost_writes() const noexcept { return lost_writes_.load(std::memory_order_acquire); }
  /// An fdatasync failed.
  void remember_lost_writes(int error) noexcept;
  [[nodiscard]] const ZeroPages& zeroes() const noexcept { return zeroes_; }

 private:
  FileStore(std::string spec, FileMedium medium, const StoreEnvironment& environment, ZeroPages zeroes);
  [[nodiscard]] std::uint64_t refresh_size() const noexcept;

  std::string spec_;
  std::optional<std::array<std::uint8_t, 16>> boot_;  // none: the kernel does not tell
  FileMedium medium_;
  const Clock& clock_;
  Logger& logger_;
  std::unique_ptr<IoEngineFactory> own_io_;
  IoEngineFactory* io_;
  ZeroPages zeroes_;
  RangeLock range_lock_;
  mutable std::atomic<std::uint64_t> size_;              // as last seen; exchanged by whoever sees another
  mutable std::atomic<Instant> looked_{Instant::min()};  // relaxed: looking twice does no harm
  std::atomic<StoreObserver*> observer_{nullptr};        // released by observe(), acquired by who sees another size
  std::atomic<std::uint32_t> refusals_{0};               // bit per IoOperation::Kind
  std::atomic<bool> lost_writes_{false};                 // released by the queue that saw it, acquired by every flush
};

/// The status for a failed system call: `write` for writes, fallocate and fdatasync.
[[nodiscard]] StoreStatus file_status(int error, Intent intent) noexcept;

}  // namespace rbt::target
