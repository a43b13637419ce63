#pragma once
// A disk that an NBD server exports: qemu-nbd's qcow2, every plugin of nbdkit.

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "common/log.h"
#include "common/result.h"
#include "target/store/nbd_link.h"
#include "target/store/range_lock.h"
#include "target/store/spec.h"
#include "target/store/store.h"
#include "target/store/zero_pages.h"

namespace rbt::target {

struct NbdOptions {
  std::string uri;
  std::optional<BlockShift> block_shift;  ///< none: 512, or the server's least
  bool read_only = false;
  std::optional<Identity> identity;              ///< none: derived from the URI
  Duration patience = std::chrono::seconds(20);  ///< how long requests wait for a server that is away
  std::uint32_t links_max = kLinksMax;           ///< connections; a server without multi_conn gets one
  /// A server that dies may forget what it has not flushed, and the host would never hear of it.
  enum class Writes : std::uint8_t {
    durable,  ///< every write is durable before it is answered: there is no write cache
    cached,   ///< the server's cache; if it is lost with writes in it, no flush succeeds any more until a restart
  };
  Writes writes = Writes::durable;

  static constexpr std::uint32_t kLinksMax = 64;
};

/// Data goes between the socket and the pool's buffers. One connection per reactor, if the server says that a flush on
/// one is a flush on all; else one for all reactors. Thread-safe.
class NbdStore final : public Store, private NbdServer {
 public:
  /// Connects, and waits for it: slow path.
  [[nodiscard]] static Result<std::unique_ptr<Store>> create(std::string spec, const NbdOptions& options,
                                                             const StoreEnvironment& environment);

  [[nodiscard]] Geometry geometry() const override;
  void observe(StoreObserver* observer) noexcept override { observer_.store(observer, std::memory_order_release); }
  [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
  [[nodiscard]] const std::string& spec() const noexcept override { return spec_; }
  [[nodiscard]] std::string explain() const override;
  /// The pool's owner has done it.
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain&, std::uint32_t) override { return {}; }
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

  // For queues.

  /// A link that several reactors use.
  struct Shared {
    std::mutex mutex;         // guards `link`, and keeps it while something is put into it
    NbdLink* link = nullptr;  // owned by the queue that made it; null: whoever wants one next makes it
  };
  [[nodiscard]] bool shares_links() const noexcept { return options_.links_max < NbdOptions::kLinksMax; }
  /// Of the queue that asks, with shares_links(): in turn.
  [[nodiscard]] Shared& next_shared() noexcept;
  [[nodiscard]] NbdServer& server() noexcept { return *this; }
  [[nodiscard]] RangeLock& range_lock() noexcept { return range_lock_; }
  [[nodiscard]] BlockShift block_shift() const noexcept { return block_shift_; }
  [[nodiscard]] bool read_only() const noexcept { return (flags() & kReadOnly) != 0; }
  [[nodiscard]] bool can_fua() const noexcept { return (flags() & kFua) != 0; }
  /// False: zeroes are written.
  [[nodiscard]] bool can_zero() const noexcept {
    return (flags() & kZero) != 0 && !zero_refused_.load(std::memory_order_relaxed);
  }
  void remember_zero_refused() noexcept { zero_refused_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] const ZeroPages& zeroes() const noexcept { return zeroes_; }
  /// How durable a write is made that is asked to be `asked`.
  [[nodiscard]] Durability durability(Durability asked) const noexcept {
    return options_.writes == NbdOptions::Writes::durable ? Durability::durable : asked;
  }
  /// A write that only the server's cache has is about to be answered.
  void note_cached() noexcept { cached_.fetch_add(1, std::memory_order_acq_rel); }
  /// How many there were so far: for note_flushed() when a flush that begins now is done.
  [[nodiscard]] std::uint64_t cached() const noexcept { return cached_.load(std::memory_order_acquire); }
  void note_flushed(std::uint64_t cached) noexcept;
  /// How often a connection was lost: what was written before that and not flushed since may be gone.
  [[nodiscard]] std::uint32_t losses() const noexcept { return losses_.load(std::memory_order_acquire); }
  [[nodiscard]] bool lost_writes() const noexcept { return lost_writes_.load(std::memory_order_acquire); }
  [[nodiscard]] Duration patience() const noexcept override { return options_.patience; }
  [[nodiscard]] Logger& logger() const noexcept override { return logger_; }

 private:
  static constexpr std::uint32_t kReadOnly = 1, kFlush = 2, kFua = 4, kTrim = 8, kZero = 16;

  NbdStore(std::string spec, NbdOptions options, const StoreEnvironment& environment, ZeroPages zeroes,
           NbdConnected first);
  [[nodiscard]] Result<void> choose_block();
  [[nodiscard]] std::string connections() const;
  [[nodiscard]] std::uint32_t flags() const noexcept { return flags_.load(std::memory_order_relaxed); }
  [[nodiscard]] static std::uint32_t flags_of(const NbdExport& about) noexcept;

  // NbdServer
  [[nodiscard]] const std::string& uri() const noexcept override { return options_.uri; }
  [[nodiscard]] NbdConnected take_first() override;
  [[nodiscard]] Result<void> admit(const NbdExport& about) override;
  void on_lost() noexcept override;

  std::string spec_;
  NbdOptions options_;
  Logger& logger_;
  ZeroPages zeroes_;
  BlockShift block_shift_;
  RangeLock range_lock_;
  Identity identity_{};
  std::uint64_t preferred_;  // bytes: what the server likes best
  std::mutex mutex_;         // guards first_, and what admit() does
  NbdConnected first_;
  std::atomic<std::uint64_t> size_;   // bytes; changed by admit()
  std::atomic<std::uint32_t> flags_;  // the same
  std::atomic<bool> zero_refused_{false};
  std::atomic<StoreObserver*> observer_{nullptr};
  // Counts of writes that were answered out of the server's cache: all, and those that a flush has covered since. Where
  // they differ when a connection goes, writes may be lost.
  std::atomic<std::uint64_t> cached_{0};
  std::atomic<std::uint64_t> flushed_{0};
  std::atomic<bool> lost_writes_{false};
  std::atomic<std::uint32_t> losses_{0};
  std::unique_ptr<Shared[]> shared_;  // links_max of them; null: every queue has a link of its own
  std::atomic<std::uint32_t> queues_{0};
};

}  // namespace rbt::target
