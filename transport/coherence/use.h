#pragma once
// The data path's side of a region: who moves data through it, and how many requests of theirs are in flight.
//
// Why a plain store and a load are enough. A user counts itself in (store), then looks at the region's state (load). The
// monitor sets the state (store), then looks at the counters (load). With a full barrier between store and load on both
// sides at least one of the two sees the other (Dekker). The user's barrier is only a compiler barrier: the monitor's
// membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) makes every running thread of the process execute a full one, at some point
// of its program. If that point lies after the user's store, the monitor sees the count and waits. If it lies before, the
// user's load comes after it, sees that the region is quiescing, and backs out. Where the kernel refuses membarrier, users
// execute a full fence of their own (`fence_needed`).
//
// leave() is the mirror image: count out (store), then compare the region's epoch (load). The monitor raises the epoch
// before it deregisters and thus before whoever changes the mapping may go on. A user that still sees the old epoch
// finished its request while the old pages were in place: its success is true. One that sees a new epoch was counted
// in while the fence went up (the bound passed): its success means nothing.

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace rbt::transport::coherence {

class Engine;
class Region;
class Use;
class User;
struct RegionBody;

/// coherent -> quiescing -> fenced -> restoring -> coherent, or gone. Transitions: region.h.
enum class RegionState : std::uint8_t {
  coherent,   ///< registered; requests may use it
  quiescing,  ///< a change waits: no request may begin; those in flight end, or the bound passes
  fenced,     ///< not registered; the change may go on. Until restore()
  restoring,  ///< being watched and registered again
  gone,       ///< for good: fencing failed or did not answer, or the region is being destroyed
};

/// State and epoch of a region in one word, so that one load tells both.
struct RegionWord {
  alignas(64) std::atomic<std::uint64_t> value{0};
  bool fence_needed = false;  ///< no membarrier here; constant
  static constexpr std::uint64_t make(std::uint64_t epoch, RegionState state) noexcept {
    return epoch << 8 | static_cast<std::uint64_t>(state);
  }
  static constexpr RegionState state(std::uint64_t word) noexcept { return static_cast<RegionState>(word & 0xff); }
  static constexpr std::uint64_t epoch(std::uint64_t word) noexcept { return word >> 8; }
};

/// Proof of one enter(), to be kept with the request until leave().
struct Pass {
  std::uint64_t word = 0;
  bool granted = false;
  [[nodiscard]] explicit operator bool() const noexcept { return granted; }
};

/// What became of the region while a request was in flight.
enum class [[nodiscard]] Passage : std::uint8_t{
    clean,   ///< it was registered all the time: completions are true
    fenced,  ///< the fence went up before the request was over: `success` means nothing; do not report it
};

/// Hears, on its own thread (from within User::dispatch()), what becomes of the regions that it uses.
class UserHandler {
 public:
  virtual ~UserHandler() = default;
  /// Requests of this use did not end within the bound; the fence goes up without them. Close the connections that
  /// carry them: what they report from now on is worth nothing (leave() says `fenced`).
  virtual void on_region_overdue(Use& use) = 0;
  /// Deregistered: its keys are of no use any more. Until on_region_coherent() take the copying path, or wait.
  virtual void on_region_fenced(Use& use) = 0;
  /// Registered again, with new keys.
  virtual void on_region_coherent(Use& use) = 0;
};

/// One thread that uses regions: a reactor's queue of a store, a queue pair. One thread, but for descriptor().
class User {
 public:
  explicit User(UserHandler& handler);
  ~User();  ///< after its Uses
  User(const User&) = delete;
  User& operator=(const User&) = delete;
  /// Readable when dispatch() has something to do: Reactor::watch(user.descriptor(), EPOLLIN, …).
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }
  /// Calls the handler for what has happened. The handler may destroy Uses and make new ones. A use that missed
  /// something hears only what is still true: overdue, then fenced or coherent.
  void dispatch();

 private:
  friend class Use;
  friend struct RegionBody;
  void ring() noexcept;  // the monitor's threads
  UserHandler& handler_;
  int descriptor_;
  Use* first_ = nullptr;
};

/// One user's way into one region: a counter of requests in flight on a cache line of its own. The user's thread only.
class alignas(64) Use {
 public:
  Use(Region& region, User& user);
  ~Use();  ///< nothing in flight
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  /// Before a request that names the region's memory is posted. Not granted: the region is not coherent; take the
  /// copying path, or wait for on_region_coherent(). Granted: its keys (RegisteredMemory::keys()) hold until leave().
  [[nodiscard]] Pass enter() noexcept {
    in_flight_.store(in_flight_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    barrier();
    const std::uint64_t word = word_.value.load(std::memory_order_acquire);
    if (RegionWord::state(word) == RegionState::coherent) [[likely]]
      return {word, true};
    count_out();
    return {};
  }
  /// When the adapter touches the request's memory no more: its completion, or on_closed(). Once per granted pass.
  Passage leave(Pass pass) noexcept {
    count_out();
    barrier();
    const std::uint64_t word = word_.value.load(std::memory_order_acquire);
    return RegionWord::epoch(word) == RegionWord::epoch(pass.word) ? Passage::clean : Passage::fenced;
  }
  [[nodiscard]] std::uint32_t in_flight() const noexcept { return in_flight_.load(std::memory_order_relaxed); }
  [[nodiscard]] Region& region() const noexcept { return region_; }

 private:
  friend class Engine;
  friend class User;
  friend struct RegionBody;
  // Written by the user's thread only. Released so that the monitor, when it acquires a zero, has everything that the
  // request did with the region's keys behind it.
  void count_out() noexcept {
    in_flight_.store(in_flight_.load(std::memory_order_relaxed) - 1, std::memory_order_release);
  }
  void barrier() const noexcept {
    if (word_.fence_needed) [[unlikely]]
      std::atomic_thread_fence(std::memory_order_seq_cst);
    else
      std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  std::atomic<std::uint32_t> in_flight_{0};
  std::atomic<std::uint32_t> notices_{0};  // set by the monitor's threads, taken by dispatch()
  const RegionWord& word_;
  Region& region_;
  User& user_;
  Use* next_of_region_ = nullptr;  // guarded by the region
  Use* next_of_user_ = nullptr;    // the user's thread
};

}  // namespace rbt::transport::coherence
