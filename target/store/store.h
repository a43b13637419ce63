#pragma once
// The store seam: map, transfer, commit. A store says where the blocks of a range live (acquire), the fabric moves data
// straight there or from there, and the store makes what was written part of itself (commit). A memory store answers
// acquire() with the blocks themselves; a disk store with a buffer from the registered pool. It is the three-phase write
// of pNFS block layouts (RFC 5663, RFC 8154) and of remote persistent memory.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "common/units.h"
#include "transport/fabric.h"
#include "transport/memory/buffer_pool.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

enum class Intent : std::uint8_t { read, write };

/// When commit() and write_zeroes() may say done.
enum class Durability : std::uint8_t {
  cached,   ///< readable by everybody; lost with the machine unless flushed
  durable,  ///< survives a power failure as far as the medium can (NVMe FUA)
};

/// How a store operation ended. Becomes an NVMe status in exactly one place (target/status.h).
enum class StoreStatus : std::uint8_t {
  ok,
  read_error,   ///< the medium could not be read
  write_error,  ///< the medium could not be written, or made durable
  no_space,     ///< a thin medium is full
  read_only,
  out_of_range,  ///< the medium ends before the range (it has shrunk)
  unsupported,
  unavailable,  ///< for now; the host may try again
};

/// What an operation returned at once.
struct [[nodiscard]] Progress {
  bool pending = false;  ///< true: StoreRequest::on_store_done() comes later (never before the call has returned)
  StoreStatus status = StoreStatus::ok;
  static constexpr Progress done(StoreStatus status = StoreStatus::ok) noexcept { return {false, status}; }
  static constexpr Progress later() noexcept { return {true, StoreStatus::ok}; }
};

/// The one who waits for an operation; lives inside the command it belongs to. One operation at a time.
class StoreRequest {
 public:
  virtual ~StoreRequest() = default;
  virtual void on_store_done(StoreStatus status) = 0;

 private:
  friend class StoreRequestAccess;                   // target/store/store_request.h: what stores keep in here
  alignas(8) std::array<std::byte, 192> scratch_{};  // so that a queued operation costs no allocation
};

/// Memory that stands for a block range, from a successful acquire() until release().
struct Lease {
  /// Set by the caller: whose keys the segments carry; prepare() has succeeded for it. Null: memory for the CPU only.
  transport::ProtectionDomain* domain = nullptr;
  BlockRange range;
  Intent intent = Intent::read;
  /// Set by the caller: what lands whole of the data on its way here (ConnectionLimits::path_mtu, bytes; 0: it is not
  /// cut into packets, the CPU copies).
  std::uint32_t path_mtu = 0;
  /// In order, together exactly the range's bytes. Point into the store or the lease: valid until release().
  std::span<const transport::Segment> segments;
  // the store's own:
  std::array<transport::Segment, 4> few{};  ///< room for the common case
  std::uintptr_t token = 0;
  std::uint64_t pass = 0;
};

/// What a store can do besides reading and writing.
enum class Ability : std::uint8_t { none, emulated, native };

struct Geometry {
  BlockShift block_shift;
  Blocks blocks;
  bool read_only = false;
  bool write_cache = true;  ///< completed writes may be lost with the machine until flush()
  Ability discard = Ability::none;
  Ability write_zeroes = Ability::emulated;
  Blocks discard_granularity = Blocks(1);
  bool discard_reads_zero = false;
  Blocks optimal_io = Blocks(1);                                 ///< alignment and size that suit the medium
  Bytes transfer_max = Bytes(transport::BufferPool::kBlockMax);  ///< the longest range that one acquire() takes
  /// Blocks that one write changes all at once for whoever reads or writes them meanwhile (NAWUN): at least one.
  Blocks atomic_write = Blocks(1);
  /// The same when the connection, a process or the machine dies in the middle (NAWUPF).
  Blocks atomic_write_failing = Blocks(1);
};

/// How far writes last that were done and not flushed. Equal before and after means: none of them was lost in between.
struct Endurance {
  /// Whose end takes them along, if that is more than this opening of the store: the machine's boot for what the kernel
  /// keeps. None: nobody can tell what the last process, or a server, kept.
  std::optional<std::array<std::uint8_t, 16>> medium;
  std::uint64_t losses = 0;  ///< counts what was lost while the store was open
};

/// Who a namespace is, for good: NGUID and UUID of Identify. The same bytes in both.
using Identity = std::array<std::byte, 16>;

/// One reactor's way to a store. Every call on that reactor's thread; completions too. Destroy it when nothing
/// is pending, and not from within on_store_done().
class StoreQueue {
 public:
  virtual ~StoreQueue() = default;
  /// Fills lease.segments for lease.range (at least one block, at most Geometry::transfer_max) and lease.intent; for
  /// Intent::read the data is there when it is done.
  /// The range lies within the geometry that the caller saw; a store that shrank meanwhile says out_of_range.
  /// On any status but ok the lease holds nothing and must not be released.
  virtual Progress acquire(Lease& lease, StoreRequest& request) = 0;
  /// The lease's memory holds new data for all of its range: make it part of the store. Keeps the lease.
  virtual Progress commit(Lease& lease, Durability durability, StoreRequest& request) = 0;
  /// Gives the memory back. A write lease released without commit() leaves the old data or, for stores that map in
  /// place, an unspecified mixture in the blocks that were being transferred.
  virtual void release(Lease& lease) noexcept = 0;
  /// Everything committed before this call becomes durable.
  virtual Progress flush(StoreRequest& request) = 0;
  /// The contents may be forgotten, which is advice: a medium that cannot says ok and does nothing. `ranges` must stay
  /// valid until done; empty ones are skipped.
  virtual Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) = 0;
  enum class Deallocate : std::uint8_t { no, yes };
  virtual Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                StoreRequest& request) = 0;
  /// Bytes of blocks' data that this queue has copied in memory so far; what the kernel or a server copies does not count.
  /// On the reactor's thread. Layers pass on what is below them.
  [[nodiscard]] virtual std::uint64_t bytes_copied() const noexcept { return 0; }
};

class IoEngine;  // io_engine.h

/// What a queue needs from its reactor. All outlive the queue.
struct StoreQueueContext {
  transport::Reactor& reactor;
  transport::BufferPool& buffers;           ///< registered with every domain in use
  std::unique_ptr<IoEngine>* io = nullptr;  ///< for all files here, made by the first; null: each makes its own
};

/// Told of what changes about a store while it is served.
class StoreObserver {
 public:
  virtual ~StoreObserver() = default;
  /// geometry() says something new (a file that grew or shrank, a server that said so). Any thread; must not call back
  /// into the store, and does little.
  virtual void on_geometry_changed() noexcept = 0;
};

/// A medium. Thread-safe. Opened by make_store() (target/store/spec.h) from "ram:size=1GiB", "file:/x", …
class Store {
 public:
  virtual ~Store() = default;
  /// May change while running (a file that grew).
  [[nodiscard]] virtual Geometry geometry() const = 0;
  /// From now on, and until called with another or null, `observer` hears of changes. Before the first queue is opened,
  /// and after the last is gone. Stores that never change ignore it.
  virtual void observe([[maybe_unused]] StoreObserver* observer) noexcept {}
  [[nodiscard]] virtual const Identity& identity() const noexcept = 0;
  /// As given: for messages.
  [[nodiscard]] virtual const std::string& spec() const noexcept = 0;
  [[nodiscard]] virtual Endurance endurance() const { return {}; }
  /// How it is served, and why not better, for people: a few lines, or nothing.
  [[nodiscard]] virtual std::string explain() const { return {}; }
  /// What it has counted since it was opened, a line each, for people; most stores count nothing. Slow path.
  [[nodiscard]] virtual std::vector<std::string> counts() const { return {}; }
  /// Makes the store's own memory, if it serves from it, reachable through `domain`. Slow path; before the first lease
  /// of each connection, whose `path_mtu` (as Lease::path_mtu) may decide how blocks are kept whole.
  [[nodiscard]] virtual Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) = 0;
};

}  // namespace rbt::target
